import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { SmallTmpfs } from '../../test/kit/small-tmpfs.ts';
import { systemClock as clock } from '../base/clock.ts';
import { ConditionWaiters } from '../base/condition-waiters.ts';
import { Failpoints } from '../base/failpoint.ts';
import { silentLogger as log } from '../base/logger.ts';
import { MIB } from '../base/units.ts';
import { journalPathOf } from '../block/journal-file.ts';
import { NbdClientDevice } from '../block/nbd-client-device.ts';
import { servedDisks } from '../config/spec-disks.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import { epochId } from '../epoch/epoch-id.ts';
import { leasePolicy } from '../lease/lease-state.ts';
import type { PeerLink } from '../replication/peer-link.ts';
import { linkWithin } from '../replication/peer-link-fixture.ts';
import {
  decodeWords,
  encodeWords,
  type FailedDisk,
  MESSAGE,
  PEER_PROTOCOL,
  type PeerWords,
} from '../replication/peer-messages.ts';
import {
  DEFAULT_PROTECTION_POLICY,
  goesOnElsewhere,
  INITIAL_PROTECTION,
  type ProtectionState,
  stepProtection,
} from '../shadow/protection.ts';
import { watchDisks } from './disk-opening.ts';
import { RecordPatience } from './record-patience.ts';
import { RecordedRight } from './recorded-right.ts';
import { QuickTime, Store, TTL_MS } from './recorded-right-fixture.ts';
import { RemoteShadow } from './remote-shadow.ts';
import { VmDisks } from './vm-disks.ts';
import { endVm, type VmEnd } from './vm-ending.ts';
import { type OrderedVm, VmOrders } from './vm-orders.ts';
import { leaveToShadow } from './vm-takeover.ts';

const COPY = 7;
const BLOCK_BYTES = 4096;

const WELCOME: PeerWords = {
  ...{ kind: 'welcome', host: 'b', instance: 1, hasRelic: false, pulsePorts: [1], heldDisks: [] },
  silenceMinMs: 300,
};

/** A VM of host a that is being stopped, with a disk and all that belongs to it but a QEMU; its shadow is on host b. */
class Stage implements AsyncDisposable {
  readonly tmpfs: SmallTmpfs;
  readonly store: Store;
  readonly shadow: RemoteShadow;
  readonly there: PeerLink;
  /** What its shadow was told to do. */
  readonly heard: readonly PeerWords[];
  readonly told: string[] = [];
  state: ProtectionState = { ...INITIAL_PROTECTION, phase: 'stopping', stopReason: 'requested' };
  /** Whether the record of the run directory says that what is here may be gone on with. */
  isRecorded = false;
  onOrder: () => Promise<void> = async () => {};
  readonly #disks: VmDisks;
  readonly #options: (host: string) => Parameters<typeof RecordedRight.takeOver>[0];
  readonly #owned: AsyncDisposableStack;
  #failed: FailedDisk | undefined;
  #hasEnded = false;

  /** `isArmed`: it is on record that the shadow may take over. `hasJournalRoom`: not all of the disk fails. */
  static async set({ isArmed = true, hasJournalRoom = false } = {}): Promise<Stage> {
    await using opening = new AsyncDisposableStack();
    const folder = mkdtempSync(`/dev/shm/${marked('ending')}-`);
    opening.defer(() => rmSync(folder, { recursive: true }));
    const tmpfs = opening.use(new SmallTmpfs(8 * MIB));
    const time = new QuickTime();
    const store = new Store(time.clock);
    const failpoints = new Failpoints();
    const options = (host: string) => ({
      ...{ store: store.seenBy(host), vm: 'one', host, policy: leasePolicy({ holdTtlMs: TTL_MS }) },
      ...{ clock: time.clock, bootTimeMs: () => time.clock.nowMs(), log, failpoints },
    });
    const right = opening.use(
      await RecordedRight.begin(options('a'), { fromScratch: true, anew: false, writesDisks: true }),
    );
    const image = join(tmpfs.path, 'disk.raw');
    writeFileSync(image, '');
    truncateSync(image, 4 * MIB);
    const yaml = `name: one\nmemory: 64M\nboot: {kernel: k}\ndisks: [{path: ${image}, format: raw}]\n`;
    const served = servedDisks(parseVmSpec(yaml, { source: 'one.yaml' }));
    const disks = opening.use(
      await VmDisks.open(
        { served, recovered: [] },
        { runDirectory: folder, clock, user: undefined, token: () => 1, left: undefined },
      ),
    );
    if (hasJournalRoom)
      execFileSync('fallocate', ['--keep-size', '--length', `${MIB}`, journalPathOf(image)]);
    const { near, far } = linkWithin();
    const heard: PeerWords[] = [];
    let stage: Stage | undefined;
    const hearing = (async () => {
      for await (const { type, body } of far.messages()) {
        if (type !== MESSAGE.words) continue;
        const words = decodeWords(body);
        if (words.kind === 'take-over' || words.kind === 'dismiss') heard.push(words);
        if (words.kind === 'hello') await far.send(MESSAGE.words, [encodeWords(WELCOME)]);
        if (words.kind === 'take-over') await stage?.onOrder();
        if (words.kind === 'dismiss') await far.send(MESSAGE.words, [encodeWords({ kind: 'dismissed' })]);
      }
    })();
    opening.defer(() => hearing);
    opening.defer(() => far.close());
    const shadow = await RemoteShadow.open(
      {
        ...{ link: near, clock, failpoints, host: 'b', addresses: ['127.0.0.1'], path: () => 0, disks: [] },
        ...{ silenceMs: { min: 60_000, max: 60_000 }, memoryBytes: MIB, epochsInFlightMax: 1 },
        ...{ right, claimed: () => ({}), patience: new RecordPatience(time.clock), onDiskFailed: () => {} },
        ...{ directory: join(folder, 'outgoing'), onUnwelcome: () => {}, publish: () => {} },
        onLost: () => {},
        hello: {
          ...{
            kind: 'hello',
            protocol: PEER_PROTOCOL,
            vm: 'one',
            copy: COPY,
            spec: { text: '', source: '' },
          },
          ...{ token: 1, rightToken: right.token, presencePort: 1, epoch: 1, qemuVersion: '1', accel: 'tcg' },
          ...{ files: {}, disks: [], pulseKey: 'ab'.repeat(32) },
        },
      },
      AbortSignal.timeout(20_000),
    );
    if (isArmed) await shadow.arm();
    stage = new Stage({ tmpfs, store, shadow, there: far, heard, disks, options, owned: opening.move() });
    await stage.#writeAhead(join(folder, 'disks'));
    return stage;
  }

