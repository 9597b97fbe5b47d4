import { execFileSync } from 'node:child_process';
import { closeSync } from 'node:fs';
import { watchReadable } from '../../src/linux/event-watch.ts';
import { readInto, writeFrom } from '../../src/linux/poll.ts';
import { openTap } from '../../src/linux/tap.ts';

const DEVICE = 'rough0';
const FRAME_BYTES_MAX = 2048;
const FRAMES_PER_TURN = 64;

/** What becomes of frames on their way. */
export interface Roughness {
  readonly lossShare?: number;
  readonly doubledShare?: number;
  readonly delayMs?: number;
  /** Up to so much longer, each frame by itself: so they overtake each other. */
  readonly jitterMs?: number;
}

export interface WireEnd {
  readonly netns: string;
  /** Each has its counterpart at the same place of the other end. */
  readonly addresses: readonly string[];
}

/**
 * A way between two hosts that loses, delays, doubles and reorders frames, made of two TAPs and this process: kernels without
 * netem have it as well. As long as it exists, all that one end sends to the other goes this way, also on connections that
 * stand already.
 */
export class RoughWire implements Disposable {
  readonly #ends: readonly { readonly fd: number; readonly watch: Disposable }[];
  readonly #roughness: Roughness;
  readonly #random: () => number;
  readonly #frame = Buffer.alloc(FRAME_BYTES_MAX);
  #isOpen = true;

  constructor(between: readonly [WireEnd, WireEnd], roughness: Roughness, random: () => number) {
    this.#roughness = roughness;
    this.#random = random;
    const fds = between.map(({ netns }) => {
      const fd = openTap({ device: DEVICE, netns });
      ip(netns, 'link', 'set', 'dev', DEVICE, 'up');
      return fd;
    });
    this.#ends = fds.map((fd, index) => {
      const other = fds[1 - index] as number;
      return { fd, watch: watchReadable(fd, () => this.#carry(fd, other), { keepsRunning: false }) };
    });
    for (const [index, { netns, addresses }] of between.entries()) {
      const far = between[1 - index] as WireEnd;
      for (const [path, address] of far.addresses.entries())
        ip(netns, 'route', 'replace', `${address}/32`, 'dev', DEVICE, 'src', addresses[path] as string);
    }
  }

  /** The way between them is what it was before. */
  [Symbol.dispose](): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    for (const { fd, watch } of this.#ends) {
      watch[Symbol.dispose]();
      // Device and route go with it.
      closeSync(fd);
    }
  }

  #carry(from: number, to: number): void {
    for (let count = 0; count < FRAMES_PER_TURN; count += 1) {
      const length = readInto(from, this.#frame);
      if (length === undefined) return;
      const { lossShare = 0, doubledShare = 0 } = this.#roughness;
      if (this.#random() < lossShare) continue;
      const frame = Buffer.from(this.#frame.subarray(0, length));
      this.#pass(to, frame);
      if (this.#random() < doubledShare) this.#pass(to, frame);
    }
  }

  #pass(to: number, frame: Buffer): void {
    const { delayMs = 0, jitterMs = 0 } = this.#roughness;
    setTimeout(() => this.#isOpen && writeFrom(to, frame), delayMs + this.#random() * jitterMs);
  }
}

function ip(netns: string, ...words: string[]): void {
  execFileSync('ip', ['-n', netns, ...words]);
}
