import { createConnection, type Socket } from 'node:net';
import type { HindranceWatch } from './answer-deadline.ts';
import { QemuError } from './qemu-error.ts';
import { type LaunchOptions, lastLines, QemuProcess } from './qemu-process.ts';
import { type ConnectOptions, type ExecuteOptions, QmpClient } from './qmp-client.ts';
import type { QmpEvent } from './qmp-events.ts';

const START_DEADLINE_MS = 30_000;
const LOAD_DEADLINE_MS = 10_000;
const QUIT_DEADLINE_MS = 10_000;
const ROUTINE = { routine: true } as const;
const GUEST_EVENTS: readonly string[] = ['GUEST_PANICKED', 'SHUTDOWN', 'RESET'];

export interface StartOptions extends Omit<ConnectOptions, 'deadlineMs' | 'log' | 'hindrance'> {
  readonly launch: Omit<LaunchOptions, 'clock'>;
  readonly qmpPath: string;
  readonly deadlineMs?: number;
  readonly qmpLog?: (line: string) => void;
  /** What may keep this process from answering. */
  readonly hindranceOf?: (pid: number) => HindranceWatch;
}

/** On whose behalf something is done; see base/trace.ts. */
type Traced = Pick<ExecuteOptions, 'trace'>;

export interface MachineStatus {
  readonly running: boolean;
  /** QEMU's RunState: running, paused, prelaunch, inmigrate, guest-panicked, shutdown, … */
  readonly status: string;
}

/** A stop and a save of device state that left together; QEMU does them in this order. */
export interface StopAndSave {
  /** The guest stands still. */
  readonly stopped: Promise<void>;
  /** The file holds the whole device state. */
  readonly saved: Promise<void>;
}

/** One QEMU machine: its process, and what can be asked of it. All commands throw the QMP codes of {@link QemuError}. */
export class Machine implements AsyncDisposable {
  readonly process: QemuProcess;
  readonly qmp: QmpClient;
  #incomingPath: string | undefined;
  #stoppedWallMs: number | undefined;
  #standstillMs: number | undefined;
  /** By name: twice the same says no more than once. */
  readonly #untold = new Map<string, QmpEvent>();
  #guestListener: ((event: QmpEvent) => void) | undefined;

  /**
   * Starts QEMU and speaks with it. The guest does not run yet.
   * @throws {QemuError} QEMU_START_FAILED with QEMU's own words, QEMU_MISSING, QEMU_USER_UNKNOWN; the signal's reason
   */
  static async start(options: StartOptions): Promise<Machine> {
    const { launch, qmpPath, clock, qmpLog, commandDeadlineMs, deadlineMs = START_DEADLINE_MS } = options;
    const { hindranceOf } = options;
    options.signal?.throwIfAborted();
    const process = await QemuProcess.launch({ ...launch, clock });
    const ended = new AbortController();
    void process.exited.then(() => ended.abort());
    // With the process everything ends that waits for it, also for what QEMU would say by itself.
    const giveUp = () => process.signal('SIGKILL');
    options.signal?.addEventListener('abort', giveUp, { once: true });
    try {
      options.signal?.throwIfAborted();
      const qmp = await QmpClient.connect(qmpPath, {
        deadlineMs,
        clock,
        signal: ended.signal,
        ...(commandDeadlineMs === undefined ? {} : { commandDeadlineMs }),
        ...(qmpLog === undefined ? {} : { log: qmpLog }),
        ...(hindranceOf === undefined ? {} : { hindrance: hindranceOf(process.pid) }),
      });
      return new Machine(process, qmp);
    } catch (cause) {
      const failure = options.signal?.aborted ? options.signal.reason : await process.startFailure(cause);
      await process[Symbol.asyncDispose]();
      throw failure;
    } finally {
      options.signal?.removeEventListener('abort', giveUp);
    }
  }

