import { type Clock, systemClock } from '../base/clock.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { REGION_BYTES } from '../block/dirty-regions.ts';
import type { DiskHint } from './disk-messages.ts';

export interface CacheWarmerOptions {
  /** By their numbers. */
  readonly devices: readonly Pick<BlockDevice, 'sizeBytes' | 'read'>[];
  /** Resolves when nothing is being written to them; rejects when the signal is aborted first. */
  readonly idle: (signal: AbortSignal) => Promise<void>;
  readonly clock?: Clock;
}

/** 64 MiB that is not read yet; of more than that the oldest is forgotten. */
const WAITING_REGIONS_MAX = 1024;
/** Read in a row, and how long nothing is read after it: 64 MiB/s, so that nobody else's disk is in want of it. */
const BURST_REGIONS = 16;
const REST_MS = 16;
/** Epochs that follow one another without a break hold one read up for so long: 3 MiB/s are left then. */
const GIVE_WAY_MS = 20;

/**
 * Reads what it is told to, for no other reason than that it is in the page cache of this host afterwards: the guest of a
 * shadow that takes over reads on where it was. One read at a time, which gives way to epochs that are being written. An error is
 * of no concern here: who has to rely on the disk meets it as well.
 */
export class CacheWarmer {
  readonly #options: CacheWarmerOptions;
  readonly #waiting = new Map<string, { readonly disk: number; readonly offset: number }>();
  readonly #warmedBytes: number[];
  readonly #scratch = Buffer.alloc(REGION_BYTES);
  #working: Promise<void> | undefined;
  #reading: Promise<void> | undefined;
  #isOver = false;

  constructor(options: CacheWarmerOptions) {
    this.#options = options;
    this.#warmedBytes = options.devices.map(() => 0);
  }

  get waitingBytes(): number {
    return this.#waiting.size * REGION_BYTES;
  }

  warmedBytes(disk: number): number {
    return this.#warmedBytes[disk] ?? 0;
  }

  /** They lie inside of their disks, whoever calls has seen to that. Waits for nothing. */
  want(hints: readonly DiskHint[]): void {
    if (this.#isOver) return;
    for (const { disk, offset, lengthBytes } of hints)
      for (let at = offset - (offset % REGION_BYTES); at < offset + lengthBytes; at += REGION_BYTES) {
        const [oldest] = this.#waiting.keys();
        if (this.#waiting.size === WAITING_REGIONS_MAX && oldest !== undefined) this.#waiting.delete(oldest);
        this.#waiting.set(`${disk}:${at}`, { disk, offset: at });
      }
    this.#working ??= this.#work();
  }

  /** Nothing more is begun. A read that is being made may take as long as a disk takes that is about to fail. */
  stop(): void {
    this.#isOver = true;
    this.#waiting.clear();
  }

  /** Nothing is read any more when this resolves: after the read that is being made, if there is one. */
  async end(): Promise<void> {
    this.stop();
    await this.#reading;
  }

  async #work(): Promise<void> {
    const { clock = systemClock } = this.#options;
    for (let count = 1; ; count += 1) {
      await this.#giveWay(clock);
      const [next] = this.#waiting;
      if (next === undefined) break;
      this.#waiting.delete(next[0]);
      this.#reading = this.#read(next[1]);
      await this.#reading;
      if (count % BURST_REGIONS === 0) await clock.sleep(REST_MS);
    }
    this.#working = undefined;
  }

  async #giveWay(clock: Clock): Promise<void> {
    const late = new AbortController();
    const cancel = clock.after(GIVE_WAY_MS, () => late.abort());
    await this.#options.idle(late.signal).catch(() => {});
    cancel();
  }

  async #read({ disk, offset }: { readonly disk: number; readonly offset: number }): Promise<void> {
    const device = this.#options.devices[disk];
    if (device === undefined) return;
    const lengthBytes = Math.min(REGION_BYTES, device.sizeBytes - offset);
    try {
      await device.read(offset, this.#scratch.subarray(0, lengthBytes));
      this.#warmedBytes[disk] = this.warmedBytes(disk) + lengthBytes;
    } catch {}
  }
}

export const WAITING_BYTES_MAX = WAITING_REGIONS_MAX * REGION_BYTES;
