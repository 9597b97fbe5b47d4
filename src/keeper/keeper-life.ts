import { systemClock } from '../base/clock.ts';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { ControlServer } from '../control/control-server.ts';
import { writeEnd } from '../control/keeper-end.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { bootId } from '../control/process-identity.ts';
import type { RunDirectory } from '../control/run-directory.ts';
import type { StartError } from '../control/start-outcome.ts';
import type { StopReason } from '../shadow/protection.ts';
import type { Keeper } from './keeper.ts';
import type { VmEnd } from './vm-ending.ts';

export const EXIT_FAILED = 1;
const EXIT_FAULT = 70;
const EMERGENCY_DEADLINE_MS = 15_000;

const clock = systemClock;

/** Before there is a keeper they end its start. */
export class StopSignals {
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

  /** Nobody has used a VM yet that was given up while it started, unless it has `acted` before, elsewhere. */
  direct(keeper: Keeper, { acted = false } = {}): void {
    this.#keeper = keeper;
    if (this.#received > 0) keeper.stop({ graceful: acted }).catch(() => {});
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
    this.#keeper
      ?.stop({ graceful })
      .catch(() => this.#keeper?.stop({ graceful, termination: 'remove' }))
      // It has ended all the same, and how is in the log.
      .catch(() => {});
  }
}

let hasFault = false;

/** Reports faults of this process, and ends its VM for them. */
export function stopOnFaults(signals: StopSignals, directory: RunDirectory, log: Logger): void {
  for (const event of ['uncaughtException', 'unhandledRejection'] as const)
    process.on(event, (fault: unknown) => void stopAfterFault(fault, { signals, directory, log }));
}

/** Serves the control socket until the VM has ended, and tells the host how that came. */
export async function liveOut(
  keeper: Keeper,
  { directory, log, onReady }: { directory: RunDirectory; log: Logger; onReady: () => void },
): Promise<VmEnd> {
  await using _control = await listen(keeper, directory, log);
  onReady();
  const end = await keeper.finished;
  log.info('keeper ends', { ...end });
  return end;
}

interface KeeperEnding {
  readonly reason: StopReason;
  /** The host that acts now. */
  readonly host: string | undefined;
  readonly directory: RunDirectory;
  readonly log: Logger;
}

/** Before the directory goes: a host that finds neither would take the VM for one that was taken away. */
export function leaveEnd(path: string, { reason, host, directory, log }: KeeperEnding): void {
  try {
    writeEnd(path, { bootId: bootId(), reason, token: directory.token, ...(host !== undefined && { host }) });
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
async function stopAfterFault(
  fault: unknown,
  { signals, directory, log }: { signals: StopSignals; directory: RunDirectory; log: Logger },
): Promise<void> {
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

/** What kept a keeper from starting, for whoever waits for it. */
export function startError(thrown: unknown): StartError {
  if (thrown instanceof UnderstudyError)
    return { ...thrown.toJSON(), code: thrown.code, message: thrown.message };
  const stack = thrown instanceof Error ? thrown.stack : undefined;
  return { code: 'KEEPER_INTERNAL', message: messageOf(thrown), stack };
}
