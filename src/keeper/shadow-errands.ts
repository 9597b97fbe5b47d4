import type { Clock } from '../base/clock.ts';
import { errorFacts, messageOf, UnderstudyError } from '../base/errors.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { Logger } from '../base/logger.ts';
import { PAGE_BYTES } from '../base/units.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { epochId } from '../epoch/epoch-id.ts';
import { Mapping } from '../linux/mapping.ts';
import type { PeerLink } from '../replication/peer-link.ts';
import { encodeEpoch, encodePagesHead, garbled, MESSAGE } from '../replication/peer-messages.ts';
import { type PageSink, PIECE_PAGES, readOutShadow } from '../snapshot/shadow-readout.ts';
import { encodedBytesMax, PageEncoder } from '../wire/page-codec.ts';
import { admit } from './admission.ts';
import {
  decodeErrand,
  type ErrandWords,
  encodeErrand,
  READ_AHEAD_PAGES,
  STATE_PIECE_BYTES,
} from './errand-messages.ts';
import { testFailover } from './failover-test.ts';
import type { Instance } from './instance.ts';
import { type Loan, Loans } from './loans.ts';
import type { ServedDisks } from './served-disks.ts';
import type { ShadowSession } from './shadow-session.ts';
import { withShadow } from './shadow-wish.ts';

/** Errands that are known at a time: one is carried out. One too many is refused. */
export const ERRANDS_MAX = 4;
/** Progress is told at these steps of it. */
const SHARE_STEP = 0.05;

export interface ErrandsOptions {
  readonly link: PeerLink;
  readonly spec: VmSpec;
  readonly session: ShadowSession;
  /** Starts a QEMU like any standby of the VM, for a test. */
  readonly startTest: (signal: AbortSignal, disks: ServedDisks) => Promise<Instance>;
  readonly clock: Clock;
  readonly log: Logger;
  readonly failpoints: Failpoints;
}

/**
 * What the keeper of a shadow does for that of the VM on another host beside taking epochs: tries out whether the shadow
 * would come up, and reads out what it holds. Epochs go on being taken meanwhile. Whoever needs the shadow calls it off.
 */
export class ShadowErrands {
  readonly #options: ErrandsOptions;
  readonly #loans = new Loans();
  readonly #present = new Map<number, Present>();
  /** The one before has come to its end. */
  #before: Promise<void> = Promise.resolve();
  #isOver = false;

  constructor(options: ErrandsOptions) {
    this.#options = options;
  }

  /** Never waits for what is asked for. @throws ReplicationError REPLICATION_PEER_GARBLED */
  take(body: Uint8Array): void {
    const words = decodeErrand(body);
    const { errand } = words;
    const present = this.#present.get(errand);
    switch (words.kind) {
      case 'test':
        this.#begin(errand, (loan) => this.#test(errand, { loan, expectsAgent: words.expectsAgent }));
        break;
      case 'read-out':
        this.#begin(errand, (loan, reading) => this.#readOut(errand, { loan, reading }));
        break;
      case 'more':
        // Of one that has come to its end meanwhile.
        present?.reading.grant(words.pages);
        break;
      case 'forget':
        present?.abort.abort(new Error('nobody waits for it any more'));
        break;
      default:
        throw garbled(`the errand ${words.kind} out of turn`);
    }
  }

  /** The shadow is needed: resolves when nobody looks at it any more. Nothing is begun from now on. */
  async callOff(): Promise<void> {
    this.#isOver = true;
    this.#loans.callBack();
    await this.#loans.unused();
  }

  /** Resolves when nothing is left of any errand. */
  async ended(): Promise<void> {
    await this.#loans.ended();
  }

  /** One after the other: what nobody waits for any more may take a moment to end. */
  #begin(errand: number, work: (loan: Loan<ShadowSession>, reading: Reading) => Promise<void>): void {
    if (this.#isOver) return;
    if (this.#present.has(errand)) throw garbled('an errand in the middle of others');
    if (this.#present.size >= ERRANDS_MAX) {
      void this.#say({ kind: 'failed', errand, ...told(tooMany()) });
      return;
    }
    const present = { abort: new AbortController(), reading: new Reading() };
    this.#present.set(errand, present);
    // How it ends is said to the other side, where there still is one.
    this.#before = this.#before
      .then(() => this.#carryOut(errand, { present, work }))
      .catch(() => {})
      .finally(() => this.#present.delete(errand));
  }

  async #carryOut(
    errand: number,
    {
      present,
      work,
    }: { present: Present; work: (loan: Loan<ShadowSession>, reading: Reading) => Promise<void> },
  ): Promise<void> {
    if (this.#isOver) return;
    await this.#loans.lend(this.#options.session, async ({ signal: calledBack, use }) => {
      const signal = AbortSignal.any([calledBack, present.abort.signal]);
      const wake = () => present.reading.wake();
      signal.addEventListener('abort', wake, { once: true });
      try {
        await work({ signal, use }, present.reading);
      } catch (cause) {
        this.#options.log.warn('an errand of a shadow failed', { errand, ...errorFacts(cause) });
        await this.#say({ kind: 'failed', errand, ...told(signal.aborted ? signal.reason : cause) });
      }
    });
  }

  async #test(
    errand: number,
    { loan, expectsAgent }: { loan: Loan<ShadowSession>; expectsAgent: boolean },
  ): Promise<void> {
    const { spec, session, clock, failpoints, startTest: startStandby } = this.#options;
    const disks = session.image.disks?.looks() ?? [];
    admit(withShadow(spec, true), { runs: true, besidesBytes: spec.memoryBytes });
    const report = await testFailover({ loan, clock, failpoints, expectsAgent, disks, startStandby });
    await this.#say({ kind: 'tested', errand, report });
  }

