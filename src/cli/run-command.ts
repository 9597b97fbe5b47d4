import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { type Clock, systemClock as clock } from '../base/clock.ts';
import { readVmSpec } from '../config/vm-spec.ts';
import type { ControlClient } from '../control/control-client.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { KeeperProcess } from '../control/keeper-process.ts';
import { RunDirectory } from '../control/run-directory.ts';
import type { VmStatus } from '../control/vm-status.ts';
import { CliError } from './cli-error.ts';
import { eventText } from './event-text.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { Interruption } from './interruption.ts';
import type { Output } from './output.ts';
import { statusText } from './status-command.ts';
import { actingHost, openControl } from './vm-connection.ts';

const POLL_MS = 100;
const GIVE_UP_DEADLINE_MS = 60_000;

export interface RunOptions {
  readonly wait: 'protected' | 'started' | 'none';
  readonly timeoutMs: number;
  readonly foreground: boolean;
  /** Begin anew though a shadow on another host may have what is lost here. */
  readonly anew: boolean;
}

/** Starts a VM and waits until it is as far as asked for. An interruption until then takes it back. */
export async function run(specPath: string, options: RunOptions, out: Output): Promise<number> {
  const { spec, text } = readVmSpec(specPath);
  using interruption = new Interruption();
  out.progress(`starting ${spec.name}`);
  const keeper = startKeeper(text, { vm: spec.name, source: resolve(specPath), anew: options.anew });
  const patience = new StartPatience(spec.name, { clock, timeoutMs: options.timeoutMs });
  const onWait = (what: string) => {
    out.progress(what);
    patience.begin(what);
  };
  try {
    const started = keeper.started(onWait);
    // It may fail while nobody waits for it any more.
    started.catch(() => {});
    await interruption.orInterrupted(Promise.race([started, patience.over]));
  } catch (thrown) {
    if (interruption.signal.aborted || isLate(thrown)) {
      await keeper.giveUp({ deadlineMs: GIVE_UP_DEADLINE_MS, clock });
      await RunDirectory.sweep(spec.name, { clock });
    }
    throw await ofShadow(thrown, spec.name);
  } finally {
    patience.end();
  }
  using control = await openControl(spec.name);
  // Without a shadow there is nothing to wait for.
  const goal = spec.shadow.enabled || options.wait === 'none' ? options.wait : 'started';
  try {
    const wait = new StartWait({ control, out, clock, vm: spec.name });
    const status = await wait.until(goal, { timeoutMs: options.timeoutMs, signal: interruption.signal });
    if (!options.foreground) {
      out.result(status, () => statusText(status));
      keeper.release();
      return EXIT_CODES.ok.code;
    }
  } catch (thrown) {
    if (interruption.signal.aborted) await control.stop({ graceful: false });
    keeper.release();
    throw thrown;
  }
  return await stayWith(keeper, { vm: spec.name, interruption, out });
}

/** How long a start may wait for others: for etcd, or for the right of another host to end. */
class StartPatience {
  readonly over: Promise<never>;
  readonly #late = Promise.withResolvers<never>();
  readonly #vm: string;
  readonly #options: { readonly clock: Clock; readonly timeoutMs: number };
  #cancel: (() => void) | undefined;

  constructor(vm: string, options: { readonly clock: Clock; readonly timeoutMs: number }) {
    this.#vm = vm;
    this.#options = options;
    this.over = this.#late.promise;
    this.over.catch(() => {});
  }

  /** Counts from the first thing that is waited for. */
  begin(what: string): void {
    const { clock, timeoutMs } = this.#options;
    this.#cancel ??= clock.after(timeoutMs, () =>
      this.#late.reject(
        new CliError('CLI_WAIT_TIMEOUT', `${this.#vm} has not started after ${timeoutMs / 1000} s: ${what}`, {
          hint: 'The start was taken back. Try again later, or give it more time with --timeout.',
          facts: { vm: this.#vm },
        }),
      ),
    );
  }

  end(): void {
    this.#cancel?.();
  }
}

function isLate(thrown: unknown): boolean {
  return thrown instanceof CliError && thrown.code === 'CLI_WAIT_TIMEOUT';
}

/** A name that is taken by a shadow is that of a VM elsewhere: nobody is to choose another one, or to stop it. */
async function ofShadow(thrown: unknown, vm: string): Promise<unknown> {
  if (!(thrown instanceof KeeperError) || thrown.code !== 'KEEPER_NAME_TAKEN') return thrown;
  const host = await actingHost(vm);
  if (host === undefined) return thrown;
  return new KeeperError('KEEPER_IS_SHADOW', `${vm} acts on ${host}, and this host keeps its shadow`, {
    hint: `\`understudy migrate ${vm}\` on ${host} moves it here.`,
    facts: { vm, host },
    cause: thrown,
  });
}

