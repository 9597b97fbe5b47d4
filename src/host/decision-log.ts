import type { AgentDecision } from '../allocation/vm-agent.ts';
import type { Clock } from '../base/clock.ts';
import type { AllocationMode } from '../config/allocation-schema.ts';
import type { SetOutcome } from './limit-setter.ts';

/** The kind of the events that tell of decisions. */
export const DECISION_KIND = 'allocation';
const FAILURE_KIND = 'allocation-failed';
/** The same decision again within this time is counted, not told: a VM that gets nothing asks each second. */
const QUIET_MS = 60_000;
/** And within this one if it came to nothing: events are kept for a year, and are many enough. */
const QUIET_IN_VAIN_MS = 3_600_000;

export interface NotedDecision {
  readonly vm: string;
  readonly mode: AllocationMode;
  readonly decision: AgentDecision;
  /** What the pool granted; undefined where it was not asked. */
  readonly granted: number | undefined;
}

interface DecisionLogOptions {
  readonly clock: Clock;
  readonly publish: (kind: string, vm: string, facts: Readonly<Record<string, unknown>>) => void;
}

/** Tells of decisions about allocations as events, with the forecast and the demand that they were made from. */
export class DecisionLog {
  readonly #options: DecisionLogOptions;
  readonly #quiet = new Map<string, { untilMs: number; times: number }>();

  constructor(options: DecisionLogOptions) {
    this.#options = options;
  }

  /** The VM is gone. */
  forget(vm: string): void {
    for (const key of [...this.#quiet.keys()]) if (key.startsWith(`${vm} `)) this.#quiet.delete(key);
  }

  /** What was decided could not be carried out, or nobody answered. */
  noteFailure({ vm, resource, wanted, inForce, problem }: SetOutcome): void {
    if (this.#isQuiet([vm, resource, 'failed'].join(' '), QUIET_IN_VAIN_MS)) return;
    this.#options.publish(FAILURE_KIND, vm, { resource, wanted, inForce, ...problem });
  }

  note({ vm, mode, decision, granted }: NotedDecision): void {
    const { resource, effect, demand, peak, allocated, reserved, isAnomalous } = decision;
    const { kind, reason } = effect;
    // Another answer is news.
    const key = [vm, resource, kind, reason, granted === 0].join(' ');
    const before = this.#quiet.get(key)?.times ?? 0;
    if (this.#isQuiet(key, granted === 0 ? QUIET_IN_VAIN_MS : QUIET_MS)) return;
    const stated = peak?.levels.map((level, index) => [level, peak.values[index]]);
    this.#options.publish(DECISION_KIND, vm, {
      ...{ resource, mode, decision: kind, reason },
      ...('to' in effect && { to: effect.to }),
      ...('amount' in effect && { amount: effect.amount }),
      ...(granted !== undefined && { granted }),
      ...{ allocated, reserved, used: demand.used, pressureShare: demand.pressureShare },
      ...(stated !== undefined && { peak: Object.fromEntries(stated) }),
      ...(isAnomalous && { isAnomalous }),
      ...(before > 0 && { timesBefore: before }),
    });
  }

  /** Counts what was told a short while ago, and need not be told again. */
  #isQuiet(key: string, quietMs: number): boolean {
    const nowMs = this.#options.clock.nowMs();
    const quiet = this.#quiet.get(key);
    if (quiet !== undefined && nowMs < quiet.untilMs) {
      quiet.times += 1;
      return true;
    }
    this.#quiet.set(key, { untilMs: nowMs + quietMs, times: 0 });
    return false;
  }
}
