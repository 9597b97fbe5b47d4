import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { assert } from '../base/assert.ts';
import type { Failpoints } from '../base/failpoint.ts';
import { readFirmware } from '../qemu/firmware.ts';
import type { EpochPipeline } from '../replication/epoch-pipeline.ts';
import type { StagedEpoch } from '../replication/epoch-slot.ts';
import { copyWhileRunning } from '../replication/full-copy.ts';
import type { ShadowDisks } from '../replication/shadow-disks.ts';
import { ShadowImage, type ShadowImageOptions } from '../replication/shadow-image.ts';
import { SPARE_SLOTS } from './admission.ts';
import type { Instance } from './instance.ts';
import { type BeginOptions, beginEpochs, type Shadow, type ShadowDescription } from './shadow.ts';

/** Left for the first cut by the copy: about a millisecond of pause. */
const REST_PAGES_MAX = 1024;
const FIRMWARE = 'firmware';

export interface SessionOptions {
  readonly epochsInFlightMax: number;
  /** Where staged epochs go; made here, removed with the session. */
  readonly epochsDirectory: string;
  readonly failpoints: Failpoints;
  /** Copies of the disks of a VM that acts on another host. They go with the session unless they were released. */
  readonly disks?: ShadowDisks | undefined;
  /** See {@link ShadowImageOptions}. */
  readonly kept?: ShadowImageOptions['kept'];
  /** Of one CPU, for the standby from its filling on; by default as much as there is. */
  readonly cpuShare?: number;
}

/** What a keeper that was killed left of a shadow that was in sync. */
export type RecoverOptions = Pick<SessionOptions, 'epochsDirectory' | 'failpoints'>;

/**
 * One shadow on this host, in the making or in sync: the standby QEMU, what it holds of the VM, and the epochs on their way
 * to it. Also the end of that way for a VM that acts on another host.
 */
export class ShadowSession implements Shadow {
  /** It does what this process does. */
  readonly mayTakeOver = false;
  readonly standby: Instance;
  readonly image: ShadowImage;
  readonly #epochsDirectory: string;
  #pipeline: EpochPipeline | undefined;
  #copiedShare = 0;
  #cpuShare: number | null = null;
  #firmware: Uint8Array | undefined;

  /** Takes the standby over, also when there is no room for staged epochs. @throws LinuxError ENOSPC */
  static async open(standby: Instance, options: SessionOptions): Promise<ShadowSession> {
    const { epochsDirectory: directory, failpoints, disks, kept, epochsInFlightMax } = options;
    try {
      mkdirSync(directory, { mode: 0o700 });
      const slotCount = epochsInFlightMax + SPARE_SLOTS;
      const { memory } = standby;
      const image = ShadowImage.create({ memory, directory, slotCount, failpoints, disks, kept });
      const session = new ShadowSession(standby, { image, directory });
      session.#cpuShare = options.cpuShare ?? null;
      return session;
    } catch (cause) {
      await options.disks?.[Symbol.asyncDispose]();
      await standby[Symbol.asyncDispose]();
      throw cause;
    }
  }

  /**
   * Makes a VM that stands still its own shadow: its memory is there, its device state and firmware are left in
   * `epochsDirectory`, from where `recover` goes on. @throws LinuxError ENOSPC
   */
  static leave(
    epochsDirectory: string,
    { firmware, ...state }: Parameters<typeof ShadowImage.leave>[1] & { readonly firmware: Uint8Array },
  ): void {
    rmSync(epochsDirectory, { recursive: true, force: true });
    mkdirSync(epochsDirectory, { mode: 0o700 });
    writeFileSync(join(epochsDirectory, FIRMWARE), firmware, { mode: 0o600 });
    ShadowImage.leave(epochsDirectory, state);
  }

  /**
   * The shadow that a killed keeper left: `standby` is a new QEMU on the old one's memory. Good for a promotion only.
   * @throws ReplicationError REPLICATION_EPOCH_CORRUPT; the standby stays the caller's then
   */
  static recover(
    standby: Instance,
    { epochsDirectory: directory, failpoints }: RecoverOptions,
  ): ShadowSession {
    const firmware = readFileSync(join(directory, FIRMWARE));
    const image = ShadowImage.recover({ memory: standby.memory, directory, failpoints });
    const session = new ShadowSession(standby, { image, directory });
    session.#firmware = firmware;
    return session;
  }

  private constructor(standby: Instance, { image, directory }: { image: ShadowImage; directory: string }) {
    this.standby = standby;
    this.image = image;
    this.#epochsDirectory = directory;
  }

  describe(): ShadowDescription {
    return {
      instance: this.standby.number,
      pid: this.standby.pid,
      host: undefined,
      sent: undefined,
      reconnects: undefined,
      filled: undefined,
    };
  }

  get copiedShare(): number {
    return this.#copiedShare;
  }

  /** What the standby boots from when its guest reboots. */
  get firmware(): Uint8Array {
    assert(this.#firmware !== undefined, 'a shadow that was filled has firmware');
    return this.#firmware;
  }

  get pipeline(): EpochPipeline | undefined {
    return this.#pipeline;
  }

  /** The firmware of the VM that acts. */
  takeFirmware(firmware: Uint8Array): void {
    this.#firmware = firmware;
    writeFileSync(join(this.#epochsDirectory, FIRMWARE), firmware, { mode: 0o600 });
  }

  async fill({ primary, signal }: { primary: Instance; signal: AbortSignal }): Promise<void> {
    // Not before: one that is told to end while it has little of a CPU takes its time.
    this.standby.limitCpu(this.#cpuShare);
    this.takeFirmware(await readFirmware(primary.machine, primary.paths.firmware));
    await copyWhileRunning({
      from: primary.memory,
      to: this.standby.memory,
      dirtyLog: primary.dirtyLog,
      restPagesMax: REST_PAGES_MAX,
      signal,
      onProgress: (copied, total) => {
        this.#copiedShare = total === 0 ? 1 : copied / total;
      },
    });
    this.#copiedShare = 1;
  }

  begin(options: BeginOptions): void {
    this.#pipeline = beginEpochs(options, this.image);
  }

  /** Nothing to do: there is no other keeper. */
  async arm(): Promise<void> {}

  async halt(): Promise<void> {
    await this.#pipeline?.halt();
  }

  /** The last committed epoch, whole in the standby's memory. */
  settle(): Promise<StagedEpoch> {
    return this.image.settle();
  }

  /** Releases the staged epochs; the standby lives on as the primary. */
  async releaseEpochs(): Promise<void> {
    await this.image[Symbol.asyncDispose]();
    rmSync(this.#epochsDirectory, { recursive: true, force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // In reverse, and each also when another one fails: no QEMU may outlive its keeper.
    await using ending = new AsyncDisposableStack();
    ending.use(this.standby);
    ending.use(this.image.disks);
    ending.defer(() => this.releaseEpochs());
    ending.defer(() => this.halt());
  }
}
