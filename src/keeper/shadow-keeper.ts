import type { Clock } from '../base/clock.ts';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { Logger } from '../base/logger.ts';
import { isTrace } from '../base/trace.ts';
import { WorkPace } from '../base/work-pace.ts';
import { NO_EPOCH } from '../epoch/epoch-id.ts';
import { EpochReceiver } from '../replication/epoch-receiver.ts';
import { hashesOf } from '../replication/page-hashes.ts';
import type { PeerLink, PeerMessage } from '../replication/peer-link.ts';
import {
  decodeWords,
  encodeHashes,
  encodeWords,
  type FailedDisk,
  garbled,
  MESSAGE,
  type PeerWords,
} from '../replication/peer-messages.ts';
import type { ClaimedByLink } from './guest-links.ts';
import type { ShadowErrands } from './shadow-errands.ts';
import type { ShadowSession } from './shadow-session.ts';

/** Larger than any firmware that can be protected. */
const FIRMWARE_BYTES_MAX = 64 * 2 ** 20;
/** Of the time of this process's thread. */
const COMPARE_SHARE = 0.5;

export interface ShadowKeeperOptions {
  readonly link: PeerLink;
  /** What comes over it after the first words. */
  readonly messages: AsyncIterable<PeerMessage>;
  /** Its memory is older memory of the VM. */
  readonly hasRelic: boolean;
  /** Disks of which there is an older copy. */
  readonly heldDisks: readonly string[];
  /** Epochs count as held when their disks survive a loss of power. */
  readonly durable: boolean;
  /** This host, as the other one knows it. */
  readonly host: string;
  readonly session: ShadowSession;
  readonly errands: ShadowErrands;
  /** Where this side listens for heartbeats. */
  readonly pulsePorts: readonly number[];
  /** For so long the other side may be silent, at least. */
  readonly silenceMinMs: number;
  /** At once, before anything follows from the end: the other side must not hear any more that it is heard. */
  readonly onOver: () => void;
  readonly clock: Clock;
  readonly log: Logger;
  readonly failpoints: Failpoints;
}

/** How it came that the shadow of a VM elsewhere is kept no longer. */
export type ShadowEnd =
  /** It is not wanted any more, and has promised not to act. */
  | { readonly kind: 'dismissed' }
  /** It never held a state of the VM, or holds one that cannot be trusted. */
  | { readonly kind: 'useless'; readonly error: string }
  /** The keeper of the VM says that it is dead. */
  | {
      readonly kind: 'called';
      readonly token: number;
      readonly reason: string;
      /** Of the other host: it was given up for that. */
      readonly disk: FailedDisk | undefined;
      readonly trace: string | undefined;
      readonly atMs: number;
    }
  /** The keeper of the VM is not heard any more: whether this shadow may act is for the record to say. */
  | {
      readonly kind: 'alone';
      readonly error: string;
      readonly atMs: number;
      /** When it was heard last. */
      readonly lastSignMs: number;
    };

/**
 * Keeps the shadow of a VM that acts on another host: takes its epochs in, and says how that came to an end. What the
 * other side says after that is not looked at any more, and no epoch is acknowledged: whoever takes over knows what
 * there is.
 */
export class ShadowKeeper {
  readonly #options: ShadowKeeperOptions;
  readonly #receiver: EpochReceiver;
  readonly #ended = Promise.withResolvers<ShadowEnd>();
  #isOver = false;
  #isInSync = false;
  #claimed: ClaimedByLink = {};
  #copiedPages = 0;
  #lastSignMs: number;
  /** Until it is known what becomes of it nothing is built on it. */
  #hasRelic: boolean;
  #isComparing = false;

