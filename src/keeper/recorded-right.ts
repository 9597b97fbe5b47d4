import type { Clock } from '../base/clock.ts';
import { errorFacts } from '../base/errors.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { Logger } from '../base/logger.ts';
import { LeaseError } from '../lease/lease-error.ts';
import {
  isSameRecord,
  isTakeable,
  type LeaseRecord,
  recordAlone,
  recordEnded,
  type StoredLease,
} from '../lease/lease-record.ts';
import type { LeaseStore } from '../lease/lease-store.ts';
import type { ActingRight, ShadowClaimant } from './acting-right.ts';
import { superseded } from './refusals.ts';

const RETRY_MS = 100;
const RETRY_MS_MAX = 2000;

export interface RightOptions {
  readonly store: LeaseStore;
  readonly vm: string;
  readonly host: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly failpoints: Failpoints;
}

type Change = (stored: StoredLease) => LeaseRecord | 'refused';

/**
 * The right to act as a VM, as it is written down in a store that all hosts share. Each change is a compare-and-swap of
 * what was read, and holds until the next one: no right of these ends by itself. As long as nobody answers, nothing is
 * known, and whoever asks waits.
 */
export class RecordedRight implements ActingRight {
  readonly #options: RightOptions;
  #token: number;

  private constructor(options: RightOptions, token: number) {
    this.#options = options;
    this.#token = token;
  }

  /**
   * A VM is started on this host. `fromScratch`: nothing of it is left here, so that a shadow that may take over has more.
   * `anew`: whatever a shadow may have, as a person knows better.
   * @throws KeeperError KEEPER_SUPERSEDED: another host acts as it, or is about to; the signal's reason
   */
  static async begin(
    options: RightOptions,
    { fromScratch, anew, signal }: { fromScratch: boolean; anew: boolean; signal?: AbortSignal | undefined },
  ): Promise<RecordedRight> {
    const { host, vm } = options;
    const mayBegin = ({ record }: StoredLease) => {
      if (anew || record === undefined || record.mode === 'ended') return true;
      return record.holder === host && !(fromScratch && record.mode === 'in-sync');
    };
    const change: Change = (stored) => (mayBegin(stored) ? recordAlone(stored, host) : 'refused');
    const { outcome, record } = await changeRecord(options, { change, signal });
    if (outcome === 'refused' || record === undefined)
      throw superseded(
        vm,
        (record?.holder === host ? record.shadow?.host : record?.holder) ?? 'another host',
      );
    return new RecordedRight(options, record.token);
  }

  /**
   * The shadow with this copy is to act. Undefined when it may not: the one that acts has gone on without it, or somebody
   * else has taken over.
   */
  static async takeOver(
    options: RightOptions,
    { copy }: Pick<ShadowClaimant, 'copy'>,
    signal?: AbortSignal,
  ): Promise<RecordedRight | undefined> {
    const { host: self } = options;
    const change: Change = (stored) =>
      isTakeable(stored.record, { self, copy }) ? recordAlone(stored, self) : 'refused';
    const { outcome, record } = await changeRecord(options, { change, signal });
    return outcome === 'swapped' && record !== undefined
      ? new RecordedRight(options, record.token)
      : undefined;
  }

  get token(): number {
    return this.#token;
  }

  async arm({ host, copy }: ShadowClaimant, signal?: AbortSignal): Promise<void> {
    const shadow = { host, copy, state: 'fresh' as const };
    const isArmed = await this.#change(
      ({ record }) => record && { ...record, mode: 'in-sync', shadow },
      signal,
    );
    if (!isArmed) throw superseded(this.#options.vm, 'another host, or this one without the shadow,');
  }

  async goAlone(signal?: AbortSignal): Promise<'granted' | 'superseded'> {
    const isGranted = await this.#change((stored) => recordAlone(stored, this.#options.host), signal);
    return isGranted ? 'granted' : 'superseded';
  }

