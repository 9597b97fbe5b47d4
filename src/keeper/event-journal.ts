import type { VmEvent } from '../control/vm-event.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import type { EpochParticipant } from '../epoch/participant.ts';

const EVENTS_MAX = 4096;

export interface EventContent {
  readonly epoch: EpochId;
  readonly token: number;
  readonly facts?: Readonly<Record<string, unknown>>;
}

/** The last events of one VM, with listeners for those to come. */
export class EventJournal {
  readonly #vm: string;
  readonly #wallMs: () => number;
  readonly #write: (line: string) => void;
  readonly #events: VmEvent[] = [];
  readonly #listeners = new Set<(event: VmEvent) => void>();
  #seq = 0;

  constructor({ vm, wallMs, write }: { vm: string; wallMs: () => number; write: (line: string) => void }) {
    this.#vm = vm;
    this.#wallMs = wallMs;
    this.#write = write;
  }

  publish(kind: string, { epoch, token, facts = {} }: EventContent): void {
    this.#seq += 1;
    const event: VmEvent = {
      seq: this.#seq,
      time: new Date(this.#wallMs()).toISOString(),
      vm: this.#vm,
      kind,
      token,
      epoch,
      facts,
    };
    this.#events.push(event);
    if (this.#events.length > EVENTS_MAX) this.#events.shift();
    this.#write(`${JSON.stringify(event)}\n`);
    for (const listener of this.#listeners) listener(event);
  }

  /** Events after number `seq`, oldest first; those that fell out of the journal are gone. */
  since(seq: number): readonly VmEvent[] {
    return this.#events.filter((event) => event.seq > seq);
  }

  onEvent(listener: (event: VmEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}

/**
 * Events that the guest caused (it powered off, it rebooted) are output: nobody may hear of them before the
 * epoch in which they happened is committed, for after a failover they may never have happened.
 */
export class HeldEvents<Event> implements EpochParticipant {
  readonly #publish: (event: Event) => void;
  #holding = false;
  #open: Event[] = [];
  readonly #sealed = new Map<EpochId, Event[]>();

  constructor(publish: (event: Event) => void) {
    this.#publish = publish;
  }

  add(event: Event): void {
    if (this.#holding) this.#open.push(event);
    else this.#publish(event);
  }

  hold(): void {
    this.#holding = true;
  }

  /** Nobody could take over: what was held is known now, and later events at once. */
  pass(): void {
    this.#holding = false;
    const held = [...this.#sealed.values(), this.#open].flat();
    this.#sealed.clear();
    this.#open = [];
    for (const event of held) this.#publish(event);
  }

  /** After a failover whatever was not committed never happened. */
  forget(): void {
    this.#sealed.clear();
    this.#open = [];
  }

  seal(epoch: EpochId): void {
    this.#sealed.set(epoch, this.#open);
    this.#open = [];
  }

  commit(epoch: EpochId): void {
    const events = this.#sealed.get(epoch) ?? [];
    this.#sealed.delete(epoch);
    for (const event of events) this.#publish(event);
  }

  abort(epoch: EpochId): void {
    this.#open = [...(this.#sealed.get(epoch) ?? []), ...this.#open];
    this.#sealed.delete(epoch);
  }
}
