import type { Resource } from '../allocation/resource.ts';
import type { Clock } from '../base/clock.ts';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import {
  BYTES_PER_SECOND_MIN,
  CPU_MILLICORES_MIN,
  type LimitsOrder,
  type LimitsStatus,
} from '../control/limits-status.ts';

/** What holds is looked at again this often: a keeper that was replaced may have lost it. */
const RENEW_EVERY_MS = 60_000;
/** After an order that came to nothing the next one waits for so long. */
const RETRY_MS = 5000;

/** What a resource is to be limited to; null: as much as there is. */
export type Wanted = Readonly<Partial<Record<Resource, number | null>>>;

/** What came of an order about one resource. */
export interface SetOutcome {
  readonly vm: string;
  readonly resource: Resource;
  readonly wanted: number | null;
  /** As it was read back; undefined where nobody answered. */
  readonly inForce: number | null | undefined;
  readonly problem: { readonly code: string; readonly message: string } | undefined;
}

export interface LimitSetterOptions {
  readonly clock: Clock;
  /** Asks the VM's keeper. Rejects where it does not answer. */
  readonly order: (vm: string, order: LimitsOrder) => Promise<LimitsStatus>;
  /** Told of what could not be set. */
  readonly onFailure: (outcome: SetOutcome) => void;
}

interface Held {
  wanted: Wanted;
  /** JSON of what was carried out last; undefined: nothing yet, or not all of it. */
  done: string | undefined;
  askedAtMs: number;
  failed: boolean;
  busy: boolean;
}

/** Has keepers carry out what agents decide: one order at a time for each VM, always the newest, each read back. */
export class LimitSetter {
  readonly #options: LimitSetterOptions;
  readonly #held = new Map<string, Held>();
  readonly #working = new Set<Promise<void>>();

  constructor(options: LimitSetterOptions) {
    this.#options = options;
  }

  /** What shall hold for a VM from now on. To be called again and again: it is looked at whether it still does. */
  want(vm: string, wanted: Wanted): void {
    const held = this.#held.get(vm) ?? {
      ...{ wanted, done: undefined, askedAtMs: Number.NEGATIVE_INFINITY },
      ...{ failed: false, busy: false },
    };
    held.wanted = wanted;
    this.#held.set(vm, held);
    this.#pursue(vm, held);
  }

  /** All that was set is taken back: the VM has its static limits again. */
  release(vm: string): void {
    const held = this.#held.get(vm);
    if (held === undefined) return;
    const names = Object.keys(held.wanted) as Resource[];
    this.want(vm, Object.fromEntries(names.map((name) => [name, null])));
  }

  /** The VM is gone. */
  forget(vm: string): void {
    this.#held.delete(vm);
  }

  /** Resolves when no order is under way. */
  async settled(): Promise<void> {
    while (this.#working.size > 0) await Promise.all(this.#working);
  }

  #pursue(vm: string, held: Held): void {
    const wish = JSON.stringify(held.wanted);
    const sinceMs = this.#options.clock.nowMs() - held.askedAtMs;
    const isDone = held.done === wish && sinceMs < RENEW_EVERY_MS;
    if (held.busy || isDone || (held.failed && sinceMs < RETRY_MS)) return;
    held.busy = true;
    held.askedAtMs = this.#options.clock.nowMs();
    const working = this.#carryOut(vm, held).finally(() => {
      held.busy = false;
      this.#working.delete(working);
      // What is wanted may be something else by now.
      if (this.#held.get(vm) === held && !held.failed && JSON.stringify(held.wanted) !== wish)
        this.#pursue(vm, held);
    });
    this.#working.add(working);
  }

  async #carryOut(vm: string, held: Held): Promise<void> {
    const { order, onFailure } = this.#options;
    const { wanted } = held;
    const entries = Object.entries(wanted) as [Resource, number | null][];
    try {
      const status = await order(
        vm,
        Object.fromEntries(entries.map(([name, to]) => [name, orderable(name, to)])),
      );
      const failures = entries.flatMap(([resource, to]) => {
        const { inForce, problem } = status[resource];
        return problem === undefined ? [] : [{ vm, resource, wanted: to, inForce, problem }];
      });
      held.failed = failures.length > 0;
      held.done = held.failed ? undefined : JSON.stringify(wanted);
      for (const failure of failures) onFailure(failure);
    } catch (thrown) {
      held.failed = true;
      held.done = undefined;
      const code = thrown instanceof UnderstudyError ? thrown.code : 'UNKNOWN';
      const problem = { code, message: messageOf(thrown) };
      for (const [resource, to] of entries)
        onFailure({ vm, resource, wanted: to, inForce: undefined, problem });
    }
  }
}

/** Keepers refuse what is too little to go on with. */
function orderable(resource: Resource, amount: number | null): number | null {
  if (amount === null || resource === 'memoryBytes') return amount;
  return Math.max(amount, resource === 'cpuMillicores' ? CPU_MILLICORES_MIN : BYTES_PER_SECOND_MIN);
}
