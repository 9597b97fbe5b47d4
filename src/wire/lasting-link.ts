import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Failpoints } from '../base/failpoint.ts';
import { KIB, MIB } from '../base/units.ts';
import {
  initialLinkLife,
  type LinkLife,
  type LinkLifeEffect,
  type LinkLifeEvent,
  type LinkRole,
  stepLinkLife,
} from './link-life.ts';
import { misused } from './link-messages.ts';
import type { Message, ReceivedMessage } from './message-framing.ts';
import { type LoggedMessage, ResumeCursor, ResumeLog } from './resume-log.ts';
import {
  countMessage,
  knockMessage,
  type LinkClaim,
  RESUME_TYPE,
  readCount,
  readKnock,
  readRefused,
  refusedMessage,
} from './resume-messages.ts';
import type { LinkEnd, SecureLink } from './secure-link.ts';
import { WireError } from './wire-error.ts';

/** A link over one connection. */
export type Carrier = Pick<
  SecureLink,
  'peer' | 'heardMs' | 'isLeft' | 'closed' | 'send' | 'deliver' | 'close'
>;

export interface LastingLinkOptions {
  readonly clock: Clock;
  readonly failpoints: Failpoints;
  /** Names the link on both sides, as soon as it is known. */
  readonly claim: () => LinkClaim | undefined;
  /** Who was not heard for so long is taken for lost, whatever the connection is like. */
  readonly silenceMs: number;
  readonly reach: Reach;
  readonly onResumed?: (resumed: Resumed) => void;
}

/** How this side gets through to the other one when a connection has broken. */
export type Reach =
  /** It makes a new one. Rejects with a cause ECONNREFUSED where nobody listens any more. */
  | { readonly role: 'dials'; readonly dial: (signal: AbortSignal) => Promise<Carrier> }
  /** It is dialled, and asks meanwhile whether there is anybody who could. */
  | { readonly role: 'waits'; readonly isGone: (signal: AbortSignal) => Promise<boolean> };

export interface Resumed {
  /** From when the loss was noticed here; 0 where it was not. */
  readonly outageMs: number;
  /** Sent again, or for the first time. */
  readonly messages: number;
  readonly bytes: number;
}

interface Made {
  readonly link: Carrier;
  /** How much the other side has used, as it said when it went on with this connection. */
  readonly usedThere: bigint;
}

type Handler = (message: ReceivedMessage) => void | Promise<void>;

/** Both sides have shown which link it is before they look at how far they have come. */
const STREAM = 0n;
/** More than the window of a connection, and what waits for it: all that can be lost with one. */
const KEPT_BYTES_MAX = 16 * MIB;
const KEPT_MESSAGES_MAX = 65_536;
/** Sends that wait. Each waits for the one before, if its caller does as it should. */
const WAITING_MAX = 1024;
/** The other side may forget what was used, and is told in parts. */
const USED_BYTES = 256 * KIB;
const USED_MESSAGES = 64;

/**
 * A link that outlasts its connections: when one breaks, a new one is made at once, and what was lost with the old one is
 * sent again. For its users nothing has happened but time: messages arrive in order, each once. It ends when the other side
 * takes leave, is silent for too long, or its process is gone.
 */
export class LastingLink {
  readonly peer: string;
  readonly closed: Promise<LinkEnd>;
  readonly #options: LastingLinkOptions;
  readonly #role: LinkRole;
  readonly #ended = Promise.withResolvers<LinkEnd>();
  readonly #handler = Promise.withResolvers<Handler>();
  readonly #links = new Map<number, Made>();
  /** Of what this side sends. */
  readonly #log = new ResumeLog({ stream: STREAM, bytesMax: KEPT_BYTES_MAX, messagesMax: KEPT_MESSAGES_MAX });
  /** Of what it receives. */
  readonly #cursor = new ResumeCursor({ stream: STREAM, sequence: 0n });
  /** Not handed to the present connection yet, oldest first. */
  #unsent: LoggedMessage[] = [];
  readonly #waiting = new Map<bigint, PromiseWithResolvers<void>>();
  /** The connection that messages are being handed to. */
  #pumpedTo: number | undefined;
  /** One message at a time, whichever connection it came over. */
  #handling: Promise<void> = Promise.resolve();
  #untoldMessages = 0;
  #untoldBytes = 0;
  #madeLinks = 0;
  #life: LinkLife;
  #trying = new AbortController();
  #cancelTry: () => void = () => {};
  #cancelWait: () => void = () => {};

  /** Takes `link` over, which is fresh: nothing was sent or delivered yet. */
  constructor(link: Carrier, options: LastingLinkOptions) {
    this.peer = link.peer;
    this.#options = options;
    this.#role = options.reach.role;
    this.closed = this.#ended.promise;
    this.#life = initialLinkLife(this.#take(link));
  }