  private constructor(parts: {
    tmpfs: SmallTmpfs;
    store: Store;
    shadow: RemoteShadow;
    there: PeerLink;
    heard: readonly PeerWords[];
    disks: VmDisks;
    options: (host: string) => Parameters<typeof RecordedRight.takeOver>[0];
    owned: AsyncDisposableStack;
  }) {
    this.tmpfs = parts.tmpfs;
    this.store = parts.store;
    this.shadow = parts.shadow;
    this.there = parts.there;
    this.heard = parts.heard;
    this.#disks = parts.disks;
    this.#options = parts.options;
    this.#owned = parts.owned;
    watchDisks({
      ...{ disks: parts.disks, right: undefined },
      shadow: { current: parts.shadow, pipeline: undefined, freeze: () => {} },
      state: () => this.state,
      publish: (kind) => this.told.push(kind),
      dispatch: () => {},
      losePrimary: () => {},
      noteFailed: (disk) => {
        this.#failed = disk;
      },
    });
  }

  /** What a guest is told is on its disk, and is not in the image. */
  async #writeAhead(socketPath: string): Promise<void> {
    await this.#disks.serve({ instance: 1, socketPath, owner: undefined });
    const qemu = await NbdClientDevice.connect(socketPath, { exportName: 'disk0' });
    for (const source of this.#disks.beginEpochs(() => {}, { remote: {} })) source.seal(epochId(1));
    await qemu.write(0, Buffer.alloc(BLOCK_BYTES, 1));
    await qemu.flush();
    await qemu.close();
  }

