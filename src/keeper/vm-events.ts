import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import type { RunDirectory } from '../control/run-directory.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import { BoundedLog } from '../qemu/bounded-log.ts';
import type { QmpEvent } from '../qemu/qmp-events.ts';
import { EventJournal, HeldEvents } from './event-journal.ts';

interface VmEventsOptions {
  readonly vm: string;
  readonly runDirectory: RunDirectory;
  readonly clock: Clock;
  readonly log: Logger;
  /** Something the guest did that is committed, or that nobody protects it from. */
  readonly onGuestEvent: (event: QmpEvent) => void;
}

/** What happens to one VM: told to those who listen, written to its file and to the log; and what has to wait first. */
export class VmEvents implements Disposable {
  readonly journal: EventJournal;
  readonly held: HeldEvents<QmpEvent>;
  readonly #file: BoundedLog;
  readonly #log: Logger;
  #token: number;

  constructor({ vm, runDirectory, clock, log, onGuestEvent }: VmEventsOptions) {
    this.#log = log;
    this.#token = runDirectory.token;
    this.#file = new BoundedLog(runDirectory.eventsPath);
    const write = (line: string) => this.#file.append(line);
    this.journal = new EventJournal({ vm, wallMs: () => clock.wallMs(), write });
    this.held = new HeldEvents(onGuestEvent);
  }

  /** Grows each time that another QEMU of this VM begins to act, over all of its keepers. */
  get token(): number {
    return this.#token;
  }

  /** To be on record before that QEMU does anything. */
  nextToken(): void {
    this.#token += 1;
  }

  publish(kind: string, epoch: EpochId, facts: Readonly<Record<string, unknown>>): void {
    this.#log.info(kind, { epoch, token: this.#token, ...facts });
    this.journal.publish(kind, { epoch, token: this.#token, facts });
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}
