import type { Clock } from '../base/clock.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { WorkPace } from '../base/work-pace.ts';
import { NO_EPOCH } from '../epoch/epoch-id.ts';
import type { Mapping } from '../linux/mapping.ts';
import { countPages, type PageRun } from '../memory/page-runs.ts';
import { copyWhileRunning } from '../replication/full-copy.ts';
import { differingRuns, makeSecret, PageHashes } from '../replication/page-hashes.ts';
import type { PageSender } from '../replication/page-sender.ts';
import type { PeerLink } from '../replication/peer-link.ts';
import { decodeHashes, encodeWords, MESSAGE, type PeerWords } from '../replication/peer-messages.ts';
import type { Instance } from './instance.ts';

/** Left for the first cut by the copy. */
const REST_PAGES_MAX = 1024;
/** The other host reads all of what it has meanwhile. */
const COMPARE_DEADLINE_MS = 300_000;
/** Of the time of this keeper's thread, through which all frames of its VM pass. */
const COMPARE_SHARE = 0.5;

/** How the memory of a shadow on another host came there. */
export interface Filled {
  /** `delta`: that host had older memory of the VM, and got only what differs. */
  readonly kind: 'full' | 'delta';
  /** Of pages that were sent, before they were packed. */
  readonly copiedBytes: number;
  /** Of pages that were there already. */
  readonly savedBytes: number;
}

export interface FillingOptions {
  readonly link: PeerLink;
  readonly pages: PageSender;
  readonly clock: Clock;
  readonly ask: (
    words: PeerWords,
    answer: PeerWords['kind'],
    limits: { deadlineMs: number; signal: AbortSignal },
  ) => Promise<PeerWords>;
}

/**
 * Brings the memory of a VM that runs to another host: all of it, or where that host has older memory of the VM, what differs
 * by hashes that nobody can foresee.
 */
export class RemoteFilling {
  readonly #options: FillingOptions;
  #theirs: PageHashes | undefined;
  #copiedPages = 0;
  #totalPages = 0;
  #savedPages = 0;
  #isDelta = false;
  #isFilled = false;

  constructor(options: FillingOptions) {
    this.#options = options;
  }

  /** Of what is to be sent. */
  get copiedShare(): number {
    if (this.#isFilled) return 1;
    return this.#totalPages === 0 ? 0 : this.#copiedPages / this.#totalPages;
  }

  /** As far as it has come. */
  get filled(): Filled {
    return {
      kind: this.#isDelta ? 'delta' : 'full',
      copiedBytes: this.#copiedPages * PAGE_BYTES,
      savedBytes: this.#savedPages * PAGE_BYTES,
    };
  }

  /** Hashes of the other host's memory. @throws ReplicationError REPLICATION_PEER_GARBLED */
  take(body: Uint8Array): void {
    const theirs = this.#theirs;
    // What nobody asked for, or does not any more.
    if (theirs === undefined) return;
    const { piece, hashes } = decodeHashes(body, theirs.pageCount);
    theirs.note(piece, hashes);
  }

  /** `hasRelic`: the other host begins with older memory, else with none. */
  async fill(
    primary: Instance,
    { hasRelic, signal }: { hasRelic: boolean; signal: AbortSignal },
  ): Promise<void> {
    const { link, pages } = this.#options;
    // A log that cannot be asked while the VM runs leaves everything to the first epoch, but for what is zeros by now.
    this.#isDelta = hasRelic && primary.dirtyLog.atomic;
    if (hasRelic && !this.#isDelta) await link.send(MESSAGE.words, [encodeWords({ kind: 'discard' })]);
    await copyWhileRunning({
      ...{ from: primary.memory, dirtyLog: primary.dirtyLog, restPagesMax: REST_PAGES_MAX, signal },
      to: {
        // The other side begins with empty memory, or is told what differs.
        discardAll: () => {},
        writeRuns: (runs: readonly PageRun[], { bytes }: Mapping) =>
          pages.send(MESSAGE.copy, { epoch: NO_EPOCH, runs, pages: bytes }),
      },
      ...(this.#isDelta && { firstRuns: () => this.#compare(primary, signal) }),
      onProgress: (copied, total) => {
        this.#copiedPages = copied;
        this.#totalPages = total;
      },
    });
    this.#isFilled = true;
  }

  async #compare({ memory }: Instance, signal: AbortSignal): Promise<PageRun[]> {
    const secret = makeSecret();
    const theirs = new PageHashes(memory.pageCount);
    this.#theirs = theirs;
    const words: PeerWords = { kind: 'compare', secret: secret.toString('hex') };
    await this.#options.ask(words, 'compared', { deadlineMs: COMPARE_DEADLINE_MS, signal });
    const pace = new WorkPace(this.#options.clock, { share: COMPARE_SHARE });
    const runs = await differingRuns(memory, { theirs, secret, pace, signal });
    this.#theirs = undefined;
    this.#totalPages = countPages(runs);
    this.#savedPages = Math.max(0, countPages(memory.dataRuns()) - this.#totalPages);
    return runs;
  }
}