/** Not from the specification's own path, which may be a pipe that has been read, or hold something else by now. */
function startKeeper(
  text: string,
  { vm, source, anew }: { vm: string; source: string; anew: boolean },
): KeeperProcess {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-run-'));
  try {
    const path = join(folder, `${vm}.yaml`);
    writeFileSync(path, text);
    return new KeeperProcess(path, { vm, source, wishes: { anew } });
  } finally {
    // The keeper has it open.
    rmSync(folder, { recursive: true });
  }
}

/** Shows events until the VM ends. Ctrl-C stops it as `understudy stop` does, a second one at once. */
async function stayWith(
  keeper: KeeperProcess,
  { vm, interruption, out }: { vm: string; interruption: Interruption; out: Output },
): Promise<number> {
  const stop = async (graceful: boolean) => {
    using control = await openControl(vm);
    // There is no host that would keep its state.
    await control.stop({ graceful, termination: 'remove' });
  };
  const ignoreEnded = (thrown: unknown) => {
    // It may end by itself while it is told to.
    if (!(thrown instanceof KeeperError)) throw thrown;
  };
  interruption.signal.addEventListener('abort', () => {
    out.progress('stopping; press Ctrl-C again to stop at once');
    stop(true).catch(ignoreEnded);
  });
  interruption.onSecond(() => stop(false).catch(ignoreEnded));
  using control = await openControl(vm);
  try {
    for await (const event of control.events({ since: 0, follow: true }))
      out.result(event, () => eventText(event));
  } catch (thrown) {
    ignoreEnded(thrown);
  }
  const code = await keeper.exited;
  if (code === 0) return EXIT_CODES.ok.code;
  throw new KeeperError('KEEPER_LOST', code === null ? `the keeper of ${vm} was killed` : `${vm} failed`, {
    hint: `\`understudy events ${vm}\` shows what happened, \`understudy stop ${vm}\` clears it away.`,
    facts: { vm, keeperExitCode: code },
  });
}

interface StartWaitOptions {
  readonly control: ControlClient;
  readonly out: Output;
  readonly clock: Clock;
  readonly vm: string;
}

/** Watches a VM on its way to be protected. */
class StartWait {
  readonly #options: StartWaitOptions;
  #seenSeq = 0;
  #trouble: string | undefined;

  constructor(options: StartWaitOptions) {
    this.#options = options;
  }

  /** @throws CLI_WAIT_TIMEOUT, KEEPER_START_FAILED, the signal's reason */
  async until(
    goal: RunOptions['wait'],
    { timeoutMs, signal }: { timeoutMs: number; signal: AbortSignal },
  ): Promise<VmStatus> {
    const { control, clock, vm } = this.#options;
    const endMs = clock.nowMs() + timeoutMs;
    for (;;) {
      signal.throwIfAborted();
      const status = await control.status();
      await this.#tell(status);
      if (status.phase === 'stopping' || status.phase === 'stopped') throw this.#failed(status);
      if (goal === 'none' || status.phase === 'protected') return status;
      if (goal === 'started' && status.phase !== 'starting') return status;
      if (clock.nowMs() > endMs) {
        throw new CliError('CLI_WAIT_TIMEOUT', `${vm} runs but is not ${goal} after ${timeoutMs / 1000} s`, {
          hint: `${this.#trouble ?? `See \`understudy events ${vm}\`.`} It goes on trying; \`understudy stop ${vm}\` ends it.`,
          facts: { vm, phase: status.phase },
        });
      }
      await clock.sleep(POLL_MS);
    }
  }

  async #tell({ phase, shadow }: VmStatus): Promise<void> {
    const { control, out, vm } = this.#options;
    for await (const { seq, kind, facts } of control.events({ since: this.#seenSeq, follow: false })) {
      this.#seenSeq = seq;
      if (kind === 'qemu-started') out.progress(`QEMU for the ${facts.role} runs (process ${facts.pid})`);
      if (kind !== 'shadow-failed') continue;
      this.#trouble = `The shadow could not be made: ${facts.error}.`;
      out.progress(`the shadow could not be made: ${facts.error}; trying again`);
    }
    if (phase === 'syncing' && shadow !== null) {
      const share = Math.floor(100 * shadow.copiedShare);
      out.progress(`copying the memory of ${vm} to its shadow`, `${share} %`);
    }
  }

  #failed({ stopReason }: VmStatus): KeeperError {
    const { vm } = this.#options;
    return new KeeperError('KEEPER_START_FAILED', `${vm} ended while it started (${stopReason})`, {
      hint: `See \`understudy events ${vm}\`.`,
      facts: { vm, stopReason },
    });
  }
}
