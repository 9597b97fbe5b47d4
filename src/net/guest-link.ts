import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import type { TokenBucket } from '../base/token-bucket.ts';
import { KIB, MIB } from '../base/units.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import type { EpochParticipant } from '../epoch/participant.ts';
import type { FarEnd } from './far-end.ts';
import type { Framing } from './framing.ts';
import { InputLog } from './input-log.ts';
import type { NetError } from './net-error.ts';
import { OutputGate, type Releasable } from './output-gate.ts';
import type { QemuPort } from './qemu-port.ts';

export interface GuestLinkOptions {
  readonly name: string;
  readonly framing: Framing;
  /** Stays the property of whoever opened it. */
  readonly farEnd: FarEnd;
  readonly clock: Clock;
  /** Output began to wait for the epoch that is open now: time for a cut. */
  readonly onHeld: () => void;
  /** The QEMU that acts closed the channel, or was cut off because what it sent made no sense. */
  readonly onDisconnected: (error: NetError | undefined) => void;
  /** Whether an item of output may leave now; see OutputGate. */
  readonly mayRelease?: ((what: Releasable) => boolean) | undefined;
  /** How much may go through in both directions, of all links that share it. What waits stays in order, and whole. */
  readonly pace?: TokenBucket | undefined;
  readonly limits?: GuestLinkLimits;
  /** Negative controls for tests. Not reachable from a specification. */
  readonly unsafe?: UnsafeLink;
}

export interface GuestLinkLimits {
  /** Output that may wait before QEMU is not read from any more. */
  readonly heldBytes?: number;
  /** Input that may wait, or be kept, before the far end is not read from any more. */
  readonly loggedBytes?: number;
}

/** Each switch takes one protection away, so that a test can show that it would notice. */
export interface UnsafeLink {
  /** Output leaves before its epoch is committed. */
  readonly releaseUncommitted?: boolean;
  /** The cut forgets input that was handed over, whether QEMU had read it or not. */
  readonly forgetInputAtCut?: boolean;
}

/** Since the link exists; what is repeated after a takeover counts again. */
export interface LinkTraffic {
  /** From the guest, as it left. */
  readonly sentItems: number;
  readonly sentBytes: number;
  /** To the guest, as it arrived. */
  readonly receivedItems: number;
  readonly receivedBytes: number;
}

export interface GuestLinkStats {
  /** Output that waits for commits. */
  readonly heldItems: number;
  readonly heldBytes: number;
  /** Output that left, since the link exists. */
  readonly releasedItems: number;
  /** Output of epochs that never happened. */
  readonly droppedItems: number;
  /** Output that left but that the world did not take. */
  readonly refusedItems: number;
  /** Input that no committed epoch holds yet. */
  readonly loggedItems: number;
  readonly loggedBytes: number;
  /** Of these: not yet handed to QEMU. */
  readonly queuedItems: number;
  /** Input that was handed over again. */
  readonly replayedItems: number;
}

/** Output that waits for its pace only: so much of a second's worth, or so many bytes. Who sends more waits then. */
const PACED_S = 0.25;
const PACED_BYTES_MIN = 64 * KIB;

const SAMPLE_DELAY_MIN_MS = 1;
const SAMPLE_DELAY_MAX_MS = 32;

/**
 * One path between a VM and the world: a nic (Ethernet frames) or a byte channel (serial console, guest
 * agent). Output waits for commits; input is kept until a committed epoch holds its effect.
 *
 * A cut, seen from here:   leaveUnread → pauseInput → QEMU `stop`, memory is read → drainOutput → seal(e) →
 *                          QEMU `cont` → readOn, resumeInput
 * A failover:              detach → pauseInput → rollBack → attach(the shadow's port) → QEMU `cont` → resumeInput
 */
export class GuestLink implements EpochParticipant, Disposable {
  readonly name: string;
  readonly #options: GuestLinkOptions;
  readonly #gate: OutputGate;
  readonly #log: InputLog;
  #port: QemuPort | undefined;
  #inputPaused = false;
  #heldTooMuch = false;
  #pacedTooMuch = false;
  #receivedItems = 0;
  #receivedBytes = 0;
  #onNextRelease: (() => void) | undefined;
  #cancelSample: (() => void) | undefined;
  #sampleDelayMs = SAMPLE_DELAY_MIN_MS;

