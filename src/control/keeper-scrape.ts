import { InvariantViolation } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { ControlClient } from './control-client.ts';
import { controlSocketOf } from './run-directory.ts';
import type { VmMetrics } from './vm-metrics.ts';

/** By name of the VM; undefined where its keeper gave no answer that makes sense. */
export type KeeperFigures = ReadonlyMap<string, VmMetrics | undefined>;

/** For one keeper, from the first byte to the last: a healthy one takes a millisecond. */
const KEEPER_DEADLINE_MS = 1000;
/** After that no further keeper is asked, so that Prometheus, which waits ten seconds, gets what there is. */
const SCRAPE_DEADLINE_MS = 5000;
const CONCURRENT_MAX = 32;

export interface KeeperScrapeOptions {
  readonly clock: Clock;
  /** Asks one keeper; for tests. */
  readonly ask?: (vm: string) => Promise<VmMetrics>;
}

/** Asks keepers for what they measure. Those who ask while it is under way share the answer: their number costs nothing. */
export class KeeperScrape {
  readonly #clock: Clock;
  readonly #ask: (vm: string) => Promise<VmMetrics>;
  #running: Promise<KeeperFigures> | undefined;

  constructor({ clock, ask = (vm) => askKeeper(vm, clock) }: KeeperScrapeOptions) {
    this.#clock = clock;
    this.#ask = ask;
  }

  /** One keeper that hangs costs nobody else an answer. */
  take(names: readonly string[]): Promise<KeeperFigures> {
    this.#running ??= this.#askAll(names).finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  async #askAll(names: readonly string[]): Promise<KeeperFigures> {
    const figures = new Map<string, VmMetrics | undefined>(names.map((name) => [name, undefined]));
    const endMs = this.#clock.nowMs() + SCRAPE_DEADLINE_MS;
    const rest = names.values();
    const askSome = async () => {
      for (const name of rest) {
        if (this.#clock.nowMs() >= endMs) return;
        figures.set(name, await this.#ask(name).catch(ignoreFailure));
      }
    };
    await Promise.all(Array.from({ length: Math.min(CONCURRENT_MAX, names.length) }, askSome));
    return figures;
  }
}

/** Whatever is wrong with a keeper, its VM has no figures, and others have. */
function ignoreFailure(thrown: unknown): undefined {
  if (thrown instanceof InvariantViolation) throw thrown;
}

async function askKeeper(vm: string, clock: Clock): Promise<VmMetrics> {
  const endMs = clock.nowMs() + KEEPER_DEADLINE_MS;
  using control = await ControlClient.connect(controlSocketOf(vm), {
    vm,
    clock,
    connectDeadlineMs: KEEPER_DEADLINE_MS,
  });
  return await control.metrics({ deadlineMs: Math.max(1, endMs - clock.nowMs()) });
}
