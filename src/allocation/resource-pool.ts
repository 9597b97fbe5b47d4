import { assert } from '../base/assert.ts';

/** Something lent comes back: its borrower has to be down to `left` before what it had is used by another one. */
export interface Recall {
  readonly borrower: string;
  readonly amount: number;
  readonly left: number;
}

/** At once, and maybe less than was asked for. Recalls come first: only then is the amount there. */
export interface Grant {
  readonly granted: number;
  readonly recalls: readonly Recall[];
}

/** What had to end because there is less than was given. */
export interface Squeeze {
  readonly dropped: readonly Reserved[];
  readonly recalls: readonly Recall[];
}

export interface Reserved {
  readonly vm: string;
  readonly amount: number;
}

/** What a VM has of the pool. */
export interface Holding {
  /** What it may use. */
  readonly allocated: number;
  /** Kept for it, to be handed over when it needs it. */
  readonly reserved: number;
  /** When the reservation is over: CLOCK_MONOTONIC, ms. */
  readonly untilMs: number;
}

const NOTHING: Holding = { allocated: 0, reserved: 0, untilMs: 0 };

/**
 * One resource of one host: what is allocated to VMs, reserved for them, and lent to others until it is needed. No I/O and no
 * waiting: every question is answered at once, from what is free. At all times
 *
 *   allocated + reserved ≤ capacity, and allocated + lent ≤ capacity
 *
 * but for VMs that had more than that when they were adopted. A loan uses what is reserved until its handover, and may be
 * recalled at any time.
 */
export class ResourcePool {
  readonly #holdings = new Map<string, Holding>();
  readonly #loans = new Map<string, number>();
  #capacity: number;
  #allocated = 0;
  #reserved = 0;
  #lent = 0;

  constructor({ capacity }: { readonly capacity: number }) {
    this.#capacity = amountOf(capacity);
  }

  get capacity(): number {
    return this.#capacity;
  }

  get allocated(): number {
    return this.#allocated;
  }

  get reserved(): number {
    return this.#reserved;
  }

  get lent(): number {
    return this.#lent;
  }

  /** Neither allocated nor reserved. Below zero where the capacity has shrunk under what was given. */
  get free(): number {
    return this.#capacity - this.#allocated - this.#reserved;
  }

  holding(vm: string): Holding {
    return this.#holdings.get(vm) ?? NOTHING;
  }

  /** Takes over what a VM has already, whether there is room or not: it runs. Reservations and loans make room. */
  adopt(vm: string, allocated: number): Squeeze {
    this.#set(vm, { ...this.holding(vm), allocated: amountOf(allocated) });
    return this.#squeeze();
  }

  /** More for a VM, from what is free: the normal path. */
  allocate(vm: string, amount: number): Grant {
    const granted = this.#grantable(amount);
    const holding = this.holding(vm);
    this.#set(vm, { ...holding, allocated: holding.allocated + granted });
    return { granted, recalls: this.#recall() };
  }

  /** Keeps `amount` more for a VM; all that is reserved for it lasts until `untilMs` then. */
  reserve(vm: string, { amount, untilMs }: { readonly amount: number; readonly untilMs: number }): Grant {
    const granted = this.#grantable(amount);
    const holding = this.holding(vm);
    const lastMs = holding.reserved === 0 ? untilMs : Math.max(holding.untilMs, untilMs);
    this.#set(vm, { ...holding, reserved: holding.reserved + granted, untilMs: lastMs });
    return { granted, recalls: [] };
  }

  /** From a VM's reservation to the VM. What it had lent of that is recalled. */
  handOver(vm: string, amount: number): Grant {
    const holding = this.holding(vm);
    const granted = Math.min(amountOf(amount), holding.reserved);
    this.#set(vm, {
      ...holding,
      allocated: holding.allocated + granted,
      reserved: holding.reserved - granted,
    });
    return { granted, recalls: this.#recall() };
  }

