import { systemClock as clock } from '../../src/base/clock.ts';
import type { StoredLease, SwapOutcome } from '../../src/lease/lease-record.ts';
import type { LeaseStore } from '../../src/lease/lease-store.ts';
import { record } from './lease-store-contract.ts';

interface Timed {
  readonly beganMs: number;
  readonly endedMs: number;
}

/** A write, and what its writer was told. */
export interface Attempt extends Timed {
  readonly holder: string;
  readonly token: number;
  readonly expectedRevision: number;
  readonly outcome: SwapOutcome;
}

export interface Reading extends Timed {
  readonly stored: StoredLease;
}

export interface History {
  readonly attempts: readonly Attempt[];
  readonly readings: readonly Reading[];
  readonly final: StoredLease;
}

/** Takes token after token, and writes down what it did and saw. */
export class TokenWriter {
  readonly #holder: string;
  readonly #open: () => LeaseStore;
  readonly #attempts: Attempt[];
  readonly #readings: Reading[];

  constructor(options: { holder: string; open: () => LeaseStore; attempts: Attempt[]; readings: Reading[] }) {
    this.#holder = options.holder;
    this.#open = options.open;
    this.#attempts = options.attempts;
    this.#readings = options.readings;
  }

  async run(over: AbortSignal): Promise<void> {
    await using store = this.#open();
    while (!over.aborted) {
      const beganMs = clock.nowMs();
      const stored = await store.read('vm').catch(() => undefined);
      if (stored === undefined) continue;
      this.#readings.push({ stored, beganMs, endedMs: clock.nowMs() });
      await this.#attempt(store, stored);
      // Others get their turn.
      await clock.sleep(5);
    }
  }

  async #attempt(store: LeaseStore, stored: StoredLease): Promise<void> {
    const token = (stored.record?.token ?? 0) + 1;
    const holder = this.#holder;
    const expectedRevision = stored.revision;
    const beganMs = clock.nowMs();
    const written = record(token, { holder, mode: 'in-sync' });
    const outcome = await store.swap('vm', { expectedRevision, record: written, onlyIfUnheld: false });
    this.#attempts.push({ holder, token, expectedRevision, outcome, beganMs, endedMs: clock.nowMs() });
  }
}

/**
 * What a single record that is changed by compare-and-swap could not have shown. Every write names the one that it
 * follows, so the order of writes is known, and only its agreement with time and readings has to be looked at.
 */
export function faultsOf({ attempts, readings, final }: History): string[] {
  const faults: string[] = [];
  const done = attempts.flatMap((attempt) =>
    attempt.outcome.kind === 'swapped' ? [{ ...attempt, revision: attempt.outcome.revision }] : [],
  );
  const perToken = Map.groupBy(done, ({ token }) => token);
  for (const [token, winners] of perToken) {
    const names = winners.map(({ holder }) => holder).join(', ');
    if (winners.length > 1) faults.push(`token ${token} was given to ${names}`);
  }
  const perExpected = Map.groupBy(done, ({ expectedRevision }) => expectedRevision);
  for (const [revision, followers] of perExpected)
    if (followers.length > 1) faults.push(`revision ${revision} was followed ${followers.length} times`);
  const all = [
    ...readings,
    { stored: final, beganMs: Number.POSITIVE_INFINITY, endedMs: Number.POSITIVE_INFINITY },
  ];
  for (const reading of all) {
    const { stored } = reading;
    const missed = done.find((write) => write.endedMs < reading.beganMs && write.revision > stored.revision);
    if (missed !== undefined)
      faults.push(`a reading at revision ${stored.revision} missed token ${missed.token}`);
    const early = done.find((write) => write.beganMs > reading.endedMs && write.revision <= stored.revision);
    if (early !== undefined)
      faults.push(`a reading at revision ${stored.revision} saw token ${early.token} early`);
    const author = done.find((write) => write.revision === stored.revision);
    if (author !== undefined && author.token !== stored.record?.token)
      faults.push(
        `revision ${stored.revision} is token ${stored.record?.token}, written was ${author.token}`,
      );
    if (author === undefined && stored.record !== undefined && !wasWritten(attempts, stored))
      faults.push(`token ${stored.record.token} of ${stored.record.holder} came out of thin air`);
  }
  return [...faults, ...backwards(all)];
}

function wasWritten(attempts: readonly Attempt[], { record: seen }: StoredLease): boolean {
  return attempts.some(
    ({ outcome, holder, token }) =>
      outcome.kind !== 'unreachable' && holder === seen?.holder && token === seen.token,
  );
}

function backwards(readings: readonly Reading[]): string[] {
  const byRevision = readings.toSorted((one, other) => one.stored.revision - other.stored.revision);
  let latest: Reading | undefined;
  const faults: string[] = [];
  // Of two readings, the one with the lower revision must not have begun after the other had ended.
  for (const reading of byRevision.toReversed()) {
    if (
      latest !== undefined &&
      latest.stored.revision > reading.stored.revision &&
      reading.beganMs > latest.endedMs
    )
      faults.push(`revision ${reading.stored.revision} was read after ${latest.stored.revision}`);
    if (latest === undefined || reading.endedMs < latest.endedMs) latest = reading;
  }
  return faults;
}
