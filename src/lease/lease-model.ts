import { assert } from '../base/assert.ts';
import { stepLease } from './lease-decision.ts';
import type { LeaseRecord, StoredLease, SwapOutcome } from './lease-record.ts';
import {
  heardForMs,
  heirLease,
  initialLease,
  type LeaseEffect,
  type LeaseFact,
  type LeasePolicy,
  type LeaseState,
  mayAcknowledge,
  outputRight,
} from './lease-state.ts';

/**
 * A world of two hosts and a store, for the search in lease-model.test.ts. Messages are delivered in any order or never;
 * hosts crash, are stopped and go on; clocks run at different rates; detectors of lost peers say what they like.
 *
 * Times are local and relative: it is always NOW, and what was written down grows older. So states repeat.
 */
export const NOW_MS = 1000;
/** One tick of the store is two of a host whose clock keeps up, one of a host whose clock is as slow as allowed. */
export const TTL_TICKS = 3;
export const MODEL_POLICY: LeasePolicy = {
  holdTtlMs: TTL_TICKS * 2,
  clockRateBound: 0.5,
  slackMs: 0,
  renewEveryMs: 1,
};
/** A shadow lets its primary be silent for so long at least: two ticks of the store for the fastest of clocks. */
export const SILENCE_MIN_MS = 6;
export const HEARD_UNTIL_MS = NOW_MS + heardForMs(SILENCE_MIN_MS, MODEL_POLICY);
const OLDEST_MS = NOW_MS - 2 * MODEL_POLICY.holdTtlMs;
export const NAMES = ['A', 'B'] as const;

/** One run of the VM on one QEMU. */
export interface Run {
  readonly line: number;
  /** The epoch that runs now. */
  readonly open: number;
  readonly acknowledged: number;
  readonly copy: number | undefined;
  /** The highest epoch that a shadow ever acknowledged, whether that was heard or not. */
  readonly known: number;
  /**
   * Its right went to another host: what it may still release are epochs up to this one, which that host has. They are
   * repetitions, or frames that were long on their way. -1: nothing at all.
   */
  readonly cap: number | undefined;
  /** Up to which it has released, where it is looked at whether it does so after another one acts. */
  readonly left: number;
}

export interface Copy {
  readonly id: number;
  readonly line: number;
  readonly epoch: number;
}

/** The state of a VM that was suspended, on the disk of a host: it outlives its crashes. */
export interface Saved {
  readonly line: number;
  readonly epoch: number;
  /** What its header says. */
  readonly token: number;
}

export interface Host {
  readonly lease: LeaseState;
  readonly condition: 'up' | 'paused' | 'down';
  readonly run: Run | undefined;
  readonly copy: Copy | undefined;
  readonly saved: Saved | undefined;
  readonly gate: 'nothing' | 'acknowledged' | 'everything';
  /** As shadow: when it heard its primary last. Undefined: it tells a loss, rightly or wrongly, whenever it likes. */
  readonly heardMs: number | undefined;
}

export type Message =
  /** `from` is -1 when whoever sent it has crashed since. */
  | {
      readonly kind: 'swap';
      readonly from: number;
      readonly expectedRevision: number;
      readonly record: LeaseRecord;
      readonly onlyIfUnheld: boolean;
      /** The store has seen it once, and will see it again. */
      readonly isEcho?: boolean;
    }
  | { readonly kind: 'renew'; readonly from: number; readonly token: number; readonly sentAtMs: number }
  | { readonly kind: 'read'; readonly from: number }
  | { readonly kind: 'answer'; readonly to: number; readonly fact: LeaseFact }
  | {
      readonly kind: 'epoch';
      readonly to: number;
      readonly copy: number;
      readonly epoch: number;
      readonly token: number;
    }
  /** A shadow has let its copy go. */
  | { readonly kind: 'dismissal'; readonly to: number; readonly copy: number }
  | { readonly kind: 'ack'; readonly to: number; readonly copy: number; readonly epoch: number };

/** How much may go wrong, and how much may happen, on one path. */
export interface Budget {
  readonly ticks: number;
  readonly alarms: number;
  readonly unanswered: number;
  readonly unreachable: number;
  readonly duplicates: number;
  readonly crashes: number;
  readonly pauses: number;
  readonly cuts: number;
  readonly copies: number;
  readonly proofs: number;
  readonly ends: number;
  /** VMs whose state is written to disk. */
  readonly suspensions: number;
  /** Shadows that are let go. */
  readonly dismissals: number;
  /** Heartbeats that are heard, and the word of that. */
  readonly heartbeats: number;
  /** Keepers that are killed and followed by another one on the same host, which finds the VM standing still. */
  readonly heirs: number;
}

