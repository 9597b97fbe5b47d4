import { randomUUID } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { errorFacts } from '../base/errors.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { Logger } from '../base/logger.ts';
import type { ActingRecord, ActingRecords } from '../lease/acting-records.ts';
import { LeaseError } from '../lease/lease-error.ts';
import type { ActingRight, ShadowClaimant } from './acting-right.ts';
import { superseded } from './refusals.ts';

const RETRY_MS = 100;
const RETRY_MS_MAX = 2000;

export interface RightOptions {
  readonly records: ActingRecords;
  readonly vm: string;
  readonly host: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly failpoints: Failpoints;
}

type Change = (found: ActingRecord | undefined) => ActingRecord | 'refused';

/**
 * The right to act as a VM, as it is written down in a store that all hosts share. Each change is a compare-and-swap of
 * what was read; one whose answer is lost is looked up, by the name that this keeper writes into what it holds. As long as
 * nobody answers, nothing is known, and whoever asks waits.
 */
export class RecordedRight implements ActingRight {
  readonly #options: RightOptions;
  readonly #owner: string;
  #token: number;

  private constructor(options: RightOptions, held: ActingRecord) {
    this.#options = options;
    this.#owner = held.owner ?? '';
    this.#token = held.token;
  }

  /** A VM is started on this host. @throws KeeperError KEEPER_SUPERSEDED: another host acts as it; the signal's reason */
  static async begin(options: RightOptions, signal?: AbortSignal): Promise<RecordedRight> {
    const { host, vm } = options;
    const owner = randomUUID();
    const change: Change = (found) =>
      found === undefined || found.mode === 'released' || found.holder === host
        ? { token: (found?.token ?? 0) + 1, holder: host, owner, mode: 'alone', shadow: null }
        : 'refused';
    const { outcome, record } = await changeRecord(options, { change, owner, signal });
    if (outcome === 'refused' || record === undefined) throw superseded(vm, record?.holder ?? 'another host');
    return new RecordedRight(options, record);
  }

  /**
   * The shadow of this connection is to act. Undefined when it may not: the one that acts has gone on without it, or
   * somebody else has taken over.
   */
  static async takeOver(
    options: RightOptions,
    { session }: Pick<ShadowClaimant, 'session'>,
    signal?: AbortSignal,
  ): Promise<RecordedRight | undefined> {
    const { host } = options;
    const owner = randomUUID();
    const change: Change = (found) =>
      found?.mode === 'in-sync' && found.shadow?.session === session
        ? { token: found.token + 1, holder: host, owner, mode: 'alone', shadow: null }
        : 'refused';
    const { outcome, record } = await changeRecord(options, { change, owner, signal });
    return outcome === 'swapped' && record !== undefined ? new RecordedRight(options, record) : undefined;
  }

  get token(): number {
    return this.#token;
  }

  async arm(shadow: ShadowClaimant, signal?: AbortSignal): Promise<void> {
    await this.#change((held) => ({ ...held, mode: 'in-sync', shadow }), signal);
  }

  async goAlone(signal?: AbortSignal): Promise<'granted' | 'superseded'> {
    const next = (held: ActingRecord): ActingRecord => ({
      ...held,
      ...{ token: held.token + 1, mode: 'alone', shadow: null },
    });
    return (await this.#change(next, signal)) ? 'granted' : 'superseded';
  }

  async release(): Promise<void> {
    await this.#change((held) => ({ ...held, mode: 'released', owner: null, shadow: null }));
  }

  /** False when the right has passed on to somebody else. */
  async #change(next: (held: ActingRecord) => ActingRecord, signal?: AbortSignal): Promise<boolean> {
    const owner = this.#owner;
    const change: Change = (found) => (found?.owner === owner ? next(found) : 'refused');
    const { outcome, record } = await changeRecord(this.#options, { change, owner, signal });
    if (outcome === 'swapped' && record !== undefined) this.#token = record.token;
    return outcome === 'swapped';
  }
}

interface ChangeOptions {
  readonly change: Change;
  /** Marks what this keeper has written. */
  readonly owner: string;
  readonly signal: AbortSignal | undefined;
}

interface Changed {
  readonly outcome: 'swapped' | 'refused';
  /** As it is on record now. */
  readonly record: ActingRecord | undefined;
}

async function changeRecord(
  { records, vm, clock, log, failpoints }: RightOptions,
  { change, signal }: ChangeOptions,
): Promise<Changed> {
  let retryMs = RETRY_MS;
  /** What may have been written without our hearing of it. */
  let doubtful: ActingRecord | undefined;
  for (;;) {
    signal?.throwIfAborted();
    try {
      const found = await records.read(vm);
      if (doubtful !== undefined && isSame(found?.record, doubtful))
        return { outcome: 'swapped', record: doubtful };
      const next = change(found?.record);
      if (next === 'refused') return { outcome: 'refused', record: found?.record };
      doubtful = next;
      await failpoints.hit('right.before-swap');
      const swapped = await records.swap(vm, { revision: found?.revision, record: next });
      await failpoints.hit('right.after-swap');
      if (swapped) return { outcome: 'swapped', record: next };
      // Somebody was quicker: what they wrote decides.
      doubtful = undefined;
    } catch (cause) {
      if (!(cause instanceof LeaseError)) throw cause;
      log.warn('nobody says who acts; asking again', { vm, ...errorFacts(cause), retryMs });
      await clock.sleep(retryMs);
      retryMs = Math.min(retryMs * 2, RETRY_MS_MAX);
    }
  }
}

/** Every change has another token, mode or shadow than the one before it, and each keeper another name. */
function isSame(found: ActingRecord | undefined, written: ActingRecord): boolean {
  return (
    found !== undefined &&
    found.token === written.token &&
    found.mode === written.mode &&
    found.owner === written.owner &&
    found.shadow?.session === written.shadow?.session
  );
}
