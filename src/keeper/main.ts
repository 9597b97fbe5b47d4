/**
 * The process that keeps one VM, started by `understudy run` or the host:
 *
 *   node src/keeper/main.ts --source /etc/vms/redis.yaml [--token-above N] [--end PATH] < /etc/vms/redis.yaml
 *
 * The specification comes on standard input; `--source` says how it is called in messages and where relative
 * paths begin, and `--trace` which request it is started for. Tokens begin above N, so that they never go back where
 * this VM had keepers before. How the VM ended is left at PATH, for the host. One line on standard output tells the
 * outcome of the start, `{"ok": true, "pid": …}` or
 * `{"ok": false, "error": {…}}`, after `{"waits": "…"}` where another host has to be waited for; afterwards it is spoken to through the control socket.
 *
 * A host adds `--shadow on|off` when it wants another thing than the specification, `--state DIRECTORY` where the state
 * of its VMs is saved, `--from snapshot` for a VM that shall go on from there, and for that of a tenant `--directories` (a
 * list in JSON) and `--cpu-share-max`. `--restore FILE` goes on from a snapshot file, with `--key-file FILE` from an
 * encrypted one.
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
import { Failpoints } from '../base/failpoint.ts';
import { type Logger, processLogger } from '../base/logger.ts';
import { traceFacts } from '../base/trace.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { answerOrder, takeOrder } from '../control/keeper-order.ts';
import { type KeeperWishes, WISH_OPTIONS, wishesFrom } from '../control/keeper-wishes.ts';
import { type GivenSpec, RunDirectory } from '../control/run-directory.ts';
import { savedStatePaths } from '../control/run-paths.ts';
import type { StartOutcome } from '../control/start-outcome.ts';
import { ServiceManager } from '../linux/service-manager.ts';
import { BoundedLog, jsonLossNote } from '../qemu/bounded-log.ts';
import { assertNoMaintenance } from '../site/maintenance.ts';
import { Keeper } from './keeper.ts';
import { EXIT_FAILED, leaveEnd, liveOut, StopSignals, startError, stopOnFaults } from './keeper-life.ts';
import type { RemoteSite } from './keeper-options.ts';
import { actsNow, joinSite, leaveSite } from './remote-site.ts';
import type { VmEnd } from './vm-ending.ts';
import { prepareHost } from './vm-host.ts';

const clock = systemClock;

const signals = new StopSignals();
// Whoever started this process may be gone by the time it has something to say.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
process.exitCode = await main();
// Nothing that was forgotten may keep a keeper without a VM alive.
process.exit();

async function main(): Promise<number> {
  // By itself Node does this when it ends, and a keeper may be killed. Now nobody waits yet for what it keeps.
  flushCompileCache();
  let reportStart: ReportStart = (outcome) => void process.stdout.write(`${JSON.stringify(outcome)}\n`);
  let reportWait = (waits: string) => void process.stdout.write(`${JSON.stringify({ waits })}\n`);
  try {
    const { source: named, order: ordered, ...words } = readArguments();
    const order = ordered === undefined ? undefined : takeOrder(ordered);
    if (ordered !== undefined && order !== undefined) {
      reportStart = (outcome) => {
        answerOrder(ordered, order.id, { outcome });
        if (!outcome.ok) process.stderr.write(`${JSON.stringify(outcome.error)}\n`);
      };
      reportWait = (what) => void process.stderr.write(`${what}\n`);
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
    stopOnFaults(signals, directory, log);
    log.info('keeper started', { pid: process.pid, vm: spec.name, ...traceFacts(wishes.trace) });
    return await keep({ spec, given, wishes }, { directory, log, manager, reportStart, reportWait });
  } catch (thrown) {
    reportStart({ ok: false, error: startError(thrown) });
    return EXIT_FAILED;
  }
}

function readArguments() {
  const options = { source: { type: 'string', default: 'stdin' }, order: { type: 'string' } } as const;
  return parseArgs({ options: { ...options, ...WISH_OPTIONS } }).values;
}

function waitingFor(vm: string, holder: string): string {
  return `${holder} acts as ${vm}, or did until it was lost: waiting for its right to end`;
}

type ReportStart = (outcome: StartOutcome) => void;

interface Kept {
  readonly spec: VmSpec;
  readonly given: GivenSpec;
  readonly wishes: KeeperWishes;
}

interface Keeping {
  readonly directory: RunDirectory;
  readonly log: Logger;
  readonly manager: ServiceManager;
  readonly reportStart: ReportStart;
  readonly reportWait: (what: string) => void;
}

async function keep({ spec, given, wishes }: Kept, keeping: Keeping): Promise<number> {
  const { directory, log, manager, reportStart, reportWait } = keeping;
  const { shadowWanted, stateDirectory, startFrom, restore, keyFile, endPath } = wishes;
  const { directories, cpuShareMax, anew = false } = wishes;
  const restoreFrom = restore === undefined ? undefined : { path: restore, keyFile };
  let failed = false;
  let started = false;
  let end: VmEnd = { reason: 'failed' };
  let remote: RemoteSite | undefined;
  const savedIn = stateDirectory === undefined ? undefined : savedStatePaths(stateDirectory, spec.name);
  try {
    // What a killed keeper left here is here already.
    if (directory.heritage.kind === 'none') assertNoMaintenance(spec.name);
    const host = await prepareHost(spec, {
      cacheDir: cacheDirectory(),
      directory: directory.path,
      clock,
      log,
      signal: signals.start,
    });
    const failpoints = new Failpoints();
    const onWait = (holder: string) => {
      log.info('waits for the right of another host to end', { holder });
      reportWait(waitingFor(spec.name, holder));
    };
    const onStoreAway = (why: string) =>
      reportWait(`it is not known whether another host acts as ${spec.name}: ${why}; asking again`);
    const waits = { onWait, onStoreAway, signal: signals.start };
    const kept = { spec, given, clock, log, failpoints, directory, anew, ...waits };
    remote = await joinSite(kept);
    const keeper = await Keeper.start({
      ...{ ...host, spec, log, clock, shadowWanted, savedIn, startFrom, restoreFrom },
      ...{ directories, cpuShareMax, failpoints },
      runDirectory: directory,
      remote,
      signal: signals.start,
    });
    started = true;
    signals.direct(keeper);
    const onReady = () => {
      reportStart({ ok: true, pid: process.pid });
      manager.ready(`keeps ${spec.name}`);
    };
    end = await liveOut(keeper, { directory, log, onReady });
    manager.stopping();
    failed = end.reason === 'failed';
  } finally {
    const { reason } = end;
    const movedTo = await actsNow(remote, reason);
    // A right that nothing came of is given back, unless what it is for is left to the next keeper.
    if (started || !directory.holdsHeritage)
      await leaveSite(remote, { ...end, suspendedIn: savedIn?.suspended, log, clock });
    if (endPath !== undefined) leaveEnd(endPath, { reason, host: movedTo, directory, log });
    // Who asks why a VM is gone finds its logs.
    if (failed) directory.leaveLogs();
    else if (!started && directory.holdsHeritage) directory.leaveHeritage();
    else directory.remove();
  }
  return failed ? EXIT_FAILED : 0;
}