  /** What would be sent again if the connection broke now. */
  get keptBytes(): number {
    return this.#log.bytes;
  }

  /** See SecureLink. The handler must not wait for a `send` of its own. What it throws ends the link. */
  deliver(handler: Handler): void {
    this.#handler.resolve(handler);
  }

  /**
   * Sends after all that was sent before. Resolves when the bytes have left this process, which takes as long as there is
   * no connection; the body is kept, and must never change. @throws WireError WIRE_CLOSED, WIRE_BACKLOG
   */
  async send(message: Message): Promise<void> {
    if (this.#life.kind === 'ended') throw this.#closedError();
    if (this.#unsent.length >= WAITING_MAX) throw backlog();
    const logged = this.#log.append(message);
    const waiting = Promise.withResolvers<void>();
    this.#waiting.set(logged.sequence, waiting);
    this.#unsent.push(logged);
    void this.#pump();
    await waiting.promise;
  }

  /** Somebody dialled who may be the other end. Takes the connection over. */
  offer(link: Carrier): void {
    assert(this.#role === 'waits', 'only who waits is dialled');
    const number = this.#take(link);
    this.#options.clock.after(this.#options.silenceMs, () => {
      if (!this.#isPresent(number)) this.#drop(number);
    });
  }

  /** What there is may be used while it lasts, and nothing is taken up again: before somebody acts upon its end. */
  forgo(): void {
    this.#step({ kind: 'forgone' });
  }

  /** The present connection leads nowhere, though it does not know that yet: another one is made. For the side that dials. */
  renew(): void {
    const { clock, silenceMs, reach } = this.#options;
    if (reach.role !== 'dials' || this.#life.kind === 'ended') return;
    // One that was made over that path meanwhile would wait for its answer as long.
    const link = this.#life.kind === 'linked' ? this.#life.link : this.#life.asked;
    if (link === undefined) return;
    const made = this.#links.get(link);
    this.#links.delete(link);
    const nowMs = clock.nowMs();
    const error = broken('its path is dead', undefined);
    if (this.#life.kind === 'broken') this.#step({ kind: 'failed', link, nowMs });
    else this.#step({ kind: 'lost', link, nowMs, silentAtMs: nowMs + silenceMs, error });
    void made?.link.close();
  }

  /** Lets what was sent leave, as far as there is a connection. */
  async close(): Promise<void> {
    const present = this.#present;
    for (const message of this.#unsent) void present?.send(message).catch(() => {});
    this.#step({ kind: 'closed' });
    await present?.close();
  }

  get #present(): Carrier | undefined {
    return this.#life.kind === 'linked' ? this.#links.get(this.#life.link)?.link : undefined;
  }

  #isPresent(number: number): boolean {
    return this.#life.kind === 'linked' && this.#life.link === number;
  }

  #take(link: Carrier): number {
    this.#madeLinks += 1;
    const number = this.#madeLinks;
    this.#links.set(number, { link, usedThere: 0n });
    link.deliver((message) => this.#hear(number, message));
    void link.closed.then((end) => this.#noteEnd(number, end));
    return number;
  }

  #drop(number: number): void {
    const made = this.#links.get(number);
    this.#links.delete(number);
    void made?.link.close();
  }

  #step(event: LinkLifeEvent): void {
    const before = this.#life;
    const { next, effects } = stepLinkLife(before, event, this.#role);
    this.#life = next;
    if (next.kind !== 'broken') this.#endTrying();
    for (const effect of effects) this.#carryOut(effect, before);
  }

  #carryOut(effect: LinkLifeEffect, before: LinkLife): void {
    switch (effect.kind) {
      case 'try':
        this.#cancelTry = this.#options.clock.after(
          effect.afterMs,
          () => void this.#try(this.#trying.signal),
        );
        break;
      case 'wait':
        this.#waitUntil(effect.untilMs);
        break;
      case 'adopt':
        this.#adopt(effect.link, before);
        break;
      case 'refuse':
        void this.#links
          .get(effect.link)
          ?.link.send(refusedMessage(effect.reason))
          .catch(() => {});
        this.#drop(effect.link);
        break;
      case 'drop':
        this.#drop(effect.link);
        break;
      case 'end':
        this.#finish(effect.end);
        break;
    }
  }

  #endTrying(): void {
    this.#cancelTry();
    this.#cancelWait();
    this.#trying.abort();
    this.#trying = new AbortController();
  }