  async #readOut(
    errand: number,
    { loan, reading }: { loan: Loan<ShadowSession>; reading: Reading },
  ): Promise<void> {
    const { clock, failpoints, link } = this.#options;
    const { signal } = loan;
    using sink = new LinkSink(errand, { link, reading, signal });
    let told = 0;
    await failpoints.hit('read-out.begun');
    const { epoch, deviceState, heldMs } = await readOutShadow(
      (work) => loan.use(({ image }) => work(image)),
      {
        ...{ sink, signal, nowMs: () => clock.nowMs(), onHeld: () => failpoints.hit('read-out.held') },
        onProgress: (share) => {
          if (share < told + SHARE_STEP) return;
          told = share;
          void this.#say({ kind: 'share', errand, share });
        },
      },
    );
    for (let at = 0; at < deviceState.length; at += STATE_PIECE_BYTES) {
      signal.throwIfAborted();
      const piece = deviceState.subarray(at, at + STATE_PIECE_BYTES);
      await link.send(MESSAGE.readState, [encodeEpoch(epochId(errand)), piece]);
    }
    await failpoints.hit('read-out.before-end');
    signal.throwIfAborted();
    await this.#say({ kind: 'read', errand, epoch, heldMs });
  }

  async #say(words: ErrandWords): Promise<void> {
    await this.#options.link.send(MESSAGE.errand, [encodeErrand(words)]).catch(() => {});
  }
}

interface Present {
  readonly abort: AbortController;
  readonly reading: Reading;
}

/** How much may be sent. */
class Reading {
  #pages = READ_AHEAD_PAGES;
  #changed = Promise.withResolvers<void>();

  grant(pages: number): void {
    this.#pages += pages;
    this.wake();
  }

  wake(): void {
    this.#changed.resolve();
  }

  /** Resolves when so many may be sent. */
  async take(pages: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    while (this.#pages < pages) {
      this.#changed = Promise.withResolvers();
      await this.#changed.promise;
      signal.throwIfAborted();
    }
    this.#pages -= pages;
  }
}

/** Sends pages to whoever asked for them. */
class LinkSink implements PageSink, Disposable {
  readonly #errand: number;
  readonly #options: { readonly link: PeerLink; readonly reading: Reading; readonly signal: AbortSignal };
  readonly #encoder = new PageEncoder();
  readonly #out = Mapping.anonymous(encodedBytesMax(PIECE_PAGES));
  readonly #aborted: Promise<void>;

  constructor(
    errand: number,
    options: { readonly link: PeerLink; readonly reading: Reading; readonly signal: AbortSignal },
  ) {
    this.#errand = errand;
    this.#options = options;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#aborted = promise;
    options.signal.addEventListener('abort', () => resolve(), { once: true });
  }

  async writePages(firstPage: number, pages: Uint8Array): Promise<void> {
    const { link, reading, signal } = this.#options;
    const pageCount = pages.length / PAGE_BYTES;
    await reading.take(pageCount, signal);
    const { bytes } = this.#encoder.encodePages({ pages, bases: undefined, out: this.#out.bytes, effort: 1 });
    const head = encodePagesHead(epochId(this.#errand), {
      runs: [{ firstPage, pageCount }],
      continues: false,
    });
    // Who calls this off does not wait for the other side to take it.
    await Promise.race([link.send(MESSAGE.read, [head, this.#out.bytes.subarray(0, bytes)]), this.#aborted]);
    signal.throwIfAborted();
  }

  [Symbol.dispose](): void {
    this.#out[Symbol.dispose]();
  }
}

function tooMany(): KeeperError {
  return new KeeperError('KEEPER_ERRANDS_FULL', `the shadow is asked for ${ERRANDS_MAX} things already`, {
    hint: 'Ask again when a snapshot or a test of the failover has come to its end.',
  });
}

function told(cause: unknown): { code: string; message: string; hint?: string } {
  if (!(cause instanceof UnderstudyError)) return { code: 'KEEPER_INTERNAL', message: messageOf(cause) };
  return { code: cause.code, message: cause.message, ...(cause.hint !== undefined && { hint: cause.hint }) };
}
