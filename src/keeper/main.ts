/**
 * The process that keeps one VM, started by `understudy run` or the host:
 *
 *   node src/keeper/main.ts --source /etc/vms/redis.yaml [--token-above N] [--end PATH] < /etc/vms/redis.yaml
 *
 * The specification comes on standard input; `--source` says how it is called in messages and where relative
 * paths begin, and `--trace` which request it is started for. Tokens begin above N, so that they never go back where
 * this VM had keepers before. How the VM ended is left at PATH, for the host. One line on standard output tells the
 * outcome of the start, `{"ok": true, "pid": …}` or
 * `{"ok": false, "error": {…}}`; afterwards it is spoken to through the control socket.
 *
 * A host adds `--shadow on|off` when it wants another thing than the specification, `--state DIRECTORY` where the state
 * of its VMs is saved, and `--from snapshot` for a VM that shall go on from there. `--restore FILE` goes on from a
 * snapshot file, with `--key-file FILE` from an encrypted one.
 *
 * As the unit understudy-keeper@redis of systemd:
 *
 *   node src/keeper/main.ts --order redis
 *
 * Specification, wishes and outcome are files then (src/control/keeper-order.ts), systemd is told when the VM runs, and
 * what is logged goes to standard error as well.
 *
 * SIGTERM and SIGINT stop the VM as `understudy stop` does, a second one at once; SIGHUP is ignored.
 * Exit codes: 0 the VM was stopped or powered off, 1 it could not be started or failed, 70 a fault of the keeper.
 */
import { flushCompileCache } from 'node:module';
import { text } from 'node:stream/consumers';
import { parseArgs } from 'node:util';
import { cacheDirectory } from '../base/cache-directory.ts';
import { systemClock } from '../base/clock.ts';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import { Failpoints } from '../base/failpoint.ts';
import { type Logger, processLogger } from '../base/logger.ts';
import { traceFacts } from '../base/trace.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { ControlServer } from '../control/control-server.ts';
import { writeEnd } from '../control/keeper-end.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { answerOrder, takeOrder } from '../control/keeper-order.ts';
import { type KeeperWishes, WISH_OPTIONS, wishesFrom } from '../control/keeper-wishes.ts';
import { bootId } from '../control/process-identity.ts';
import { RunDirectory } from '../control/run-directory.ts';
import { savedStatePaths } from '../control/run-paths.ts';
import type { StartError, StartOutcome } from '../control/start-outcome.ts';
import { ServiceManager } from '../linux/service-manager.ts';
import { BoundedLog, jsonLossNote } from '../qemu/bounded-log.ts';
import type { StopReason } from '../shadow/protection.ts';
import { Keeper } from './keeper.ts';
import { prepareHost } from './vm-host.ts';

const EXIT_FAILED = 1;
const EXIT_FAULT = 70;
const EMERGENCY_DEADLINE_MS = 15_000;

const clock = systemClock;

/** Before there is a keeper they end its start. */
class StopSignals {
  readonly #start = new AbortController();
  #received = 0;
  #keeper: Keeper | undefined;

  constructor() {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => this.#onSignal());
    process.on('SIGHUP', () => {});
  }

  /** Aborted with KEEPER_STOPPING when the VM is given up while it starts. */
  get start(): AbortSignal {
    return this.#start.signal;
  }

  direct(keeper: Keeper): void {
    this.#keeper = keeper;
    // Nobody has used a VM yet that was given up while it started.
    if (this.#received > 0) void keeper.stop({ graceful: false });
  }

  /** Of the keeper there is nothing more to expect. */
  freeze(): void {
    this.#keeper?.freeze();
    this.#keeper = undefined;
  }

  #onSignal(): void {
    this.#received += 1;
    this.#start.abort(
      new KeeperError('KEEPER_STOPPING', 'the VM was stopped while it started', {
        hint: 'Start it again when it shall run.',
      }),
    );
    const graceful = this.#received === 1;
    // What cannot be saved now will not be later: who sends this signal wants an end.
    this.#keeper?.stop({ graceful }).catch(() => this.#keeper?.stop({ graceful, termination: 'remove' }));
  }
}

const signals = new StopSignals();
let hasFault = false;
// Whoever started this process may be gone by the time it has something to say.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
process.exitCode = await main();
// Nothing that was forgotten may keep a keeper without a VM alive.
process.exit();