  private constructor(process: QemuProcess, qmp: QmpClient) {
    this.process = process;
    this.qmp = qmp;
    qmp.onEvent((event) => {
      const { name, wallMs } = event;
      if (name === 'STOP') this.#stoppedWallMs = wallMs;
      if (name === 'RESUME' && this.#stoppedWallMs !== undefined)
        this.#standstillMs = wallMs - this.#stoppedWallMs;
      if (!GUEST_EVENTS.includes(name)) return;
      if (this.#guestListener === undefined) this.#untold.set(name, event);
      else this.#guestListener(event);
    });
  }

  /**
   * How long the guest stood still between the last `stop` and `cont`, as QEMU says: however late we learn of it.
   * Undefined before the first time. By the host's wall clock: wrong when that was set meanwhile.
   */
  get standstillMs(): number | undefined {
    return this.#standstillMs;
  }

  /**
   * Tells the one listener what the guest does by itself: GUEST_PANICKED, SHUTDOWN, RESET. A guest may do so in the moment
   * in which it goes on, before anybody can know that it does: that is told now.
   */
  onGuestEvent(listener: (event: QmpEvent) => void): void {
    this.#guestListener = listener;
    const untold = [...this.#untold.values()];
    this.#untold.clear();
    for (const event of untold) listener(event);
  }

  async status({
    trace,
    deadlineMs,
  }: Pick<ExecuteOptions, 'trace' | 'deadlineMs'> = {}): Promise<MachineStatus> {
    const options = { trace, ...(deadlineMs !== undefined && { deadlineMs }) };
    const { running, status } = await this.qmp.execute<MachineStatus>('query-status', undefined, options);
    return { running, status };
  }

  /** Does nothing but wake QEMU's threads, so that a command right after it is answered without delay. */
  async wake(): Promise<void> {
    await this.qmp.execute('query-name', undefined, ROUTINE);
  }

  /** The guest stands still when it resolves. */
  async stop(): Promise<void> {
    await this.qmp.execute('stop', undefined, ROUTINE);
  }

  /** `trace` names the request that it is part of; then it is in the QMP log, unlike that of an epoch. */
  async cont({ trace }: Traced = {}): Promise<void> {
    await this.qmp.execute('cont', undefined, trace === undefined ? ROUTINE : { trace });
  }

  /**
   * Saves the state of all devices, without RAM, to a file. Despite its name the command is no matter of Xen.
   * `live` must be false: else QEMU gives its disks away, as it believes that it is being migrated.
   */
  async saveDeviceState(path: string): Promise<void> {
    await this.qmp.execute('xen-save-devices-state', { filename: path, live: false }, ROUTINE);
  }

  /** The heart of a cut: one write, no wait between the two commands. */
  stopAndSave(path: string): StopAndSave {
    const both = this.qmp.batch(() => ({ stopped: this.stop(), saved: this.saveDeviceState(path) }));
    // Who waits for the first only must not meet the second as an unhandled rejection.
    both.stopped.catch(() => {});
    both.saved.catch(() => {});
    return both;
  }

  /** A standby listens for device state on a unix socket from now on. */
  async beginIncoming(path: string): Promise<void> {
    await Promise.all(
      this.qmp.batch(() => [
        this.qmp.execute('migrate-set-capabilities', {
          capabilities: [{ capability: 'events', state: true }],
        }),
        this.qmp.execute('migrate-incoming', { uri: `unix:${path}` }),
      ]),
    );
    this.#incomingPath = path;
  }

  /**
   * Gives a standby its device state; afterwards it is paused and `cont` goes on where the state was saved.
   * @throws {QemuError} QEMU_LOAD_FAILED with QEMU's own words; QEMU has ended itself then
   */
  async loadDeviceState(
    state: Uint8Array,
    { deadlineMs = LOAD_DEADLINE_MS, trace }: Traced & { readonly deadlineMs?: number } = {},
  ): Promise<void> {
    const path = this.#incomingPath;
    if (path === undefined)
      throw new QemuError('QEMU_LOAD_FAILED', 'beginIncoming comes before loadDeviceState');
    this.#incomingPath = undefined;
    const socket = createConnection(path);
    try {
      const end = this.#migrationEnd(socket, deadlineMs);
      socket.end(state);
      if ((await end) === 'failed') {
        // QEMU ends itself now, after a last word.
        await this.process.drained();
        throw new Error('the migration failed');
      }
      const { status } = await this.status({ trace });
      if (status === 'inmigrate') throw new Error('QEMU still waits for device state');
    } catch (cause) {
      throw await this.#loadFailure(cause);
    } finally {
      socket.destroy();
    }
  }

  /** QEMU tells the network, by itself and a few times over, where the guest's addresses live now. */
  async announceSelf({ trace }: Traced = {}): Promise<void> {
    await this.qmp.execute('announce-self', { initial: 50, max: 550, rounds: 5, step: 100 }, { trace });
  }

  async reset(): Promise<void> {
    await this.qmp.execute('system_reset');
  }

  /** Presses the power button; whether the guest powers off is up to the guest. */
  async powerdown({ trace }: Traced = {}): Promise<void> {
    await this.qmp.execute('system_powerdown', undefined, { trace });
  }

  /** Ends QEMU in an orderly way, or with SIGKILL where it has not ended after `deadlineMs`. */
  async quit({ deadlineMs = QUIT_DEADLINE_MS } = {}): Promise<void> {
    await this.qmp.execute('quit').catch((error: unknown) => {
      // QEMU may be gone before its answer is read.
      if (!(error instanceof QemuError) || error.code !== 'QMP_DISCONNECTED') throw error;
    });
    if ((await this.process.awaitExit(deadlineMs)) === undefined) await this.process.kill();
  }

  /** A command of the human monitor, for what QMP does not tell. */
  async monitor(command: string): Promise<string> {
    return this.qmp.execute<string>('human-monitor-command', { 'command-line': command });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.qmp[Symbol.dispose]();
    await this.process[Symbol.asyncDispose]();
  }

  /** How the incoming migration ends. The event comes last, after the change of the run state. */
  #migrationEnd(socket: Socket, deadlineMs: number): Promise<'completed' | 'failed'> {
    const { promise, resolve, reject } = Promise.withResolvers<'completed' | 'failed'>();
    socket.once('error', reject);
    // Once connected, QEMU may hang up before it has read everything: how the load went is told by QMP.
    socket.once('connect', () => socket.off('error', reject).on('error', () => {}));
    const forget = [
      this.qmp.afterUnhindered(deadlineMs, () => reject(new Error(`nothing after ${deadlineMs} ms`))),
      this.qmp.onClosed(reject),
      this.qmp.on('MIGRATION', ({ status }) => {
        if (status === 'completed' || status === 'failed') resolve(status);
      }),
    ];
    if (this.qmp.closed !== undefined) reject(this.qmp.closed);
    return promise.finally(() => {
      for (const undo of forget) undo();
    });
  }

  async #loadFailure(cause: unknown): Promise<QemuError> {
    // QEMU ends itself on a bad stream; its last words arrive after the end of the connection.
    if (this.qmp.closed !== undefined) await this.process.drained();
    const words = lastLines(this.process.outputTail);
    const why = words === '' ? (cause as Error).message : words;
    return new QemuError('QEMU_LOAD_FAILED', `the device state was not loaded: ${why}`, {
      hint: 'State loads only into a QEMU of the same version, started with the same arguments.',
      facts: { pid: this.process.pid, output: words },
      cause,
    });
  }
}