  #waitUntil(untilMs: number): void {
    const { clock } = this.#options;
    this.#cancelWait();
    this.#cancelWait = clock.after(Math.max(0, untilMs - clock.nowMs()), () =>
      this.#step({ kind: 'waited', nowMs: clock.nowMs() }),
    );
  }

  async #try(signal: AbortSignal): Promise<void> {
    const { reach, clock } = this.#options;
    if (reach.role === 'dials') return await this.#dial(reach.dial, signal);
    const isGone = await reach.isGone(signal).catch(() => false);
    if (!signal.aborted) this.#step({ kind: isGone ? 'gone' : 'unsure', nowMs: clock.nowMs() });
  }

  async #dial(dial: (signal: AbortSignal) => Promise<Carrier>, signal: AbortSignal): Promise<void> {
    const { clock, claim: claimOf, failpoints } = this.#options;
    try {
      const link = await dial(signal);
      await failpoints.hit('resume.before-knock');
      const number = this.#take(link);
      this.#step({ kind: 'dialled', link: number });
      const claim = claimOf();
      assert(claim !== undefined, 'who dials knows which link it is');
      await link.send(knockMessage(claim, this.#cursor.point.sequence));
    } catch (thrown) {
      // Where the connection broke that is told by its end.
      if (signal.aborted || this.#life.kind !== 'broken' || this.#life.asked !== undefined) return;
      const nowMs = clock.nowMs();
      this.#step(isRefusal(thrown) ? { kind: 'gone', nowMs } : { kind: 'failed', nowMs, link: undefined });
    }
  }

  #noteEnd(link: number, end: LinkEnd): void {
    const made = this.#links.get(link);
    // One that was given up here.
    if (made === undefined) return;
    const nowMs = this.#options.clock.nowMs();
    const silentAtMs = made.link.heardMs + this.#options.silenceMs;
    this.#links.delete(link);
    if (!this.#isPresent(link)) this.#step({ kind: 'failed', nowMs, link });
    // Where nobody can say which link it is nobody takes it up again.
    else if (this.#options.claim() !== undefined && end.kind === 'lost' && end.error.code === 'WIRE_LOST')
      this.#step({ kind: 'lost', link, nowMs, silentAtMs, error: end.error });
    else this.#step({ kind: 'over', link, end });
  }

  async #hear(link: number, message: ReceivedMessage): Promise<void> {
    if (!this.#links.has(link)) return;
    try {
      switch (message.type) {
        case RESUME_TYPE.knock:
          return await this.#answer(link, message.body);
        case RESUME_TYPE.agreed:
          return await this.#goOn(link, message.body);
        case RESUME_TYPE.refused:
          return this.#step({ kind: 'refused', link, reason: readRefused(message.body) });
        case RESUME_TYPE.used:
          return this.#isPresent(link) ? this.#log.acknowledge(readCount(message.body)) : undefined;
        default:
          return await this.#use(link, message);
      }
    } catch (thrown) {
      const error = thrown instanceof WireError ? thrown : broken(messageOf(thrown), thrown);
      const { clock } = this.#options;
      if (this.#isPresent(link)) this.#step({ kind: 'over', link, end: { kind: 'lost', error } });
      else this.#step({ kind: 'failed', nowMs: clock.nowMs(), link });
      this.#drop(link);
    }
  }

  async #answer(link: number, body: Uint8Array): Promise<void> {
    await this.#options.failpoints.hit('resume.before-answer');
    const { claim, point } = readKnock(body);
    // What the link is already cannot take its own place.
    if (this.#isPresent(link)) throw misused('a knock in the middle of a link');
    if (!this.#noteUsedThere(link, point.sequence)) return;
    const right = this.#options.claim();
    const isOurs = right !== undefined && claim.stream === right.stream && claim.token === right.token;
    this.#step({ kind: 'knocked', link, verdict: isOurs ? this.#verdictOn(point.sequence) : 'claim' });
    await this.#options.failpoints.hit('resume.after-answer');
  }

  async #goOn(link: number, body: Uint8Array): Promise<void> {
    await this.#options.failpoints.hit('resume.before-going-on');
    const used = readCount(body);
    if (!this.#noteUsedThere(link, used)) return;
    this.#step({ kind: 'agreed', link, verdict: this.#verdictOn(used) });
  }

  /** False where the connection is gone already. */
  #noteUsedThere(number: number, usedThere: bigint): boolean {
    const made = this.#links.get(number);
    if (made !== undefined) this.#links.set(number, { ...made, usedThere });
    return made !== undefined;
  }

  #verdictOn(usedThere: bigint): 'welcome' | 'forgotten' {
    return this.#log.replayFrom({ stream: STREAM, sequence: usedThere }).kind === 'replay'
      ? 'welcome'
      : 'forgotten';
  }

  #adopt(number: number, before: LinkLife): void {
    const made = this.#links.get(number);
    assert(made !== undefined, 'what is adopted is there');
    if (before.kind === 'linked') this.#drop(before.link);
    const lacking = this.#log.replayFrom({ stream: STREAM, sequence: made.usedThere });
    assert(lacking.kind === 'replay', 'nothing is adopted that cannot be gone on with');
    this.#log.acknowledge(made.usedThere);
    this.#unsent = [...lacking.messages];
    // What arrived although the connection broke under it has left.
    for (const sequence of this.#waiting.keys()) if (sequence <= made.usedThere) this.#noteLeft(sequence);
    if (this.#role === 'waits')
      void made.link.send(countMessage(RESUME_TYPE.agreed, this.#cursor.point.sequence)).catch(() => {});
    void this.#pump();
    this.#options.onResumed?.({
      outageMs: before.kind === 'broken' ? this.#options.clock.nowMs() - before.sinceMs : 0,
      messages: lacking.messages.length,
      bytes: lacking.messages.reduce((sum, { body }) => sum + (body?.length ?? 0), 0),
    });
  }

  /** What a connection did not take stays unsent until there is another one. */
  async #pump(): Promise<void> {
    if (this.#life.kind !== 'linked' || this.#pumpedTo === this.#life.link) return;
    const number = this.#life.link;
    this.#pumpedTo = number;
    try {
      for (let next = this.#unsent[0]; next !== undefined; next = this.#unsent[0]) {
        await this.#links.get(number)?.link.send(next);
        if (!this.#isPresent(number)) break;
        this.#unsent.shift();
        this.#noteLeft(next.sequence);
      }
    } catch (thrown) {
      // Who has taken leave does not come back. The link ends when what came before was dealt with, which may wait for this.
      if (this.#isPresent(number) && this.#links.get(number)?.link.isLeft === true) this.#rejectWaiting();
      // Where the connection is over its end tells why. What no connection would take must not be waited for for ever.
      else if (!(thrown instanceof WireError) && this.#isPresent(number))
        this.#step({
          kind: 'over',
          link: number,
          end: { kind: 'lost', error: broken(messageOf(thrown), thrown) },
        });
    } finally {
      if (this.#pumpedTo === number) this.#pumpedTo = undefined;
    }
  }

  #noteLeft(sequence: bigint): void {
    this.#waiting.get(sequence)?.resolve();
    this.#waiting.delete(sequence);
  }

  async #use(link: number, message: ReceivedMessage): Promise<void> {
    await this.#handling;
    // Another connection has taken its place meanwhile, over which it comes again.
    if (!this.#isPresent(link)) return;
    const verdict = this.#cursor.accept(message.sequence);
    if (verdict === 'gap') throw misused(`message ${message.sequence} after ${this.#cursor.point.sequence}`);
    if (verdict === 'known') return;
    const handling = this.#handler.promise.then((handler) => handler(message));
    this.#handling = handling.catch(() => {});
    await handling;
    this.#tellUsed(message.body.length);
  }

  #tellUsed(bytes: number): void {
    this.#untoldMessages += 1;
    this.#untoldBytes += bytes;
    if (this.#untoldMessages < USED_MESSAGES && this.#untoldBytes < USED_BYTES) return;
    this.#untoldMessages = 0;
    this.#untoldBytes = 0;
    const used = countMessage(RESUME_TYPE.used, this.#cursor.point.sequence);
    // The next one says it as well.
    void this.#present?.send(used).catch(() => {});
  }

  #finish(end: LinkEnd): void {
    for (const number of [...this.#links.keys()]) this.#drop(number);
    this.#rejectWaiting(end);
    this.#ended.resolve(end);
  }

  #rejectWaiting(end?: LinkEnd): void {
    for (const { reject } of this.#waiting.values()) reject(this.#closedError(end));
    this.#waiting.clear();
    this.#unsent = [];
  }

  #closedError(end?: LinkEnd): WireError {
    return new WireError('WIRE_CLOSED', `the link to ${this.peer} is closed`, {
      hint: 'Make a new link, and ask the other side what it has.',
      facts: { peer: this.peer },
      cause: end?.kind === 'lost' ? end.error : undefined,
    });
  }
}

/** A process that has ended is answered for by its kernel. */
export function isRefusal(thrown: unknown): boolean {
  for (let error = thrown; error instanceof Error; error = error.cause) {
    if ((error as NodeJS.ErrnoException).code === 'ECONNREFUSED') return true;
  }
  return false;
}

function broken(reason: string, cause: unknown): WireError {
  return new WireError('WIRE_LOST', `the link between hosts was lost: ${reason}`, {
    hint: 'It is made anew. If that happens often, look at the network between the hosts.',
    facts: { reason },
    cause,
  });
}

function backlog(): WireError {
  return new WireError('WIRE_BACKLOG', `${WAITING_MAX} messages wait for the other host already`, {
    hint: 'Whoever sends has to wait until what it sent before has left. Please report this.',
  });
}
