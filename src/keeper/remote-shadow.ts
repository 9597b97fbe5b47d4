import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { Trace } from '../base/trace.ts';
import type { BlockErrorCode } from '../block/block-error.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { epochId } from '../epoch/epoch-id.ts';
import { bootTimeMs } from '../linux/boot-clock.ts';
import { readFirmware } from '../qemu/firmware.ts';
import { type CopiedDisk, DiskCopy } from '../replication/disk-copy.ts';
import type { EpochPipeline } from '../replication/epoch-pipeline.ts';
import { HintSender } from '../replication/hint-sender.ts';
import { PageSender } from '../replication/page-sender.ts';
import type { PeerLink } from '../replication/peer-link.ts';
import {
  decodeWords,
  encodeWords,
  type FailedDisk,
  MESSAGE,
  type PeerWords,
} from '../replication/peer-messages.ts';
import { RemoteImage } from '../replication/remote-image.ts';
import type { Resumed } from '../wire/lasting-link.ts';
import type { ActingRight } from './acting-right.ts';
import { SPARE_SLOTS } from './admission.ts';
import type { ClaimedByLink } from './guest-links.ts';
import type { Instance } from './instance.ts';
import { PeerPulse, type SilenceBounds } from './peer-pulse.ts';
import type { RecordPatience } from './record-patience.ts';
import { peerLost, superseded } from './refusals.ts';
import { RemoteErrands } from './remote-errands.ts';
import { type FillingOptions, RemoteFilling } from './remote-filling.ts';
import { type BeginOptions, beginEpochs, type Shadow, type ShadowDescription } from './shadow.ts';

/** The other host starts a QEMU meanwhile. */
const WELCOME_DEADLINE_MS = 30_000;
/** A promotion takes milliseconds; a shadow that has not begun to act by then has something wrong with it. */
const HAND_OVER_DEADLINE_MS = 10_000;
const DISMISS_DEADLINE_MS = 2_000;
/** A shadow that was in sync has all that the world has seen; here nothing is left of it but a cold start. */
const TAKE_OVER_GRACE_MS = 10_000;

const DISK_FAILED: BlockErrorCode = 'BLOCK_DISK_FAILED';

type Hello = Extract<PeerWords, { kind: 'hello' }>;
type Welcome = Extract<PeerWords, { kind: 'welcome' }>;

export interface RemoteShadowOptions {
  readonly link: PeerLink;
  readonly host: string;
  readonly hello: Hello;
  /** All ways to the other host, and which of them the link takes. */
  readonly addresses: readonly string[];
  readonly path: () => number;
  /** For how long nothing may be heard on any of them. */
  readonly silenceMs: SilenceBounds;
  readonly right: ActingRight;
  readonly memoryBytes: number;
  /** Those of the hello. */
  readonly disks: readonly CopiedDisk[];
  readonly epochsInFlightMax: number;
  /** Where epochs on their way lie: memory-backed. Made here, removed with the shadow. */
  readonly directory: string;
  readonly clock: Clock;
  readonly failpoints: Failpoints;
  /** With who waits for the record of who acts. */
  readonly patience: RecordPatience;
  /** Neither side can rely on the other any more. */
  readonly onLost: (error: string) => void;
  /** Addresses that the guest has claimed until now. */
  readonly claimed: () => ClaimedByLink;
  /** A disk of its host fails. */
  readonly onDiskFailed: (disk: Omit<FailedDisk, 'path'>) => void;
  /** Its host shall be free of it. */
  readonly onUnwelcome: () => void;
  readonly publish: (kind: string, facts: Readonly<Record<string, unknown>>) => void;
}

/** Why the VM is handed over, and on behalf of which request. `disk`: of this host, which fails. */
interface HandingOver {
  readonly reason: string;
  readonly disk: FailedDisk | undefined;
  readonly trace: Trace | undefined;
}

/** How handing over ended. `free`: the shadow does not act and will not, and this keeper holds the right again. */
export type HandOver =
  | { readonly kind: 'acts'; readonly tookMs: number; readonly token: number }
  | { readonly kind: 'free'; readonly error: string }
  /** It acts, or has: that is on record, whatever it said. */
  | { readonly kind: 'superseded'; readonly error: string }
  /** The VM is ended, and nobody could say whether the shadow acts or will. */
  | { readonly kind: 'unknown'; readonly error: string }
  /** The same where it alone has all that was written: it stays on record as the one that may act. */
  | { readonly kind: 'left'; readonly error: string };

