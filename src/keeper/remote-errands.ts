import type { Clock } from '../base/clock.ts';
import { PAGE_BYTES } from '../base/units.ts';
import type { FailoverReport } from '../control/failover-report.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { Mapping } from '../linux/mapping.ts';
import type { PeerLink, PeerMessage } from '../replication/peer-link.ts';
import {
  decodeEpoch,
  decodePages,
  garbled,
  MESSAGE,
  MESSAGE_PAGES_MAX,
} from '../replication/peer-messages.ts';
import type { PageSink, ReadOut } from '../snapshot/shadow-readout.ts';
import { PageDecoder } from '../wire/page-codec.ts';
import { WireError } from '../wire/wire-error.ts';
import { decodeErrand, type ErrandWords, encodeErrand, READ_AHEAD_PAGES } from './errand-messages.ts';

/** For anything to be heard of an errand: a QEMU starts there meanwhile, and a guest is asked. */
const SILENCE_MAX_MS = 120_000;
/** Larger than any that an epoch may hold. */
const STATE_BYTES_MAX = 256 * 2 ** 20;

export interface RemoteErrandsOptions {
  readonly link: PeerLink;
  readonly host: string;
  readonly memoryBytes: number;
  readonly clock: Clock;
}

type Piece =
  | { readonly kind: 'pages'; readonly body: Uint8Array }
  | { readonly kind: 'end'; readonly words: ErrandWords };

interface Present {
  readonly errand: number;
  readonly pieces: Piece[];
  readonly state: Uint8Array[];
  stateBytes: number;
  waitingPages: number;
  arrived: PromiseWithResolvers<void>;
  failure: unknown;
  onShare: (share: number) => void;
}

/** What is asked of the keeper of a shadow on another host: to try it out, and to read out what it holds. */
export class RemoteErrands {
  readonly #options: RemoteErrandsOptions;
  #last = 0;
  #present: Present | undefined;
  #failure: Error | undefined;

  constructor(options: RemoteErrandsOptions) {
    this.#options = options;
  }