  constructor(options: ShadowKeeperOptions) {
    this.#options = options;
    this.#lastSignMs = options.clock.nowMs();
    this.#hasRelic = options.hasRelic;
    const { session, failpoints } = options;
    this.#receiver = new EpochReceiver({
      ...{ image: session.image, failpoints, durable: options.durable },
      // Not waited for: the other side may be waiting for this one in the same way.
      onHeld: (epoch) => void this.#say({ kind: 'held', epoch }).catch(() => {}),
      onCopied: (pages) => {
        this.#copiedPages += pages;
      },
      onAnswer: (parts) => void options.link.send(MESSAGE.diskAnswer, parts).catch(() => {}),
    });
  }

  /** The primary's side has written down that this shadow may take over. */
  get isInSync(): boolean {
    return this.#isInSync;
  }

  /** Addresses of the guest, as far as the other side has said. */
  get claimed(): ClaimedByLink {
    return this.#claimed;
  }

  get copiedPages(): number {
    return this.#copiedPages;
  }

  /** Somebody here wants the VM to act on this host, or its shadow to end: as if the other side were not heard any more. */
  leave(end: ShadowEnd): void {
    this.#end(end);
  }

  /** The other side was heard just now. */
  noteSign(): void {
    this.#lastSignMs = this.#options.clock.nowMs();
  }

  /** This host is to be free of it. Only the VM's own keeper can say that nobody needs it. */
  async askToLeave(): Promise<void> {
    await this.#say({ kind: 'leave' });
  }

  /** Nothing is heard of the other side any more, for so long, on whatever path. */
  fallSilent(silentMs: number): void {
    this.#lastSignMs = this.#options.clock.nowMs() - silentMs;
    this.#lose(`nothing was heard for ${Math.round(silentMs)} ms`);
  }

  /** Takes epochs until that ends. The link is the caller's to close. */
  async keep(): Promise<ShadowEnd> {
    const { session, host, heldDisks } = this.#options;
    let isKept = true;
    void session.image.disks?.failed.then((cause) => isKept && this.#giveUp(cause.message, cause));
    void session.standby.machine.process.exited.then(() => isKept && this.#giveUp('its QEMU ended'));
    await this.#say({
      ...{ kind: 'welcome', host, instance: session.standby.number, hasRelic: this.#hasRelic },
      ...{ heldDisks: [...heldDisks], pulsePorts: [...this.#options.pulsePorts] },
      silenceMinMs: this.#options.silenceMinMs,
    }).catch(() => {});
    void this.#listen();
    const end = await this.#ended.promise;
    // Whoever asks for the right to act, or has promised not to, is not come back to.
    this.#options.link.forgo();
    isKept = false;
    this.#receiver[Symbol.dispose]();
    await this.#options.errands.callOff();
    return end;
  }

  async #listen(): Promise<void> {
    const { link, messages } = this.#options;
    try {
      for await (const message of messages) {
        // A promise that was given now would be none: the right may have been asked for already.
        if (this.#isOver) return;
        this.noteSign();
        if (await this.#take(message)) break;
      }
      const reason = await link.closed;
      this.#lose(reason?.message ?? 'it closed the connection');
    } catch (cause) {
      this.#giveUp(messageOf(cause), cause);
    }
  }

  /** True when that was the end. */
  async #take(message: PeerMessage): Promise<boolean> {
    const { session } = this.#options;
    switch (message.type) {
      case MESSAGE.words:
        return await this.#hear(decodeWords(message.body));
      case MESSAGE.firmware:
        if (message.body.length > FIRMWARE_BYTES_MAX) throw garbled('firmware that is too large');
        session.takeFirmware(Uint8Array.from(message.body));
        return false;
      case MESSAGE.errand:
        this.#options.errands.take(message.body);
        return false;
      default:
        if (this.#hasRelic && message.type !== MESSAGE.diskCopy && message.type !== MESSAGE.diskAsk)
          throw garbled('pages before it is known what they are brought to');
        await this.#receiver.take(message);
        return false;
    }
  }

  async #hear(words: PeerWords): Promise<boolean> {
    switch (words.kind) {
      case 'discard':
        // Of memory that has an epoch nothing would be left but the belief in it.
        if (!this.#hasRelic || this.#isComparing) throw garbled('that it gives up what is not there');
        this.#options.session.image.memory.discardAll();
        this.#hasRelic = false;
        return false;
      case 'compare':
        // Once: each time all of its memory is read.
        if (!this.#hasRelic || this.#isComparing) throw garbled('that it compares what is not there');
        this.#isComparing = true;
        // Not waited for: the other side may be waiting for this one in the same way.
        void this.#compare(Buffer.from(words.secret, 'hex'));
        return false;
      case 'in-sync':
        this.#isInSync = true;
        return false;
      case 'claimed':
        this.#claimed = words.links;
        return false;
      case 'take-over':
        this.#end({
          ...{ kind: 'called', token: words.token, reason: words.reason, atMs: this.#options.clock.nowMs() },
          disk: words.disk,
          trace: isTrace(words.trace) ? words.trace : undefined,
        });
        return true;
      case 'dismiss':
        // Before it is said, so that nothing that comes of it can be done any more.
        this.#end({ kind: 'dismissed' });
        await this.#say({ kind: 'dismissed' }).catch(() => {});
        return true;
      default:
        throw garbled(`${words.kind} out of turn`);
    }
  }

  async #compare(secret: Uint8Array): Promise<void> {
    const { session, link, clock } = this.#options;
    const { memory } = session.image;
    const pace = new WorkPace(clock, { share: COMPARE_SHARE });
    try {
      for await (const { piece, hashes } of hashesOf(memory, { runs: memory.dataRuns(), secret, pace })) {
        await link.send(MESSAGE.hashes, [encodeHashes(piece, hashes)]);
      }
      this.#hasRelic = false;
      await this.#say({ kind: 'compared' });
    } catch (cause) {
      // Where the link has ended that is told otherwise, and decides.
      this.#giveUp(messageOf(cause), cause);
    }
  }

  /** The other side is gone. A state that is whole may be what the VM goes on from. */
  #lose(error: string): void {
    const holdsState = this.#options.session.image.committed !== NO_EPOCH;
    const atMs = this.#options.clock.nowMs();
    const lastSignMs = this.#lastSignMs;
    const end: ShadowEnd = holdsState
      ? { kind: 'alone', error, atMs, lastSignMs }
      : { kind: 'useless', error };
    this.#end(end);
  }

  /** This side cannot be relied on. */
  #giveUp(error: string, cause?: unknown): void {
    this.#options.log.warn('the shadow is given up', { error });
    const code = cause instanceof UnderstudyError ? cause.code : 'KEEPER_INTERNAL';
    void this.#say({ kind: 'refused', code, message: error }).catch(() => {});
    this.#end({ kind: 'useless', error });
  }

  /** At once: the next message may be here already. */
  #end(end: ShadowEnd): void {
    this.#isOver = true;
    this.#options.onOver();
    this.#ended.resolve(end);
  }

  async #say(words: PeerWords): Promise<void> {
    await this.#options.link.send(MESSAGE.words, [encodeWords(words)]);
  }
}
