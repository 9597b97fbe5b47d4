import type { Resource } from '../allocation/resource.ts';
import type { Clock } from '../base/clock.ts';
import { errorFacts, messageOf, UnderstudyError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
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
  readonly log: Logger;
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
  /** The order that came to nothing last. */
  failedWish: string | undefined;
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
      ...{ wanted: {}, done: undefined, askedAtMs: Number.NEGATIVE_INFINITY },
      ...{ failedWish: undefined, busy: false },
    };
    // What is not named any more is not limited any more.
    const gone = Object.keys(held.wanted).filter((name) => !Object.hasOwn(wanted, name));
    held.wanted = { ...Object.fromEntries(gone.map((name) => [name, null])), ...wanted };
    this.#held.set(vm, held);
    this.#pursue(vm, held);
  }

  /**
   * All that was set is taken back: the VM has its static limits again. True when that is so; until then to be called again and
   * again. `limited`: what may have been set before this process began.
   */
  release(vm: string, { limited = [] }: { readonly limited?: readonly Resource[] } = {}): boolean {
    const held = this.#held.get(vm);
    const names = new Set([...limited, ...(Object.keys(held?.wanted ?? {}) as Resource[])]);
    const free: Wanted = Object.fromEntries([...names].map((name) => [name, null]));
    if (names.size === 0) return true;
    if (held?.done !== undefined && held.done === JSON.stringify(free)) {
      this.#held.delete(vm);
      return true;
    }
    this.want(vm, free);
    return false;
  }

  /** The VM is gone. */
  forget(vm: string): void {
    this.#held.delete(vm);
  }

  /** Resolves when no order is under way, or after `withinMs`: a keeper may hang. */
  async settle(withinMs: number): Promise<void> {
    const deadline = new AbortController();
    const late = this.#options.clock.sleep(withinMs, deadline.signal).catch(() => {});
    await Promise.race([Promise.all(this.#working), late]);
    deadline.abort();
  }

  #pursue(vm: string, held: Held): void {
    const wish = JSON.stringify(held.wanted);
    const sinceMs = this.#options.clock.nowMs() - held.askedAtMs;
    const isDone = held.done === wish && sinceMs < RENEW_EVERY_MS;
    const isTooSoon = held.failedWish === wish && sinceMs < RETRY_MS;
    if (held.busy || isDone || isTooSoon) return;
    held.busy = true;
    held.askedAtMs = this.#options.clock.nowMs();
    const working = this.#carryOut(vm, held)
      .catch((thrown) =>
        this.#options.log.warn('limits: what could not be set was not told', errorFacts(thrown)),
      )
      .finally(() => {
        held.busy = false;
        this.#working.delete(working);
        // What is wanted may be something else by now.
        if (this.#held.get(vm) === held && JSON.stringify(held.wanted) !== wish) this.#pursue(vm, held);
      });
    this.#working.add(working);
  }

  async #carryOut(vm: string, held: Held): Promise<void> {
    const { order } = this.#options;
    const { wanted } = held;
    const wish = JSON.stringify(wanted);
    const entries = Object.entries(wanted) as [Resource, number | null][];
    const failures: SetOutcome[] = [];
    try {
      const status = await order(
        vm,
        Object.fromEntries(entries.map(([name, to]) => [name, orderable(name, to)])),
      );
      for (const [resource, to] of entries) {
        const { inForce, problem } = status[resource];
        // Where nothing can be limited, nothing is: that is what is wanted.
        const isFree = to === null && inForce === null;
        if (problem !== undefined && !isFree) failures.push({ vm, resource, wanted: to, inForce, problem });
      }
    } catch (thrown) {
      const code = thrown instanceof UnderstudyError ? thrown.code : 'UNKNOWN';
      const problem = { code, message: messageOf(thrown) };
      for (const [resource, to] of entries)
        failures.push({ vm, resource, wanted: to, inForce: undefined, problem });
    }
    held.failedWish = failures.length > 0 ? wish : undefined;
    held.done = failures.length > 0 ? undefined : wish;
    // Of a VM that is gone meanwhile there is nothing to tell.
    if (this.#held.get(vm) === held) for (const failure of failures) this.#options.onFailure(failure);
  }
}

/** Keepers refuse what is too little to go on with. */
function orderable(resource: Resource, amount: number | null): number | null {
  if (amount === null || resource === 'memoryBytes') return amount;
  return Math.max(amount, resource === 'cpuMillicores' ? CPU_MILLICORES_MIN : BYTES_PER_SECOND_MIN);
}