export interface World {
  readonly hosts: readonly [Host, Host];
  readonly record: LeaseRecord | undefined;
  readonly revision: number;
  readonly holdTicks: number;
  readonly wire: readonly Message[];
  /** The run that acts, as an omniscient observer sees it, and how far its output has left. */
  readonly line: number;
  readonly released: number;
  /** Copies up to this one have been declared stale. */
  readonly staleCopy: number;
  readonly copies: number;
  /** Somebody wants the VM, though it had ended. */
  readonly isWanted: boolean;
  readonly budget: Budget;
}

/** The rules under test, so that a control can drop one. */
export interface Rules {
  readonly step: typeof stepLease;
  readonly outputRight: typeof outputRight;
  readonly mayAcknowledge: typeof mayAcknowledge;
  /** Whether a shadow may say that it hears its primary. */
  readonly mayVouch: (lease: LeaseState) => boolean;
  /** Whether a host goes on from the state that lies there. */
  readonly isNewest: (lease: LeaseState, saved: Saved) => boolean;
  /** How far a host's clock goes in one tick of the store. */
  readonly rates: readonly [number, number];
}

export const RULES: Rules = {
  ...{ step: stepLease, outputRight, mayAcknowledge, rates: [2, 2] },
  isNewest: ({ suspended }, { token }) => suspended === token,
  mayVouch: ({ phase, isPeerLost }) => phase === 'shadow' && !isPeerLost,
};

export class Violation extends Error {}

/** Works on a copy of a world, and notices what must not happen. */
export class Player {
  #world: World;
  readonly #rules: Rules;

  constructor(world: World, rules: Rules) {
    this.#world = world;
    this.#rules = rules;
  }

  get world(): World {
    return this.#world;
  }

  tell(index: number, fact: LeaseFact): void {
    const host = this.host(index);
    assert(host.condition === 'up', 'only a host that runs hears anything');
    const { next, effects } = this.#rules.step(host.lease, { ...fact, nowMs: NOW_MS }, MODEL_POLICY);
    this.setHost(index, { lease: next });
    // A person says that the other host is gone, with whatever it had.
    const { provenDeadToken = 0, pending } = host.lease;
    const isAnew = pending?.record.token === provenDeadToken + 1;
    for (const effect of effects) this.#carryOut(index, effect, isAnew);
  }

  get rules(): Rules {
    return this.#rules;
  }

  /** A heartbeat is heard, and the word of that, without a delay: each would make it good for a shorter time. */
  hearHeartbeat(index: number, copy: number): void {
    this.setHost(1 - index, { heardMs: NOW_MS });
    this.tell(index, { kind: 'shadow-heard', copy, untilMs: HEARD_UNTIL_MS });
  }

  renewHold(): void {
    this.change({ holdTicks: TTL_TICKS });
  }

  host(index: number): Host {
    const host = this.#world.hosts[index];
    assert(host !== undefined, 'there are two hosts');
    return host;
  }

  setHost(index: number, change: Partial<Host>): void {
    const [first, second] = this.#world.hosts;
    const hosts: [Host, Host] =
      index === 0 ? [{ ...first, ...change }, second] : [first, { ...second, ...change }];
    this.change({ hosts });
  }

  change(change: Partial<World>): void {
    this.#world = { ...this.#world, ...change };
  }

  spend(name: keyof Budget): void {
    const budget = this.#world.budget;
    this.change({ budget: { ...budget, [name]: budget[name] - 1 } });
  }

