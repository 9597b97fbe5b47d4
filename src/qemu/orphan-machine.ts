import type { Clock } from '../base/clock.ts';
import type { MachineStatus } from './machine.ts';
import { QemuError } from './qemu-error.ts';
import { QmpClient } from './qmp-client.ts';

export interface OrphanMachineOptions {
  readonly clock: Clock;
  /** How long to wait until it has noticed that its keeper's connection ended, and takes ours. */
  readonly deadlineMs: number;
  readonly commandDeadlineMs: number;
  readonly log: (line: string) => void;
  readonly signal: AbortSignal;
}

/** What the guest of an orphan was found to be: one that can be gone on from, or one that ended by itself. */
export type OrphanState = 'resumable' | 'powered-off';

/**
 * A QEMU whose keeper was killed: no child of ours, and its links have ended for good, as it connects to them only
 * once. All that is left is QMP, where QEMU listens again after a connection has ended. Good for one thing: to give its
 * device state away. All commands throw the QMP codes of {@link QemuError}.
 */
export class OrphanMachine implements Disposable {
  readonly qmp: QmpClient;

  /** The process must run: a QEMU that stands still takes the connection and says nothing. */
  static async connect(qmpPath: string, options: OrphanMachineOptions): Promise<OrphanMachine> {
    return new OrphanMachine(await QmpClient.connect(qmpPath, { ...options, afterAnother: true }));
  }

  private constructor(qmp: QmpClient) {
    this.qmp = qmp;
  }

  /**
   * Its guest stands still when this resolves. What the old keeper had asked for and QEMU had begun is finished then:
   * commands are carried out one after the other, and those that waited went with their connection.
   * @throws {QemuError} QEMU_NOT_RESUMABLE when there is nothing to go on from: the guest has never run, has panicked,
   * or QEMU was still waiting for its state
   */
  async standStill(): Promise<OrphanState> {
    await this.qmp.execute('stop');
    const { running, status } = await this.qmp.execute<MachineStatus>('query-status');
    if (!running && status === 'paused') return 'resumable';
    if (!running && status === 'shutdown') return 'powered-off';
    throw new QemuError('QEMU_NOT_RESUMABLE', `the guest of a lost keeper cannot go on: it is ${status}`, {
      hint: 'It is started cold. Nothing else is to be done.',
      facts: { status },
    });
  }

  /** See `Machine.saveDeviceState`. */
  async saveDeviceState(path: string): Promise<void> {
    await this.qmp.execute('xen-save-devices-state', { filename: path, live: false });
  }

  monitor(command: string): Promise<string> {
    return this.qmp.execute<string>('human-monitor-command', { 'command-line': command });
  }

  [Symbol.dispose](): void {
    this.qmp[Symbol.dispose]();
  }
}
