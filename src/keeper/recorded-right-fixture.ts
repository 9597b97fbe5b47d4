import type { Clock } from '../base/clock.ts';
import { LeaseError } from '../lease/lease-error.ts';
import type { LeaseRecord, StoredLease, SwapOutcome } from '../lease/lease-record.ts';
import type { LeaseStore, LeaseWrite } from '../lease/lease-store.ts';

export const TTL_MS = 10_000;

/** Time goes on by itself, to whatever comes next, when nothing else is left to be done. */
export class QuickTime {
  #nowMs = 0;
  readonly #timers = new Map<symbol, { atMs: number; task: () => void }>();
  #isTurning = false;
  readonly clock: Clock = {
    nowMs: () => this.#nowMs,
    wallMs: () => this.#nowMs,
    after: (ms, task) => {
      const key = Symbol('timer');
      this.#timers.set(key, { atMs: this.#nowMs + ms, task });
      this.#turn();
      return () => void this.#timers.delete(key);
    },
    sleep: async (ms) => {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.clock.after(ms, resolve);
      await promise;
    },
  };

  #turn(): void {
    if (this.#isTurning) return;
    this.#isTurning = true;
    setImmediate(() => {
      this.#isTurning = false;
      const [next] = [...this.#timers].toSorted(([, one], [, other]) => one.atMs - other.atMs);
      if (next === undefined) return;
      const [key, { atMs, task }] = next;
      this.#timers.delete(key);
      this.#nowMs = atMs;
      task();
      if (this.#timers.size > 0) this.#turn();
    });
  }
}

/** What happens to one call: it is answered, never leaves, its answer is lost, or it arrives later. */
export type Fate = 'answered' | 'unasked' | 'unanswered' | 'late';

/** A store as etcd is seen over a network that loses things. */
export class Store {
  readonly #clock: Clock;
  record: LeaseRecord | undefined;
  revision = 0;
  /** Nothing is answered. */
  isAway = false;
  /** This host hears nothing of it. */
  isDeafTo: string | undefined;
  #heldUntilMs = 0;
  #holdRevision = 0;
  /** Records in the order in which they were written. */
  readonly history: LeaseRecord[] = [];
  fates: Fate[] = [];
  /** A write that did not arrive when it was sent. */
  #late: LeaseWrite | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  async read(): Promise<StoredLease> {
    const fate = this.#nextFate();
    if (fate !== 'answered') throw new LeaseError('LEASE_STORE_AWAY', 'no answer');
    return this.#stored();
  }

  async swap(_vm: string, write: LeaseWrite): Promise<SwapOutcome> {
    switch (this.#nextFate()) {
      case 'answered':
        return this.#carryOut(write)
          ? { kind: 'swapped', revision: this.revision }
          : { kind: 'lost', stored: this.#stored() };
      case 'unanswered':
        this.#carryOut(write);
        return { kind: 'unknown' };
      case 'late':
        this.#late = write;
        return { kind: 'unknown' };
      case 'unasked':
        return { kind: 'unreachable' };
    }
  }

  async renew(_vm: string, { token }: { token: number }): Promise<'renewed' | 'refused'> {
    if (this.isAway) throw new LeaseError('LEASE_STORE_AWAY', 'no answer');
    if (this.record?.token !== token || !this.#stored().isHeld) return 'refused';
    this.#hold();
    return 'renewed';
  }

  /** As one host sees it. */
  seenBy(host: string): LeaseStore {
    const reached = async <Answer>(call: () => Promise<Answer>): Promise<Answer> => {
      if (this.isDeafTo === host) throw new LeaseError('LEASE_STORE_AWAY', 'no answer');
      return await call();
    };
    return {
      read: () => reached(() => this.read()),
      swap: (vm, write) => reached(() => this.swap(vm, write)),
      renew: (vm, renewal) => reached(() => this.renew(vm, renewal)),
      watch: () => ({ [Symbol.dispose]: () => {} }),
      [Symbol.asyncDispose]: async () => {},
    };
  }

  get isHeld(): boolean {
    return this.#held().isHeld;
  }

  /** With the next call arrives what is late. */
  #nextFate(): Fate {
    if (this.#late !== undefined) this.#carryOut(this.#late);
    this.#late = undefined;
    if (this.isAway) return 'unasked';
    return this.fates.shift() ?? 'answered';
  }

  #carryOut({ expectedRevision, record, onlyIfUnheld }: LeaseWrite): boolean {
    if (expectedRevision !== this.revision || (onlyIfUnheld && this.#stored().isHeld)) return false;
    this.revision += 1;
    this.record = record;
    this.history.push(record);
    if (record.mode === 'alone') this.#hold();
    else this.#heldUntilMs = 0;
    return true;
  }

  #hold(): void {
    this.#holdRevision += 1;
    this.#heldUntilMs = this.#clock.nowMs() + TTL_MS;
  }

  #held() {
    const isHeld = this.#clock.nowMs() < this.#heldUntilMs;
    return { isHeld, ...(isHeld && { holdRevision: this.#holdRevision }) };
  }

  #stored(): StoredLease {
    return { record: this.record, revision: this.revision, ...this.#held() };
  }
}