/** The shadow of a VM on another host, as the keeper of the VM sees it. */
export class RemoteShadow implements Shadow {
  /** What its keeper does with what it holds, when it is asked to. */
  readonly errands: RemoteErrands;
  readonly #options: RemoteShadowOptions;
  readonly #pages: PageSender;
  readonly #image: RemoteImage;
  readonly #answers = new Map<PeerWords['kind'], PromiseWithResolvers<PeerWords>>();
  #pulse: PeerPulse | undefined;
  #instance = 0;
  #hasRelic = false;
  #heldDisks: ReadonlySet<string> = new Set();
  #disks: DiskCopy | undefined;
  #disksShare = 0;
  #hints: HintSender | undefined;
  readonly #filling: RemoteFilling;
  #firmware: Uint8Array | undefined;
  #mayTakeOver = false;
  #isHandedOver = false;
  readonly #armAbort = new AbortController();
  #arming: Promise<void> = Promise.resolve();
  #pipeline: EpochPipeline | undefined;
  #lost: Error | undefined;
  #reconnects = 0;
  #isEnding = false;
  readonly #listening: Promise<void>;

  /**
   * Has a standby started on the other host. Takes the link over.
   * @throws KeeperError KEEPER_PEER_REFUSED, KEEPER_PEER_LOST; LinuxError ENOSPC; the signal's reason
   */
  static async open(options: RemoteShadowOptions, signal: AbortSignal): Promise<RemoteShadow> {
    const { link, memoryBytes, epochsInFlightMax, directory, hello } = options;
    const slotCount = epochsInFlightMax + SPARE_SLOTS;
    let image: RemoteImage;
    let shadow: RemoteShadow | undefined;
    const pages = new PageSender(link, {
      nowMs: () => options.clock.nowMs(),
      roundTripMs: () => shadow?.roundTripMs ?? 0,
    });
    const beforeFirst = async () => {
      if (shadow !== undefined) await shadow.#disks?.complete();
    };
    try {
      image = RemoteImage.create({ link, pages, directory, memoryBytes, slotCount, beforeFirst });
    } catch (cause) {
      pages[Symbol.dispose]();
      link.close();
      throw cause;
    }
    shadow = new RemoteShadow(options, { pages, image });
    try {
      const welcome = await shadow.#ask(hello, 'welcome', { deadlineMs: WELCOME_DEADLINE_MS, signal });
      assert(welcome.kind === 'welcome', 'asked for a welcome');
      shadow.#instance = welcome.instance;
      shadow.#hasRelic = welcome.hasRelic;
      shadow.#heldDisks = new Set(welcome.heldDisks);
      await shadow.#listenForLife(welcome);
      return shadow;
    } catch (cause) {
      await shadow[Symbol.asyncDispose]();
      throw cause;
    }
  }

  private constructor(
    options: RemoteShadowOptions,
    { pages, image }: { pages: PageSender; image: RemoteImage },
  ) {
    this.#options = options;
    this.errands = new RemoteErrands(options);
    this.#pages = pages;
    this.#image = image;
    const ask: FillingOptions['ask'] = (words, answer, limits) => this.#ask(words, answer, limits);
    this.#filling = new RemoteFilling({ link: options.link, pages, clock: options.clock, ask });
    this.#listening = this.#listen();
  }

  get copiedShare(): number {
    const { memoryBytes, disks } = this.#options;
    const disksBytes = disks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    const copiedBytes = this.#filling.copiedShare * memoryBytes + this.#disksShare * disksBytes;
    return copiedBytes / (memoryBytes + disksBytes);
  }

  get pipeline(): EpochPipeline | undefined {
    return this.#pipeline;
  }

  /** To its host and back, for what has to wait for nothing. */
  get roundTripMs(): number {
    return this.#pulse?.leastRoundTripMs ?? 0;
  }

  get mayTakeOver(): boolean {
    return this.#mayTakeOver;
  }