async function main(): Promise<number> {
  // By itself Node does this when it ends, and a keeper may be killed. Now nobody waits yet for what it keeps.
  flushCompileCache();
  let reportStart: ReportStart = (outcome) => void process.stdout.write(`${JSON.stringify(outcome)}\n`);
  try {
    const { source: named, order: ordered, ...words } = readArguments();
    const order = ordered === undefined ? undefined : takeOrder(ordered);
    if (ordered !== undefined && order !== undefined) {
      reportStart = (outcome) => {
        answerOrder(ordered, order.id, { outcome });
        if (!outcome.ok) process.stderr.write(`${JSON.stringify(outcome.error)}\n`);
      };
    }
    const given = { text: order?.spec ?? (await text(process.stdin)), source: order?.source ?? named };
    const spec = parseVmSpec(given.text, given);
    const wishes = order?.wishes ?? wishesFrom(words);
    const directory = await RunDirectory.open(spec.name, {
      ...{ clock, othersMayPass: spec.qemu.user !== undefined, inheritAs: spec },
      tokenAbove: wishes.tokenAbove ?? 0,
    });
    directory.record({ spec });
    directory.keepSpec(given);
    using file = new BoundedLog(directory.logPath, { lossNote: jsonLossNote });
    const write = (line: string) => {
      file.append(line);
      // Where systemd keeps the journal: it outlives the run directory.
      if (order !== undefined) process.stderr.write(line);
    };
    const log = processLogger(write, clock.wallMs);
    using manager = ServiceManager.of(process.env, { clock, log });
    for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
      process.on(event, (fault: unknown) => void stopAfterFault(fault, directory, log));
    }
    log.info('keeper started', { pid: process.pid, vm: spec.name, ...traceFacts(wishes.trace) });
    return await keep({ spec, wishes }, { directory, log, manager, reportStart });
  } catch (thrown) {
    reportStart({ ok: false, error: errorFacts(thrown) });
    return EXIT_FAILED;
  }
}

function readArguments() {
  const options = { source: { type: 'string', default: 'stdin' }, order: { type: 'string' } } as const;
  return parseArgs({ options: { ...options, ...WISH_OPTIONS } }).values;
}

type ReportStart = (outcome: StartOutcome) => void;

interface Kept {
  readonly spec: VmSpec;
  readonly wishes: KeeperWishes;
}

interface Keeping {
  readonly directory: RunDirectory;
  readonly log: Logger;
  readonly manager: ServiceManager;
  readonly reportStart: ReportStart;
}

async function keep({ spec, wishes }: Kept, keeping: Keeping): Promise<number> {
  const { directory, log, manager, reportStart } = keeping;
  const { shadowWanted, stateDirectory, startFrom, restore, keyFile, endPath } = wishes;
  const restoreFrom = restore === undefined ? undefined : { path: restore, keyFile };
  let failed = false;
  let started = false;
  let reason: StopReason = 'failed';
  try {
    const host = await prepareHost(spec, {
      cacheDir: cacheDirectory(),
      directory: directory.path,
      clock,
      log,
      signal: signals.start,
    });
    const savedIn = stateDirectory === undefined ? undefined : savedStatePaths(stateDirectory, spec.name);
    const keeper = await Keeper.start({
      ...{ ...host, spec, log, clock, shadowWanted, savedIn, startFrom, restoreFrom },
      runDirectory: directory,
      failpoints: new Failpoints(),
      signal: signals.start,
    });
    started = true;
    signals.direct(keeper);
    await using _control = await listen(keeper, directory, log);
    reportStart({ ok: true, pid: process.pid });
    manager.ready(`keeps ${spec.name}`);
    ({ reason } = await keeper.finished);
    manager.stopping();
    failed = reason === 'failed';
    log.info('keeper ends', { reason });
  } finally {
    if (endPath !== undefined) leaveEnd(endPath, { reason, directory, log });
    // Who asks why a VM is gone finds its logs.
    if (failed) directory.leaveLogs();
    else if (!started && directory.holdsHeritage) directory.leaveHeritage();
    else directory.remove();
  }
  return failed ? EXIT_FAILED : 0;
}

/** Before the directory goes: a host that finds neither would take the VM for one that was taken away. */
function leaveEnd(
  path: string,
  { reason, directory, log }: { reason: StopReason; directory: RunDirectory; log: Logger },
): void {
  try {
    writeEnd(path, { bootId: bootId(), reason, token: directory.token });
  } catch (thrown) {
    log.warn('the host will not know how the VM ended', { path, error: messageOf(thrown) });
  }
}

/** A VM that nobody can speak to would run for ever. */
async function listen(keeper: Keeper, directory: RunDirectory, log: Logger): Promise<ControlServer> {
  try {
    return await ControlServer.listen(directory.controlSocket, { control: keeper, clock, log });
  } catch (thrown) {
    await keeper.stop({ graceful: false });
    throw thrown;
  }
}

/**
 * Nobody knows in which state things are: end the VM before two of it can act. Its processes are killed before
 * anything that waits in the event loop can decide something.
 */
async function stopAfterFault(fault: unknown, directory: RunDirectory, log: Logger): Promise<void> {
  if (!hasFault) {
    hasFault = true;
    try {
      signals.freeze();
    } finally {
      directory.killProcesses();
    }
  }
  const stack = fault instanceof Error ? fault.stack : undefined;
  log.error('a fault of the keeper stops the VM', { error: messageOf(fault), stack });
  clock.after(EMERGENCY_DEADLINE_MS, () => process.exit(EXIT_FAULT));
  try {
    await directory.endProcesses(clock);
    directory.leaveLogs();
  } finally {
    process.exit(EXIT_FAULT);
  }
}

function errorFacts(thrown: unknown): StartError {
  if (thrown instanceof UnderstudyError)
    return { ...thrown.toJSON(), code: thrown.code, message: thrown.message };
  const stack = thrown instanceof Error ? thrown.stack : undefined;
  return { code: 'KEEPER_INTERNAL', message: messageOf(thrown), stack };
}