  /** A copy of it is brought up there. Nothing is left of the test when this resolves. @throws what kept it from being tried */
  async test({
    expectsAgent,
    signal,
  }: {
    expectsAgent: boolean;
    signal: AbortSignal;
  }): Promise<FailoverReport> {
    return await this.#carryOut(signal, async (present) => {
      await this.#say({ kind: 'test', errand: present.errand, expectsAgent });
      const piece = await this.#next(present);
      if (piece.kind !== 'end' || piece.words.kind !== 'tested') throw garbled('no report of a test');
      return piece.words.report;
    });
  }

  /** Everything that it holds, as of one epoch. The VM does not wait for it. @throws what kept it from being read */
  async readOut(
    sink: PageSink,
    { signal, onProgress }: { signal: AbortSignal; onProgress: (share: number) => void },
  ): Promise<ReadOut> {
    return await this.#carryOut(signal, async (present) => {
      present.onShare = onProgress;
      using unpacked = Mapping.anonymous(MESSAGE_PAGES_MAX * PAGE_BYTES);
      const decoder = new PageDecoder();
      await this.#say({ kind: 'read-out', errand: present.errand });
      for (;;) {
        const piece = await this.#next(present);
        if (piece.kind === 'end') return readFrom(piece.words, present);
        const pages = await this.#handOver(piece.body, { sink, decoder, unpacked });
        present.waitingPages -= pages;
        await this.#say({ kind: 'more', errand: present.errand, pages });
      }
    });
  }

  /** Takes what the other side says; never waits for who carries an errand out. @throws ReplicationError REPLICATION_PEER_GARBLED */
  take({ type, body }: PeerMessage): void {
    if (type === MESSAGE.errand) this.#hear(decodeErrand(body));
    else if (type === MESSAGE.read || type === MESSAGE.readState) this.#read(type, body);
    else throw garbled(`a message of the unknown kind ${type}`);
  }

  #read(type: PeerMessage['type'], body: Uint8Array): void {
    const { epoch: errand, rest } = decodeEpoch(body);
    const present = this.#presentOf(errand);
    if (present === undefined) return;
    if (type === MESSAGE.readState) {
      present.stateBytes += rest.length;
      if (present.stateBytes > STATE_BYTES_MAX) throw garbled('more than an epoch may hold');
      present.state.push(Uint8Array.from(rest));
      return;
    }
    present.waitingPages += decodePages(body, this.#memoryPages).pageCount;
    if (present.waitingPages > READ_AHEAD_PAGES) throw garbled('more pages than were asked for');
    deliver(present, { kind: 'pages', body: Uint8Array.from(body) });
  }

  /** The other side is lost. */
  fail(error: Error): void {
    this.#failure ??= error;
    if (this.#present !== undefined) fail(this.#present, error);
  }

  async #carryOut<Result>(signal: AbortSignal, work: (present: Present) => Promise<Result>): Promise<Result> {
    signal.throwIfAborted();
    if (this.#failure !== undefined) throw this.#failure;
    this.#last += 1;
    const present: Present = {
      ...{ errand: this.#last, pieces: [], state: [], stateBytes: 0, waitingPages: 0 },
      ...{ arrived: Promise.withResolvers<void>(), failure: undefined, onShare: () => {} },
    };
    this.#present = present;
    const abort = () => fail(present, signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    let isOver = false;
    try {
      const result = await work(present);
      isOver = true;
      return result;
    } finally {
      signal.removeEventListener('abort', abort);
      this.#present = undefined;
      if (!isOver) void this.#say({ kind: 'forget', errand: present.errand }).catch(() => {});
    }
  }

  #hear(words: ErrandWords): void {
    const present = this.#presentOf(words.errand);
    if (present === undefined) return;
    if (words.kind === 'share') present.onShare(words.share);
    else if (words.kind === 'tested' || words.kind === 'read') deliver(present, { kind: 'end', words });
    else if (words.kind === 'failed') fail(present, failed(this.#options.host, words));
    else throw garbled(`the errand ${words.kind} out of turn`);
  }

  /** What comes of one that nobody waits for any more is passed over. */
  #presentOf(errand: number): Present | undefined {
    if (errand > this.#last) throw garbled('something of an errand that nobody asked for');
    return this.#present?.errand === errand ? this.#present : undefined;
  }

  async #next(present: Present): Promise<Piece> {
    const { clock, host } = this.#options;
    const silent = new KeeperError('KEEPER_PEER_LOST', `${host} says nothing of what it was asked to do`, {
      hint: `See the log of its keeper on ${host}, and ask again.`,
      facts: { host },
    });
    const cancel = clock.after(SILENCE_MAX_MS, () => fail(present, silent));
    try {
      for (;;) {
        if (present.failure !== undefined) throw present.failure;
        const piece = present.pieces.shift();
        if (piece !== undefined) return piece;
        present.arrived = Promise.withResolvers();
        await present.arrived.promise;
      }
    } finally {
      cancel();
    }
  }

  async #handOver(
    body: Uint8Array,
    { sink, decoder, unpacked }: { sink: PageSink; decoder: PageDecoder; unpacked: Mapping },
  ): Promise<number> {
    const { runs, pageCount, packed } = decodePages(body, this.#memoryPages);
    const pages = unpacked.bytes.subarray(0, pageCount * PAGE_BYTES);
    try {
      decoder.decodePages({ input: packed, target: pages });
    } catch (cause) {
      throw cause instanceof WireError ? garbled('pages that cannot be unpacked', cause) : cause;
    }
    let at = 0;
    for (const run of runs) {
      const end = at + run.pageCount * PAGE_BYTES;
      await sink.writePages(run.firstPage, pages.subarray(at, end));
      at = end;
    }
    return pageCount;
  }

  async #say(words: ErrandWords): Promise<void> {
    await this.#options.link.send(MESSAGE.errand, [encodeErrand(words)]);
  }

  get #memoryPages(): number {
    return this.#options.memoryBytes / PAGE_BYTES;
  }
}

function readFrom(words: ErrandWords, { state }: Present): ReadOut {
  if (words.kind !== 'read') throw garbled('no end of what was read out');
  return { epoch: words.epoch, heldMs: words.heldMs, deviceState: Buffer.concat(state) };
}

function deliver(present: Present, piece: Piece): void {
  present.pieces.push(piece);
  present.arrived.resolve();
}

function fail(present: Present, cause: unknown): void {
  present.failure ??= cause;
  present.arrived.resolve();
}

function failed(
  host: string,
  { code, message, hint }: Extract<ErrandWords, { kind: 'failed' }>,
): KeeperError {
  return new KeeperError('KEEPER_PEER_REFUSED', `${host} could not do it: ${message}`, {
    hint: hint ?? `See the log of its keeper on ${host}.`,
    facts: { host, reason: code },
  });
}