  constructor(options: GuestLinkOptions) {
    this.name = options.name;
    this.#options = options;
    const { farEnd, limits = {}, unsafe = {}, mayRelease } = options;
    this.#gate = new OutputGate({
      release: (item) => this.#release(item),
      onHeld: options.onHeld,
      // In this order: the right to act is asked for at the moment in which an item leaves.
      mayRelease: (what) => this.#hasOutputRoom() && (mayRelease?.(what) ?? true),
      onPressure: (pressed) => this.#pressOutput(pressed),
      limitBytes: limits.heldBytes ?? 32 * MIB,
      unsafeReleaseUncommitted: unsafe.releaseUncommitted ?? false,
    });
    this.#log = new InputLog({
      onPressure: (pressed) => (pressed ? farEnd.pause() : farEnd.resume()),
      limitBytes: limits.loggedBytes ?? 32 * MIB,
      unsafeForgetAtCut: unsafe.forgetInputAtCut ?? false,
    });
    farEnd.receive((item) => this.#takeInput(item));
  }

  /** This QEMU acts from now on. Input that it has not had is handed over first, then what arrives. */
  attach(port: QemuPort): void {
    assert(this.#port === undefined, `${this.name}: one QEMU acts at a time`);
    assert(port.framing === this.#options.framing, `${this.name}: port and link speak the same framing`);
    this.#port = port;
    if (this.#heldTooMuch || this.#pacedTooMuch) port.pauseReading();
    port.open({
      onItem: (item) => {
        this.#gate.push(item);
        this.#pressPaced();
      },
      onRoom: () => this.#pump(),
      onClosed: (error) => this.#options.onDisconnected(error),
    });
    this.#pump();
  }

  /** Fence: closes the port for good. Nothing that this QEMU still sends is looked at. */
  detach(): void {
    this.#port?.disconnect();
    this.#port = undefined;
    this.#stopSampling();
  }

  /** A shadow comes into being: before the cut of its first epoch, output begins to wait and input to be kept. */
  holdOutput(): void {
    this.#log.startLogging();
    this.#gate.hold();
    this.#pressPaced();
  }

  /** There is no shadow in sync: what is held leaves at once, in order; later output passes through. */
  passOutput(): void {
    this.#gate.pass();
    this.#pressPaced();
    this.#log.stopLogging();
    this.#pump();
  }

  get pace(): TokenBucket | undefined {
    return this.#options.pace;
  }

  get carriesFrames(): boolean {
    return this.#options.framing.inputChunkBytes === undefined;
  }

  /** Tells of the next item of output that leaves, once. */
  onNextRelease(tell: () => void): void {
    this.#onNextRelease = tell;
  }

  /** Output that was not allowed to leave may be allowed by now. */
  releaseDue(): void {
    this.#gate.releaseDue();
    this.#pressPaced();
  }

  /** Right before `stop` is sent: nothing is handed to QEMU from now on. Notes what it has read while the VM ran. */
  pauseInput(): void {
    if (this.#inputPaused) return;
    this.#sample();
    this.#inputPaused = true;
    this.#stopSampling();
  }

  /** The VM runs again. */
  resumeInput(): void {
    this.#inputPaused = false;
    this.#pump();
  }

  /**
   * A cut begins: what QEMU sends stays in the socket until `drainOutput` or `readOn`. Reading makes room, and what
   * QEMU hands over then while the VM stands still changes guest memory after its device state was saved.
   * Returns whether QEMU may be about to do so still: it has, once it has answered a command.
   */
  leaveUnread(): boolean {
    const hasMadeRoom = this.#port?.leaveUnread() ?? false;
    return hasMadeRoom && this.#options.framing.isFlushedWhileStopped;
  }

  readOn(): void {
    this.#port?.readOn();
  }

  /**
   * The VM stands still, and its memory and device state are taken: takes in all that it sent before, and nothing
   * of what QEMU sends into the room that this makes, which is of the next epoch.
   */
  drainOutput(): void {
    this.#port?.drain();
  }

  seal(epoch: EpochId): void {
    this.#gate.seal(epoch);
    this.#log.seal(epoch);
  }

  commit(epoch: EpochId): void {
    this.#gate.commit(epoch);
    this.#log.commit(epoch);
  }

  abort(epoch: EpochId): void {
    this.#log.abort(epoch);
    this.#gate.abort(epoch);
  }

  /** What a sealed epoch holds back, to be stored as a part of it. */
  sealedOutput(epoch: EpochId): readonly Uint8Array[] {
    return this.#gate.sealedOutput(epoch);
  }

  /**
   * After `detach`: the shadow goes on from `committed`. Output after it never happened; output up to it leaves
   * now unless it already has. A link in a process that has not seen it leave lets `lastOutput` (stored with
   * the epoch) leave, on doubt a second time. Input that `committed` does not cover is delivered again.
   */
  rollBack(committed: EpochId, lastOutput: readonly Uint8Array[]): void {
    assert(this.#port === undefined, `${this.name}: the old QEMU is fenced off before the shadow goes on`);
    this.#gate.rollBack(committed, lastOutput);
    this.#log.rollBack(committed);
  }

  /** After `detach`: the VM is started cold. Output that waited never happened, and nobody waits for old input. */
  forget(): void {
    assert(this.#port === undefined, `${this.name}: the old QEMU is fenced off before the VM begins anew`);
    this.#gate.forget();
    this.#log.forget();
  }

  /** Whether input waits that QEMU is not known to have read. */
  get hasUnreadInput(): boolean {
    if (!this.#inputPaused) this.#sample();
    return this.#log.hasQueued || this.#log.hasUnread;
  }

  get traffic(): LinkTraffic {
    const { items: sentItems, bytes: sentBytes } = this.#gate.released;
    const [receivedItems, receivedBytes] = [this.#receivedItems, this.#receivedBytes];
    return { sentItems, sentBytes, receivedItems, receivedBytes };
  }

  stats(): GuestLinkStats {
    const { refusedItems } = this.#options.farEnd.stats();
    return { ...this.#gate.stats(), ...this.#log.stats(), refusedItems };
  }

  [Symbol.dispose](): void {
    this.detach();
    this.#options.pace?.forget(this.#onOutputRoom);
    this.#options.pace?.forget(this.#onInputRoom);
    this.#options.farEnd.receive(undefined);
  }

  readonly #onOutputRoom = (): void => this.releaseDue();
  readonly #onInputRoom = (): void => this.#pump();

  #hasOutputRoom(): boolean {
    const { pace } = this.#options;
    if (pace === undefined || pace.isOpen) return true;
    pace.whenOpen(this.#onOutputRoom);
    return false;
  }

  #hasInputRoom(): boolean {
    const { pace } = this.#options;
    if (pace === undefined || pace.isOpen) return true;
    pace.whenOpen(this.#onInputRoom);
    return false;
  }

  #release(item: Uint8Array): void {
    this.#options.pace?.spend(item.length);
    this.#options.farEnd.send(item);
    const tell = this.#onNextRelease;
    this.#onNextRelease = undefined;
    tell?.();
  }

  #takeInput(item: Uint8Array): void {
    const { inputChunkBytes } = this.#options.framing;
    this.#receivedItems += 1;
    this.#receivedBytes += item.length;
    for (let at = 0; at < item.length; ) {
      const end = inputChunkBytes === undefined ? item.length : Math.min(item.length, at + inputChunkBytes);
      this.#log.append(item.subarray(at, end));
      at = end;
    }
    this.#pump();
  }

  /** Hands over what QEMU may have now. */
  #pump(): void {
    const port = this.#port;
    if (port === undefined || this.#inputPaused) return;
    this.#sample();
    while (port.canSend && !this.#mustBeReadFirst()) {
      if (this.#log.hasQueued && !this.#hasInputRoom()) break;
      const item = this.#log.hand();
      if (item === undefined) break;
      this.#options.pace?.spend(item.length);
      port.send(item);
    }
    this.#arrangeSample();
  }

  #mustBeReadFirst(): boolean {
    return this.#options.framing.inputChunkBytes !== undefined && this.#log.hasUnread;
  }

  /** Only while input is not paused: what QEMU reads while the VM stands still does not count. */
  #sample(): void {
    if (!this.#log.hasUnread || !this.#port?.allRead()) return;
    this.#log.markRead();
    this.#sampleDelayMs = SAMPLE_DELAY_MIN_MS;
  }

  /** Nobody says when QEMU has read. Where something waits for just that, look again in a while. */
  #arrangeSample(): void {
    const chunkWaits = this.#mustBeReadFirst() && this.#log.hasQueued;
    const sourceWaits = this.#log.isFull && !this.#gate.isHolding;
    if (this.#cancelSample !== undefined || !this.#log.hasUnread || !(chunkWaits || sourceWaits)) return;
    this.#cancelSample = this.#options.clock.after(this.#sampleDelayMs, () => {
      this.#cancelSample = undefined;
      this.#pump();
    });
    this.#sampleDelayMs = Math.min(this.#sampleDelayMs * 2, SAMPLE_DELAY_MAX_MS);
  }

  #stopSampling(): void {
    this.#cancelSample?.();
    this.#cancelSample = undefined;
  }

  /**
   * QEMU waits once its socket is full, and its guest with it. Last resort: at a stop QEMU drops the one frame
   * that waits in front of a full socket (net_vm_change_state_handler), as a nic may.
   */
  #pressOutput(pressed: boolean): void {
    this.#heldTooMuch = pressed;
    this.#applyPressure();
  }

  /**
   * A guest that sends faster than it may shall notice that soon. Not while there are epochs: each of their stops would cost the
   * frame in front of the full socket.
   */
  #pressPaced(): void {
    const rate = this.#options.pace?.bytesPerSecond ?? null;
    const isTooMuch =
      rate !== null &&
      !this.#gate.isHolding &&
      this.#gate.dueBytes > Math.max(PACED_BYTES_MIN, rate * PACED_S);
    if (isTooMuch === this.#pacedTooMuch) return;
    this.#pacedTooMuch = isTooMuch;
    this.#applyPressure();
  }

  #applyPressure(): void {
    if (this.#heldTooMuch || this.#pacedTooMuch) this.#port?.pauseReading();
    else this.#port?.resumeReading();
  }
}