  send(message: Message): void {
    this.change({ wire: [...this.#world.wire, message] });
  }

  take(message: Message): void {
    this.change({ wire: this.#world.wire.filter((other) => other !== message) });
  }

  #carryOut(index: number, effect: LeaseEffect, isAnew: boolean): void {
    switch (effect.kind) {
      case 'read':
        this.send({ kind: 'read', from: index });
        return;
      case 'swap':
        this.send({ ...effect, from: index });
        return;
      case 'renew':
        this.send({ ...effect, from: index });
        return;
      case 'hold-output':
        this.setHost(index, { gate: 'nothing' });
        return;
      case 'release-acknowledged':
        this.setHost(index, { gate: 'acknowledged' });
        return;
      case 'release-everything':
        this.setHost(index, { gate: 'everything' });
        return;
      case 'promote':
        this.#promote(index);
        return;
      case 'start-cold':
        this.#start(index, isAnew);
        return;
      case 'stop-vm':
        this.setHost(index, { run: undefined });
        this.tell(index, { kind: 'vm-stopped' });
        return;
      case 'mark-stale':
        this.setHost(index, { copy: undefined });
        return;
      default:
        return;
    }
  }

  #promote(index: number): void {
    const { copy } = this.host(index);
    if (copy === undefined) throw new Violation(`${NAMES[index]} promotes a copy that it does not have`);
    const { line, released, staleCopy } = this.#world;
    this.#assertNoNewest(index, 'goes on from its copy');
    if (copy.id <= staleCopy) throw new Violation(`${NAMES[index]} promotes a stale copy`);
    if (copy.line !== line)
      throw new Violation(`${NAMES[index]} promotes a copy of a VM that does not act any more`);
    if (released > copy.epoch)
      throw new Violation(`the failover forgets output: ${released} left, ${copy.epoch} is known`);
    this.#begin(index, { cap: copy.epoch, open: copy.epoch + 1 });
  }

  /** Somebody wants the VM on a host where none of it runs: it goes on from the state that lies there, or boots. */
  #start(index: number, isAnew: boolean): void {
    const { saved, lease } = this.host(index);
    if (saved === undefined || !this.#rules.isNewest(lease, saved)) {
      if (!isAnew) this.#assertNoNewest(index, 'boots');
      this.#startCold(index);
      return;
    }
    const { line, released } = this.#world;
    if (saved.line !== line || released > saved.epoch)
      throw new Violation(`${NAMES[index]} goes on from the past: ${released} left of ${line}`);
    this.#begin(index, { cap: -1, open: saved.epoch + 1 });
  }

  #assertNoNewest(index: number, what: string): void {
    for (const other of [0, 1])
      if (this.host(other).saved?.line === this.#world.line)
        throw new Violation(`${NAMES[index]} ${what} though ${NAMES[other]} has the newest state`);
  }

  #startCold(index: number): void {
    for (const other of [0, 1]) {
      const { copy } = this.host(other);
      const { record, line } = this.#world;
      const isFresh = record?.shadow?.state === 'fresh' && record.mode === 'in-sync';
      if (isFresh && copy?.id === record.shadow?.copy && copy?.line === line)
        throw new Violation(`${NAMES[index]} boots anew though ${NAMES[other]} could go on`);
    }
    this.#begin(index, { cap: -1, open: 1 });
  }

  /** A new run acts, and all others are over. */
  #begin(index: number, { cap, open }: { cap: number; open: number }): void {
    const line = this.#world.line + 1;
    for (const other of [0, 1]) {
      const { run } = this.host(other);
      if (run !== undefined) this.setHost(other, { run: { ...run, cap: run.cap ?? cap } });
    }
    const run: Run = { line, open, acknowledged: 0, known: 0, copy: undefined, cap: undefined, left: 0 };
    this.setHost(index, { run, copy: undefined, saved: undefined });
    this.change({ line, released: open - 1 });
  }

  /** The store carries a write out, and says what it answers. */
  swap(message: Extract<Message, { kind: 'swap' }>): SwapOutcome {
    const { record, revision, staleCopy } = this.#world;
    const stored = this.stored();
    if (message.expectedRevision !== revision || (message.onlyIfUnheld && stored.isHeld))
      return { kind: 'lost', stored };
    const { token, holder, mode, shadow } = message.record;
    if (record?.mode === 'ended' && !this.#world.isWanted)
      throw new Violation(`${holder} starts what had ended`);
    const grows = token > (record?.token ?? 0);
    if (record !== undefined && (token < record.token || (holder !== record.holder && !grows)))
      throw new Violation(`token ${token} of ${holder} follows token ${record.token} of ${record.holder}`);
    if (record?.mode === 'in-sync' && record.holder !== holder) this.#depose(record.holder);
    const isStale = shadow?.state === 'stale' && shadow.copy > staleCopy;
    this.change({
      record: message.record,
      revision: revision + 1,
      holdTicks: mode === 'alone' ? TTL_TICKS : 0,
      staleCopy: isStale && shadow !== undefined ? shadow.copy : staleCopy,
    });
    return { kind: 'swapped', revision: revision + 1 };
  }

  /** A shadow has the right now. Whatever it acknowledged before it asked for it may still leave. */
  #depose(name: string): void {
    const index = name === NAMES[0] ? 0 : 1;
    const { run } = this.host(index);
    if (run !== undefined) this.setHost(index, { run: { ...run, cap: run.cap ?? run.known } });
  }

  stored(): StoredLease {
    const { record, revision, holdTicks } = this.#world;
    return { record, revision, isHeld: holdTicks > 0 };
  }