  async yieldThenGoAlone(graceMs: number): Promise<'granted' | 'superseded'> {
    const { clock } = this.#options;
    const held = this.#token;
    let sinceMs: number | undefined;
    for (;;) {
      const record = await this.#look();
      if (record !== undefined) {
        if (record.holder !== this.#options.host || record.token !== held) return 'superseded';
        sinceMs ??= clock.nowMs();
        if (clock.nowMs() - sinceMs >= graceMs) return await this.goAlone();
      }
      await clock.sleep(RETRY_MS);
    }
  }

  async confirm(): Promise<void> {
    const { store, vm, host } = this.#options;
    const { record } = await store.read(vm);
    if (record?.holder !== host || record.token !== this.#token)
      throw superseded(vm, record?.holder ?? 'nobody');
  }

  async release(signal?: AbortSignal): Promise<void> {
    await this.#change(({ record }) => record && recordEnded(record), signal);
  }

  /** Undefined while nobody answers. */
  async #look(): Promise<LeaseRecord | undefined> {
    try {
      return (await this.#options.store.read(this.#options.vm)).record;
    } catch (cause) {
      if (cause instanceof LeaseError) return undefined;
      throw cause;
    }
  }

  /** False when the right has passed on to somebody else. */
  async #change(
    next: (stored: StoredLease) => LeaseRecord | undefined,
    signal?: AbortSignal,
  ): Promise<boolean> {
    const { host } = this.#options;
    // What it is when this is asked for: a change that comes late must not touch what another one has made of it since.
    const held = this.#token;
    const isOurs = ({ record }: StoredLease) => record?.holder === host && record.token === held;
    const change: Change = (stored) => (isOurs(stored) ? (next(stored) ?? 'refused') : 'refused');
    const { outcome, record } = await changeRecord(this.#options, { change, signal });
    if (outcome === 'swapped' && record !== undefined) this.#token = record.token;
    return outcome === 'swapped';
  }
}

interface Changed {
  readonly outcome: 'swapped' | 'refused';
  /** As it is on record now. */
  readonly record: LeaseRecord | undefined;
}

/**
 * A write without an answer may be carried out at any later moment, but only over the record that it was made for. So it
 * is repeated until an answer settles it: as long as that record stands the repetition says the same.
 */
async function changeRecord(
  { store, vm, clock, log, failpoints }: RightOptions,
  { change, signal }: { change: Change; signal: AbortSignal | undefined },
): Promise<Changed> {
  let retryMs = RETRY_MS;
  let doubtful: LeaseRecord | undefined;
  for (;;) {
    signal?.throwIfAborted();
    try {
      const stored = await store.read(vm);
      if (doubtful !== undefined && isSameRecord(stored.record, doubtful))
        return { outcome: 'swapped', record: doubtful };
      const record = change(stored);
      if (record === 'refused') return { outcome: 'refused', record: stored.record };
      await failpoints.hit('right.before-swap');
      const write = { expectedRevision: stored.revision, record, onlyIfUnheld: false };
      const outcome = await store.swap(vm, write);
      await failpoints.hit('right.after-swap');
      if (outcome.kind === 'swapped') return { outcome: 'swapped', record };
      if (outcome.kind === 'lost') {
        if (doubtful !== undefined && isSameRecord(outcome.stored.record, doubtful))
          return { outcome: 'swapped', record: doubtful };
        // Somebody was quicker, and nothing of ours can be carried out any more: what they wrote decides.
        doubtful = undefined;
        continue;
      }
      if (outcome.kind === 'unknown') doubtful = record;
      log.warn('it is not known who acts; asking again', { vm, outcome: outcome.kind, retryMs });
    } catch (cause) {
      if (!(cause instanceof LeaseError)) throw cause;
      log.warn('it is not known who acts; asking again', { vm, ...errorFacts(cause), retryMs });
    }
    await clock.sleep(retryMs, signal);
    retryMs = Math.min(retryMs * 2, RETRY_MS_MAX);
  }
}
