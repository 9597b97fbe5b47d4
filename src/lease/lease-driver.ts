import { unreachable } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { errorFacts } from '../base/errors.ts';
import { stepLease } from './lease-decision.ts';
import {
  initialLease,
  type LeaseEffect,
  type LeaseFact,
  type LeasePolicy,
  type LeaseState,
  mayAcknowledge,
  outputRight,
  rightEndsMs,
} from './lease-state.ts';
import type { LeaseStore } from './lease-store.ts';

type StoreEffect = Extract<LeaseEffect, { kind: 'read' | 'swap' | 'renew' }>;
/** What has to be done to the VM. */
export type VmEffect = Exclude<LeaseEffect, StoreEffect>;

export interface LeaseDriverOptions {
  readonly vm: string;
  /** This host's name. */
  readonly self: string;
  readonly store: LeaseStore;
  readonly policy: LeasePolicy;
  readonly mayStartCold: boolean;
  /** What is known already; by default nothing. */
  readonly from?: LeaseState;
  readonly clock: Clock;
  /** CLOCK_BOOTTIME. */
  readonly bootTimeMs: () => number;
  readonly tickEveryMs: number;
  /** How often the record is read though nothing asks for it: so that a store that is away shows. */
  readonly probeEveryMs: number;
  /** Called in the order of the effects. Must not throw; reports back by `report`. */
  readonly carryOut: (effect: VmEffect) => void;
  /** After each fact, and what followed from it. Must not throw. */
  readonly onStep?: (fact: LeaseFact) => void;
  readonly log?: (message: string, facts: Record<string, unknown>) => void;
}

/** Carries out what the decision asks of the store, and hands on what it asks of the VM. Decides nothing. */
export class LeaseDriver implements AsyncDisposable {
  readonly #options: LeaseDriverOptions;
  readonly #watch: Disposable;
  readonly #calls = new Set<Promise<void>>();
  readonly #facts: LeaseFact[] = [];
  #state: LeaseState;
  #cancelTick = () => {};
  #probedMs: number;
  #isOver = false;

  constructor(options: LeaseDriverOptions) {
    this.#options = options;
    this.#state = options.from ?? initialLease(options.self, options);
    this.#probedMs = options.bootTimeMs();
    this.#watch = options.store.watch(options.vm, () => this.#probe());
    this.#tick();
  }

  get state(): LeaseState {
    return this.#state;
  }

  /** What may leave at this moment; to be asked for every release. */
  get outputRight(): ReturnType<typeof outputRight> {
    return this.#outputRight({ isConfirmed: false });
  }

  /** Nothing leaves only because the shadow may have taken over: it is to be heard again, or the record to be read. */
  get isInDoubt(): boolean {
    return this.outputRight === 'nothing' && this.#outputRight({ isConfirmed: true }) !== 'nothing';
  }

  /** Until this host has to stop unless it hears of a renewal; undefined where its right does not end by itself. */
  get endsInMs(): number | undefined {
    const { policy, bootTimeMs } = this.#options;
    const endsMs = rightEndsMs(this.#state, policy);
    return endsMs === undefined ? undefined : Math.max(0, endsMs - bootTimeMs());
  }

  mayAcknowledge(epoch: { readonly copy: number; readonly token: number }): boolean {
    return !this.#isOver && mayAcknowledge(this.#state, epoch);
  }

  /** What is reported while effects are carried out waits for the last of them. */
  report(fact: LeaseFact): void {
    this.#facts.push(fact);
    if (this.#facts.length > 1) return;
    for (let now = this.#facts[0]; now !== undefined; now = this.#facts[0]) {
      this.#step(now);
      this.#facts.shift();
    }
  }

  /** Lets go of the store. The record stays, and a hold ends by itself. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOver = true;
    this.#cancelTick();
    this.#watch[Symbol.dispose]();
    await Promise.all(this.#calls);
  }

  #outputRight({ isConfirmed }: { isConfirmed: boolean }): ReturnType<typeof outputRight> {
    const { policy, bootTimeMs } = this.#options;
    return this.#isOver ? 'nothing' : outputRight(this.#state, { nowMs: bootTimeMs(), policy, isConfirmed });
  }

  #step(fact: LeaseFact): void {
    if (this.#isOver) return;
    const { policy, bootTimeMs, carryOut, onStep } = this.#options;
    const { next, effects } = stepLease(this.#state, { ...fact, nowMs: bootTimeMs() }, policy);
    this.#state = next;
    for (const effect of effects) {
      if (effect.kind === 'read' || effect.kind === 'swap' || effect.kind === 'renew') this.#start(effect);
      else carryOut(effect);
    }
    onStep?.(fact);
  }

  #tick(): void {
    const { clock, tickEveryMs, probeEveryMs, bootTimeMs } = this.#options;
    this.#cancelTick = clock.after(tickEveryMs, () => {
      this.report({ kind: 'tick' });
      if (bootTimeMs() - this.#probedMs >= probeEveryMs) this.#probe();
      if (!this.#isOver) this.#tick();
    });
  }

  #probe(): void {
    if (!this.#isOver && !this.#state.isReading) this.#start({ kind: 'read' });
  }

  #start(effect: StoreEffect): void {
    const call = this.#call(effect).finally(() => this.#calls.delete(call));
    this.#calls.add(call);
  }

  async #call(effect: StoreEffect): Promise<void> {
    switch (effect.kind) {
      case 'read':
        return this.report(await this.#read());
      case 'swap':
        return this.report(await this.#swap(effect));
      case 'renew':
        return this.report(await this.#renew(effect));
      default:
        return unreachable(effect);
    }
  }

  async #read(): Promise<LeaseFact> {
    this.#probedMs = this.#options.bootTimeMs();
    try {
      return { kind: 'read', stored: await this.#options.store.read(this.#options.vm) };
    } catch (thrown) {
      this.#tell('the lease cannot be read', thrown);
      return { kind: 'read-failed' };
    }
  }

  async #swap(effect: Extract<StoreEffect, { kind: 'swap' }>): Promise<LeaseFact> {
    const { store, vm } = this.#options;
    const { expectedRevision } = effect;
    try {
      return { kind: 'swap-answered', expectedRevision, outcome: await store.swap(vm, effect) };
    } catch (thrown) {
      this.#tell('the lease cannot be written', thrown);
      // Whatever went wrong, it went wrong after something may have left.
      return { kind: 'swap-answered', expectedRevision, outcome: { kind: 'unknown' } };
    }
  }

  async #renew({ token, sentAtMs }: Extract<StoreEffect, { kind: 'renew' }>): Promise<LeaseFact> {
    const { store, vm } = this.#options;
    try {
      const answer = await store.renew(vm, { token });
      return answer === 'renewed' ? { kind: 'renewed', token, sentAtMs } : { kind: 'renewal-refused', token };
    } catch (thrown) {
      this.#tell('the lease cannot be renewed', thrown);
      return { kind: 'renewal-failed' };
    }
  }

  #tell(message: string, thrown: unknown): void {
    this.#options.log?.(message, { vm: this.#options.vm, ...errorFacts(thrown) });
  }
}