  passTime(): void {
    const { rates } = this.#rules;
    const wire = this.#world.wire.map((message) => older(message, rates));
    this.change({ wire, holdTicks: Math.max(0, this.#world.holdTicks - 1) });
    for (const index of [0, 1]) {
      const { lease, heardMs } = this.host(index);
      const byMs = rates[index] ?? 0;
      this.setHost(index, {
        lease: olderLease(lease, byMs),
        heardMs: heardMs === undefined ? undefined : aged(heardMs, byMs),
      });
    }
    for (const index of [0, 1]) if (this.host(index).condition === 'up') this.tell(index, { kind: 'tick' });
  }

  crash(index: number): void {
    const lease = initialLease(NAMES[index] ?? '', { mayStartCold: true });
    const nothing = { run: undefined, copy: undefined, heardMs: undefined } as const;
    this.setHost(index, { condition: 'down', lease, ...nothing, gate: 'nothing' });
    this.change({ wire: this.#withoutSender(index) });
  }

  /** Writes of whoever is gone may still arrive. */
  #withoutSender(index: number): Message[] {
    return this.#world.wire.flatMap((message): Message[] => {
      if ('to' in message) return message.to === index ? [] : [message];
      if (message.from !== index) return [message];
      return message.kind === 'swap' ? [{ ...message, from: -1 }] : [];
    });
  }

  /** The VM stands still, and the next keeper of this host knows nothing but that. */
  succeedKeeper(index: number): void {
    const { run } = this.host(index);
    assert(run !== undefined, 'there is something to inherit');
    const lease = heirLease(NAMES[index] ?? '', { mayStartCold: true });
    this.setHost(index, { lease, gate: 'nothing', run: { ...run, copy: undefined } });
    this.change({ wire: this.#withoutSender(index) });
  }

  /** Lets everything leave that may, and looks whether it may. */
  observe(): void {
    const acting: string[] = [];
    for (const index of [0, 1]) {
      const { condition, lease, run, gate } = this.host(index);
      if (condition !== 'up' || run === undefined) continue;
      const right = this.#rules.outputRight(lease, { nowMs: NOW_MS, policy: MODEL_POLICY });
      if (right === 'nothing') continue;
      if (gate !== right)
        throw new Violation(`${NAMES[index]} was told to release ${gate}, its right is ${right}`);
      acting.push(`${lease.token}`);
      this.#release(index, { run, right, isVouched: lease.heard?.copy === run.copy });
    }
    if (acting.length === 2 && acting[0] === acting[1])
      throw new Violation(`two hosts act under token ${acting[0]}`);
  }

  #release(index: number, { run, right, isVouched }: Releasing): void {
    const name = NAMES[index];
    const epoch = right === 'everything' ? run.open : run.acknowledged;
    if (isVouched && run.line !== this.#world.line && epoch > run.left)
      throw new Violation(`${name} releases epoch ${epoch} after another host has begun to act`);
    if (isVouched) this.setHost(index, { run: { ...run, left: Math.max(run.left, epoch) } });
    if (run.line === this.#world.line) this.change({ released: Math.max(this.#world.released, epoch) });
    if (run.cap === undefined) return;
    if (run.cap === -1 || right === 'everything')
      throw new Violation(`two act: ${name} may release ${right}, but another host has the right`);
    if (epoch > run.cap)
      throw new Violation(`${name} releases epoch ${epoch}, the host that has the right knows ${run.cap}`);
  }
}

interface Releasing {
  readonly run: Run;
  readonly right: 'acknowledged' | 'everything';
  /** By a shadow that hears this host, so that nothing at all may leave after that acts. */
  readonly isVouched: boolean;
}

function older(message: Message, rates: readonly [number, number]): Message {
  if (message.kind === 'renew')
    return { ...message, sentAtMs: aged(message.sentAtMs, rates[message.from] ?? 0) };
  if (message.kind !== 'answer' || message.fact.kind !== 'renewed') return message;
  const sentAtMs = aged(message.fact.sentAtMs, rates[message.to] ?? 0);
  return { ...message, fact: { ...message.fact, sentAtMs } };
}

function olderLease(lease: LeaseState, byMs: number): LeaseState {
  const { pending, heldSinceMs, renewalSentMs, heard } = lease;
  return {
    ...lease,
    heard: heard === undefined ? undefined : { ...heard, untilMs: aged(heard.untilMs, byMs) },
    heldSinceMs: heldSinceMs === undefined ? undefined : aged(heldSinceMs, byMs),
    renewalSentMs: aged(renewalSentMs, byMs),
    pending: pending === undefined ? undefined : { ...pending, sentAtMs: aged(pending.sentAtMs, byMs) },
  };
}

function aged(ms: number, byMs: number): number {
  return Math.max(OLDEST_MS, ms - byMs);
}