  /** It has all that ever left, and is on record as the one that may go on from it. */
  get isOnRecord(): boolean {
    return this.#mayTakeOver && this.#options.right.status().mode === 'in-sync';
  }

  /** The VM is its own from now on: it is not ended with the one that was here. */
  get isHandedOver(): boolean {
    return this.#isHandedOver;
  }

  /** Of the VM, as it was sent there. */
  get firmware(): Uint8Array {
    assert(this.#firmware !== undefined, 'a shadow that was filled has firmware');
    return this.#firmware;
  }

  describe(): ShadowDescription {
    const { sentBytes: sent } = this.#pages;
    return {
      instance: this.#instance,
      pid: null,
      host: this.#options.host,
      sent,
      reconnects: this.#reconnects,
      filled: this.#filling.filled,
      hintedBytes: this.#hints?.hintedBytes,
      paths: this.#pulse?.status(),
    };
  }

  /** Its connection had broken and there is another one. */
  noteResumed({ outageMs, messages, bytes }: Resumed): void {
    this.#reconnects += 1;
    const { host, publish } = this.#options;
    // The last that it said to hold: those after it were on their way, and go on.
    publish('shadow-reconnected', {
      ...{ host, outageMs, fromEpoch: this.#image.held, resentMessages: messages, resentBytes: bytes },
    });
  }

  async fill({ primary, signal }: { primary: Instance; signal: AbortSignal }): Promise<void> {
    const { link, host, clock, publish } = this.#options;
    const firmware = await readFirmware(primary.machine, primary.paths.firmware);
    this.#firmware = firmware;
    await link.send(MESSAGE.firmware, [firmware]);
    const startMs = clock.nowMs();
    await this.#copyDisks(signal);
    await this.#filling.fill(primary, { hasRelic: this.#hasRelic, signal });
    await this.#disks?.catchUp();
    publish('shadow-filled', { host, ...this.#filling.filled, tookMs: clock.nowMs() - startMs });
  }

  async #copyDisks(signal: AbortSignal): Promise<void> {
    const { link, disks } = this.#options;
    if (disks.length === 0) return;
    const onProgress = (share: number) => {
      this.#disksShare = share;
    };
    this.#disks = new DiskCopy({ ...{ link, disks, signal, onProgress }, held: this.#heldDisks });
    if (this.#lost !== undefined) this.#disks.fail(this.#lost);
    await this.#disks.copy();
  }

  begin(options: BeginOptions): void {
    this.#pipeline = beginEpochs(options, this.#image);
  }

  async arm(): Promise<void> {
    const { right, host, hello, link, failpoints } = this.#options;
    // From here on, not from the answer on: that may be late, or get lost.
    this.#mayTakeOver = true;
    await failpoints.hit('arm.before-record');
    this.#arming = right.arm({ host, copy: hello.copy }, this.#armAbort.signal);
    await this.#arming;
    await failpoints.hit('arm.after-record');
    await link.send(MESSAGE.words, [encodeWords({ kind: 'in-sync', token: right.token })]);
    this.noteClaimed(this.#options.claimed());
    this.#beginHints();
  }

  /** From now on nothing but epochs is to be told. */
  #beginHints(): void {
    const { link, disks, clock } = this.#options;
    if (disks.length === 0 || this.#isEnding) return;
    const isIdle = () => this.#image.isIdle;
    this.#hints = new HintSender({ link, clock, isIdle, disks: disks.map(({ reads }) => reads) });
  }

  /** To be announced from there. Nothing depends on it: the network would learn it a little later. */
  noteClaimed(links: ClaimedByLink): void {
    const words = encodeWords({
      kind: 'claimed',
      links: Object.fromEntries(Object.entries(links).map(([name, addresses]) => [name, [...addresses]])),
    });
    this.#options.link.send(MESSAGE.words, [words]).catch(() => {});
  }

  async halt(): Promise<void> {
    await this.#pipeline?.halt();
  }

  /** The QEMU here is dead: the shadow is to act. */
  async handOver({ reason, disk, trace }: HandingOver): Promise<HandOver> {
    const { right } = this.#options;
    try {
      if (!this.#mayTakeOver) throw peerLost(this.#options.host, 'it was not in sync');
      const order: PeerWords = {
        ...{ kind: 'take-over', token: right.token, reason },
        ...(disk !== undefined && { disk }),
        ...(trace !== undefined && { trace }),
      };
      const words = await this.#ask(order, 'acts', { deadlineMs: HAND_OVER_DEADLINE_MS });
      assert(words.kind === 'acts', 'asked whether it acts');
      this.#isHandedOver = true;
      return { kind: 'acts', tookMs: words.tookMs, token: words.token };
    } catch (cause) {
      this.#options.link.forgo();
      const error = messageOf(cause);
      if (!this.#mayTakeOver) return { kind: 'free', error };
      if (disk !== undefined) return await this.#leaveTo(error);
      const outcome = await this.#orUnknown((signal) => right.yieldThenGoAlone(TAKE_OVER_GRACE_MS, signal));
      return outcome === 'granted' ? { kind: 'free', error } : { kind: outcome, error };
    }
  }

  /** What was written last is on no disk of this host: nobody may go on from those here, whatever comes of the shadow. */
  async #leaveTo(error: string): Promise<HandOver> {
    const { link, patience, right } = this.#options;
    this.#isHandedOver = true;
    this.#isEnding = true;
    // If it has not heard the order it acts when it hears nothing at all.
    this.#pulse?.[Symbol.dispose]();
    link.close();
    const isFollowed = await patience.wait((signal) => right.isFollowed(TAKE_OVER_GRACE_MS, signal));
    return { kind: isFollowed === true ? 'superseded' : 'left', error };
  }

  /**
   * Ends it. Resolves when it is certain that it does not take over, or when the VM ends and nobody waits for that any
   * longer: then it still may.
   * @throws KeeperError KEEPER_SUPERSEDED: it has
   */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isEnding = true;
    await this.halt();
    // What is still being written would let it take over after it was given up.
    this.#armAbort.abort(peerLost(this.#options.host, 'it is given up'));
    await this.#arming.catch(() => {});
    if (this.#isHandedOver) return await this.#end();
    const isKnown = await this.#dismiss();
    if (!isKnown && this.#mayTakeOver && (await this.#goAlone()) === 'superseded')
      await this.#end(superseded(this.#options.hello.vm, this.#options.host));
    await this.#end();
  }

  async #end(error?: Error): Promise<void> {
    this.#options.link.close();
    this.#pulse?.[Symbol.dispose]();
    this.#disks?.[Symbol.dispose]();
    this.#hints?.[Symbol.dispose]();
    await this.#image[Symbol.asyncDispose]();
    this.#pages[Symbol.dispose]();
    await this.#listening;
    if (error !== undefined) throw error;
  }

  /** True when it says itself that it has given up. */
  async #dismiss(): Promise<boolean> {
    if (this.#lost !== undefined) return false;
    try {
      await this.#ask({ kind: 'dismiss' }, 'dismissed', { deadlineMs: DISMISS_DEADLINE_MS });
      this.#mayTakeOver = false;
      this.#options.right.dismissed(this.#options.hello);
      return true;
    } catch {
      return false;
    }
  }

  async #goAlone(): Promise<'granted' | 'superseded' | 'unknown'> {
    // Whatever comes of it: this shadow is not heard any more under another right.
    this.#options.link.forgo();
    return await this.#orUnknown((signal) => this.#options.right.goAlone(signal));
  }

  /** Asks who acts, for as long as anybody waits for the answer. */
  async #orUnknown(
    ask: (signal: AbortSignal) => Promise<'granted' | 'superseded'>,
  ): Promise<'granted' | 'superseded' | 'unknown'> {
    const outcome = await this.#options.patience.wait(ask);
    if (outcome === undefined) return 'unknown';
    this.#mayTakeOver = false;
    return outcome;
  }

  async #ask(
    words: PeerWords,
    answer: PeerWords['kind'],
    { deadlineMs, signal }: { deadlineMs: number; signal?: AbortSignal },
  ): Promise<PeerWords> {
    if (this.#lost !== undefined) throw this.#lost;
    const { clock, link, host } = this.#options;
    const asked = Promise.withResolvers<PeerWords>();
    this.#answers.set(answer, asked);
    const cancel = clock.after(deadlineMs, () => asked.reject(peerLost(host, `no answer to ${words.kind}`)));
    const abort = () => asked.reject(signal?.reason);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      signal?.throwIfAborted();
      // What keeps it from being sent is heard of by the answer that does not come.
      link.send(MESSAGE.words, [encodeWords(words)]).catch((cause) => asked.reject(cause));
      return await asked.promise;
    } finally {
      cancel();
      signal?.removeEventListener('abort', abort);
      this.#answers.delete(answer);
    }
  }

  /** Heartbeats in both directions, on all paths. A path that is silent for a while is no loss of the other host. */
  async #listenForLife({ pulsePorts: ports, silenceMinMs }: Welcome): Promise<void> {
    const { addresses, hello, silenceMs, clock, host, path, publish, right } = this.#options;
    const targets = addresses.map((address, index) => ({
      host: address,
      port: ports[index] ?? ports[0] ?? 0,
    }));
    this.#pulse = await PeerPulse.dial(targets, {
      ...{ key: Buffer.from(hello.pulseKey, 'hex'), side: 'primary', silenceMs, clock },
      // By a clock that goes on while this host sleeps: a word of before that is good no more.
      stampMs: bootTimeMs,
      onEcho: (sentMs) => right.noteHeard(hello, { sentMs, silenceMinMs }),
      onEffect: (effect) => {
        if (effect.kind === 'peer-lost')
          this.#lose(peerLost(host, `nothing was heard for ${Math.round(effect.silentMs)} ms`));
        if (effect.kind !== 'path-lost' && effect.kind !== 'path-back') return;
        const which = Number(effect.path);
        publish(effect.kind, { path: which, address: addresses[which] });
        // All others may be about to be told of as well.
        if (effect.kind === 'path-lost' && which === path()) queueMicrotask(() => this.#leavePath());
      },
    });
  }

  /** The link hangs on a path that is dead. The other host lives, and is reached by another one. */
  #leavePath(): void {
    if (this.#pulse?.isThere === true) this.#options.link.renew();
  }

  async #listen(): Promise<void> {
    const { link, host } = this.#options;
    try {
      for await (const message of link.messages()) {
        if (message.type === MESSAGE.words) this.#take(decodeWords(message.body));
        else if (message.type === MESSAGE.hashes) this.#filling.take(message.body);
        else if (message.type === MESSAGE.diskAnswer) this.#disks?.takeAnswer(message.body);
        else this.errands.take(message);
      }
      const reason = await link.closed;
      this.#lose(peerLost(host, reason === undefined ? 'the connection ended' : reason.message));
    } catch (cause) {
      link.close();
      this.#lose(peerLost(host, messageOf(cause)));
    }
  }

