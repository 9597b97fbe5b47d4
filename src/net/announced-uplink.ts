import type { Clock } from '../base/clock.ts';
import { announcementFrames, ClaimedAddresses } from './announcement.ts';
import type { FarEnd, FarEndStats } from './far-end.ts';

/** The first at once, and again later: a switch may just be learning, and frames are lost. */
const ANNOUNCE_AFTER_MS = [0, 50, 150, 400, 1000, 2500];

export interface AnnouncedUplinkOptions {
  readonly uplink: FarEnd;
  readonly mac: string;
  readonly clock: Clock;
  /** Addresses that its guest claimed before, elsewhere. */
  readonly known: readonly string[];
  readonly onClaim: () => void;
  /** Whether anything may leave at this moment. */
  readonly mayLeave: () => boolean;
}

/** An uplink that knows which addresses its guest has claimed, and tells the network when they are to be found here. */
export class AnnouncedUplink implements FarEnd {
  readonly #options: AnnouncedUplinkOptions;
  readonly #claimed: ClaimedAddresses;
  #cancels: (() => void)[] = [];

  constructor(options: AnnouncedUplinkOptions) {
    this.#options = options;
    this.#claimed = new ClaimedAddresses(options.mac, { known: options.known, onNew: options.onClaim });
  }

  get addresses(): readonly string[] {
    return this.#claimed.all;
  }

  /** From now on, a few times. */
  announce(): void {
    this.#stop();
    const { clock } = this.#options;
    for (const ms of ANNOUNCE_AFTER_MS) {
      if (ms === 0) this.#sendAll();
      else this.#cancels.push(clock.after(ms, () => this.#sendAll()));
    }
  }

  send(item: Uint8Array): void {
    this.#claimed.note(item);
    this.#options.uplink.send(item);
  }

  receive(receiver: ((item: Uint8Array) => void) | undefined): void {
    this.#options.uplink.receive(receiver);
  }

  pause(): void {
    this.#options.uplink.pause();
  }

  resume(): void {
    this.#options.uplink.resume();
  }

  stats(): FarEndStats {
    return this.#options.uplink.stats();
  }

  async close(): Promise<void> {
    this.#stop();
    await this.#options.uplink.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #sendAll(): void {
    const { mac, uplink, mayLeave } = this.#options;
    if (!mayLeave()) return;
    for (const frame of announcementFrames(mac, this.addresses)) uplink.send(frame);
  }

  #stop(): void {
    for (const cancel of this.#cancels) cancel();
    this.#cancels = [];
  }
}