  /** A VM has `amount` of its reservation less. */
  release(vm: string, amount: number): number {
    const holding = this.holding(vm);
    const released = Math.min(amountOf(amount), holding.reserved);
    this.#set(vm, { ...holding, reserved: holding.reserved - released });
    return released;
  }

  /** A VM has come down to `to`. Call it when that is so, not when it is wished. */
  lower(vm: string, to: number): number {
    const holding = this.holding(vm);
    const lowered = Math.max(0, holding.allocated - amountOf(to));
    this.#set(vm, { ...holding, allocated: holding.allocated - lowered });
    return lowered;
  }

  /** The VM is gone: all that it had is free. */
  remove(vm: string): void {
    this.#set(vm, NOTHING);
  }

  /** Ends reservations that nobody has used in their time. */
  expire(nowMs: number): readonly Reserved[] {
    const expired = [...this.#holdings]
      .filter(([, { reserved, untilMs }]) => reserved > 0 && untilMs <= nowMs)
      .map(([vm, { reserved }]) => ({ vm, amount: reserved }));
    for (const { vm, amount } of expired) this.release(vm, amount);
    return expired;
  }

  /** Something that is not in use, until it is needed: from what is free, and from what is reserved for others. */
  lend(borrower: string, amount: number): number {
    const unused = Math.max(0, this.#capacity - this.#allocated - this.#lent);
    const granted = Math.min(amountOf(amount), unused);
    this.#setLoan(borrower, (this.#loans.get(borrower) ?? 0) + granted);
    return granted;
  }

  giveBack(borrower: string, amount: number): number {
    const lent = this.#loans.get(borrower) ?? 0;
    const returned = Math.min(amountOf(amount), lent);
    this.#setLoan(borrower, lent - returned);
    return returned;
  }

  /** The host has more or less of it. Nothing is taken from VMs; reservations and loans make room. */
  resize(capacity: number): Squeeze {
    this.#capacity = amountOf(capacity);
    return this.#squeeze();
  }

  #squeeze(): Squeeze {
    const dropped: Reserved[] = [];
    // What would have lasted longest is the furthest ahead, and the least certain.
    for (const [vm, { reserved }] of [...this.#holdings].sort(([, a], [, b]) => b.untilMs - a.untilMs)) {
      const amount = Math.min(reserved, Math.max(0, -this.free));
      if (amount > 0) dropped.push({ vm, amount: this.release(vm, amount) });
    }
    return { dropped, recalls: this.#recall() };
  }

  #grantable(amount: number): number {
    return Math.max(0, Math.min(amountOf(amount), this.free));
  }

  /** As much of the loans as does not fit beside what is allocated, from the largest one on. */
  #recall(): Recall[] {
    const recalls: Recall[] = [];
    for (const [borrower, lent] of [...this.#loans].sort(([, a], [, b]) => b - a)) {
      const amount = Math.min(lent, Math.max(0, this.#allocated + this.#lent - this.#capacity));
      if (amount === 0) continue;
      this.#setLoan(borrower, lent - amount);
      recalls.push({ borrower, amount, left: lent - amount });
    }
    return recalls;
  }

  #set(vm: string, holding: Holding): void {
    const before = this.holding(vm);
    this.#allocated += holding.allocated - before.allocated;
    this.#reserved += holding.reserved - before.reserved;
    if (holding.allocated === 0 && holding.reserved === 0) this.#holdings.delete(vm);
    else this.#holdings.set(vm, holding);
  }

  #setLoan(borrower: string, amount: number): void {
    this.#lent += amount - (this.#loans.get(borrower) ?? 0);
    if (amount === 0) this.#loans.delete(borrower);
    else this.#loans.set(borrower, amount);
  }
}

function amountOf(amount: number): number {
  assert(Number.isSafeInteger(amount) && amount >= 0, 'amounts are whole numbers, not below zero');
  return amount;
}