  #take(words: PeerWords): void {
    if (words.kind === 'held') this.#image.noteHeld(epochId(words.epoch));
    else if (words.kind === 'leave') this.#giveRoom();
    else if (words.kind === 'refused') this.#refuse(words);
    else this.#answers.get(words.kind)?.resolve(words);
  }

  #refuse(words: Extract<PeerWords, { kind: 'refused' }>): void {
    if (words.code === DISK_FAILED) this.#options.onDiskFailed({ code: words.code, error: words.message });
    this.#lose(refused(this.#options.host, words));
  }

  /** It can still be asked to promise that it does not act. */
  #giveRoom(): void {
    this.#options.onUnwelcome();
    if (!this.#isEnding) this.#options.onLost('its host is to be free of it');
  }

  #lose(error: Error): void {
    if (this.#lost !== undefined) return;
    this.#lost = error;
    this.#image.fail(error);
    this.errands.fail(error);
    this.#disks?.fail(error);
    for (const { reject } of this.#answers.values()) reject(error);
    if (!this.#isEnding) this.#options.onLost(error.message);
  }
}

function refused(host: string, words: Extract<PeerWords, { kind: 'refused' }>): KeeperError {
  const hint = words.hint ?? `See the log on ${host}.`;
  return new KeeperError('KEEPER_PEER_REFUSED', `${host} takes no shadow: ${words.message}`, {
    ...{ hint, facts: { host, reason: words.code } },
  });
}