  /** Host b does as it is told. */
  async takeOver(): Promise<boolean> {
    const taken = await RecordedRight.takeOver(this.#options('b'), { copy: COPY });
    if (taken !== undefined) this.#owned.use(taken.right);
    return taken !== undefined;
  }

  async leaveDisks(): Promise<void> {
    await this.#disks.leave(() => {
      this.isRecorded = true;
    });
  }

  async end(): Promise<void> {
    const { shadow } = this;
    this.#hasEnded = true;
    const vm = {
      options: { clock } as Parameters<typeof leaveToShadow>[0]['options'],
      shadow: { current: shadow } as unknown as Parameters<typeof leaveToShadow>[0]['shadow'],
      loss: () => ({ atMs: 0, noticedAtMs: 0, reason: undefined, disk: undefined, trace: undefined }),
      publish: (kind: string) => this.told.push(kind),
      dispatch: (event: Parameters<typeof stepProtection>[1]) => {
        this.state = stepProtection(this.state, event, DEFAULT_PROTECTION_POLICY).next;
      },
      removeOldPrimary: async () => {},
    };
    const isElsewhere = () => goesOnElsewhere(this.state.stopReason) || shadow.isHandedOver;
    await endVm({
      ...{ vm: 'one', links: undefined, primary: undefined, log, isElsewhere },
      ...{ keepsRelic: async () => false, endSaving: async () => {} },
      leaveDisks: () => this.leaveDisks().catch((cause) => leaveToShadow(vm, { disk: this.#failed, cause })),
      disks: { [Symbol.asyncDispose]: async () => {} },
      dropShadow: () => shadow[Symbol.asyncDispose](),
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.there.close();
    if (!this.#hasEnded) await this.shadow[Symbol.asyncDispose]();
    await this.#owned[Symbol.asyncDispose]();
  }
}

const kindsOf = (words: readonly PeerWords[]) => words.map(({ kind }) => kind);

describe('a VM that ends while its shadow on another host has what its disk lacks', () => {
  it('is given up there when its disk takes all of it (control)', async () => {
    await using stage = await Stage.set();
    await stage.end();
    expect(stage).toMatchObject({ isRecorded: true, told: [] });
    expect(kindsOf(stage.heard)).toEqual(['dismiss']);
    expect(await stage.takeOver()).toBe(false);
  });

  it('goes on there when the disk here is full, and is not given up', async () => {
    await using stage = await Stage.set();
    stage.onOrder = async () => {
      await stage.takeOver();
      await stage.there.send(MESSAGE.words, [encodeWords({ kind: 'acts', token: 9, tookMs: 1 })]);
    };
    stage.tmpfs.fill();
    await stage.end();
    expect(stage.heard).toEqual([
      expect.objectContaining({
        ...{ kind: 'take-over', reason: 'disk-failed' },
        disk: expect.objectContaining({ code: 'BLOCK_DISK_FAILED', error: expect.stringMatching(/ENOSPC/) }),
      }),
    ]);
    expect(stage.told).toEqual(['disk-failed', 'primary-lost', 'moved']);
    expect(stage.state.stopReason).toBe('moved');
    expect(stage.store.record).toMatchObject({ holder: 'b' });
    // A keeper that is killed meanwhile leaves nothing that could be gone on with here.
    expect(stage.isRecorded).toBe(false);
  });

  it('is left to it on record when it does not answer, and goes on there later', async () => {
    await using stage = await Stage.set();
    stage.tmpfs.fill();
    stage.there.close();
    await stage.end();
    expect(stage.told).toEqual(['disk-failed', 'primary-lost', 'hand-over-unanswered']);
    expect(stage.state.stopReason).toBe('requested');
    expect(stage.shadow).toMatchObject({ isHandedOver: true, mayTakeOver: true });
    expect(stage.store.record).toMatchObject({ holder: 'a', mode: 'in-sync' });
    expect(await stage.takeOver()).toBe(true);
  });

  it.each([false, true])(
    'keeps failing to be left, so that nothing leaves that is on no disk (with room for a journal: %s)',
    async (hasJournalRoom) => {
      await using stage = await Stage.set({ hasJournalRoom });
      stage.tmpfs.fill();
      for (let times = 0; times < 2; times += 1)
        await expect(stage.leaveDisks()).rejects.toMatchObject({ code: 'BLOCK_DISK_FAILED' });
      expect(stage.isRecorded).toBe(false);
    },
  );

  it('fails where that shadow is not on record as one that may go on', async () => {
    await using stage = await Stage.set({ isArmed: false });
    stage.tmpfs.fill();
    await expect(stage.end()).rejects.toMatchObject({ code: 'BLOCK_DISK_FAILED' });
    expect(kindsOf(stage.heard)).toEqual(['dismiss']);
  });
});

describe('an order to end a VM, or to leave its shadow,', () => {
  const order = {
    stop: (orders: VmOrders) => orders.stop({ graceful: false }),
    unprotect: (orders: VmOrders) => orders.unprotect(),
  };

  it.each(['stop', 'unprotect'] as const)(
    'says where it goes on if its disk failed in that: %s',
    async (kind) => {
      const carriedOut = (end: VmEnd) => {
        const vm = {
          options: { spec: { name: 'one', termination: 'remove' } },
          ...{ waiters: new ConditionWaiters(), patience: new RecordPatience(clock) },
          ...{ finished: Promise.resolve(end), onBehalf: () => {}, dispatch: () => {} },
          state: () => ({ ...INITIAL_PROTECTION, phase: 'stopping', wanted: false, dropping: 1 }),
        };
        return order[kind](new VmOrders(vm as unknown as OrderedVm));
      };
      await expect(carriedOut({ reason: 'moved', leftTo: 'b' })).rejects.toMatchObject({
        ...{
          code: 'KEEPER_DISK_FAILED',
          message: expect.stringMatching(/goes on at b/),
          facts: { host: 'b' },
        },
        hint: expect.stringMatching(/understudy stop one/),
      });
      await expect(carriedOut({ reason: 'requested', leftTo: 'b', isOnRecord: false })).rejects.toMatchObject(
        {
          ...{ code: 'KEEPER_DISK_FAILED', message: expect.stringMatching(/left to its shadow on b/) },
        },
      );
      await expect(carriedOut({ reason: 'requested', isOnRecord: true })).resolves.toBeUndefined();
    },
  );
});
