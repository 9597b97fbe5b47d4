import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { Failpoints } from '../base/failpoint.ts';
import { silentLogger as log } from '../base/logger.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { KeeperError } from '../control/keeper-error.ts';
import type { SnapshotOrder, SnapshotReport } from '../control/snapshot-report.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import type { Phase } from '../shadow/protection.ts';
import { damageChunk, FIXTURE_FACTS, writePages } from '../snapshot/snapshot-fixture.ts';
import { SnapshotStore } from '../snapshot/snapshot-store.ts';
import { snapshotStill } from '../snapshot/snapshot-writer.ts';
import { OwnSnapshots } from './own-snapshots.ts';

const HOUR_MS = 3_600_000;

let directory: string;

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('own')}-`);
  onTestFinished(() => rmSync(directory, { recursive: true }));
});

/** A clock that stands where it is put. */
class PutClock {
  ms = 1_700_000_000_000;
  readonly #waiting = new Set<{ readonly atMs: number; readonly wake: () => void }>();

  nowMs = () => this.ms;
  wallMs = () => this.ms;
  after = () => () => {};
  sleep = (ms: number, signal?: AbortSignal) =>
    new Promise<void>((resolve) => {
      this.#waiting.add({ atMs: this.ms + ms, wake: resolve });
      signal?.addEventListener('abort', () => resolve(), { once: true });
    });

  /** Whoever waits for less than this is woken at its time, one after the other. */
  async pass(ms: number): Promise<void> {
    const endMs = this.ms + ms;
    for (;;) {
      for (let turn = 0; turn < 30; turn += 1) await new Promise<void>((resolve) => setImmediate(resolve));
      const next = [...this.#waiting].sort((one, other) => one.atMs - other.atMs)[0];
      if (next === undefined || next.atMs > endMs) break;
      this.#waiting.delete(next);
      this.ms = Math.max(this.ms, next.atMs);
      next.wake();
    }
    this.ms = endMs;
  }
}

/** A VM that leaves real snapshot files, without a QEMU. */
class World {
  readonly clock = new PutClock();
  readonly failpoints = new Failpoints();
  readonly events: { kind: string; facts: Readonly<Record<string, unknown>> }[] = [];
  readonly store = new SnapshotStore(directory, 'vm');
  readonly orders: SnapshotOrder[] = [];
  phase: Phase = 'protected';
  /** Instead of writing one. */
  refuse: (() => Error) | undefined;
  afterWriting: (path: string) => void = () => {};
  readonly #memory = GuestMemory.create(
    join(directory, `ram-${crypto.randomUUID()}`),
    FIXTURE_FACTS.memoryBytes,
  );
  #writing = 0;

  constructor() {
    writePages(this.#memory, new Map([[3, 'noise' as const]]));
  }

  /** As another keeper of the same VM would begin. */
  keeper(said: Partial<NonNullable<VmSpec['snapshots']>> = {}): OwnSnapshots {
    const snapshots = { everyMs: HOUR_MS, keep: 3, daily: 0, onShutdown: false, directory, ...said };
    const { clock, failpoints } = this;
    const own = new OwnSnapshots({
      options: { spec: { name: 'vm', snapshots } as VmSpec, clock, failpoints, log },
      phase: () => this.phase,
      publish: (kind, facts) => this.events.push({ kind, facts }),
      snapshot: (order) => this.write(order),
    });
    own.start();
    onTestFinished(() => own[Symbol.asyncDispose]());
    return own;
  }

  /** Nothing is being written, verified or removed. */
  async idle(): Promise<void> {
    for (let turns = 0; turns < 20; turns = this.isBusy() ? 0 : turns + 1)
      await new Promise<void>((resolve) => setTimeout(resolve, 2));
  }

  kinds(): string[] {
    return this.events.map(({ kind }) => kind);
  }

  isBusy(): boolean {
    return this.#writing > 0;
  }

  async write(order: SnapshotOrder): Promise<SnapshotReport> {
    this.#writing += 1;
    try {
      return await this.#written(order);
    } finally {
      this.#writing -= 1;
    }
  }

  async #written(order: SnapshotOrder): Promise<SnapshotReport> {
    this.orders.push(order);
    if (this.refuse !== undefined) throw this.refuse();
    const facts = { ...FIXTURE_FACTS, savedAtMs: this.clock.ms, reason: order.reason ?? 'manual' };
    const written = await snapshotStill({
      ...{ path: order.path, key: undefined, spec: Buffer.alloc(0), firmware: Buffer.alloc(0), facts },
      ...{ memory: this.#memory, deviceState: Buffer.from('devices') },
      ...{ signal: new AbortController().signal, onProgress: () => {} },
    });
    this.afterWriting(order.path);
    return { ...written, path: order.path, tookMs: 0 };
  }
}

/** Until so many were asked for, or as long as none is. Real files take their time, however the clock stands. */
async function settled(world: World, count: number): Promise<void> {
  for (let minute = 0; minute < 200 && world.orders.length < count; minute += 1)
    await world.clock.pass(60_000);
  expect(world.orders).toHaveLength(count);
  await world.idle();
}

describe('snapshots by schedule', () => {
  it('are taken at every moment of it, and the oldest of them goes when a new one is whole', async () => {
    const world = new World();
    const own = world.keeper();
    for (let count = 1; count <= 5; count += 1) await settled(world, count);
    const kept = world.store.list();
    expect(kept.map(({ outline }) => outline?.facts.reason)).toEqual(['schedule', 'schedule', 'schedule']);
    expect(own.measure()).toMatchObject({ taken: 5, failed: 0, skipped: 0 });
    expect(world.kinds()).toEqual(['snapshots-expired', 'snapshots-expired']);
    const times = world.store.list().map(({ outline }) => outline?.facts.savedAtMs ?? 0);
    expect((times[0] ?? 0) - (times[1] ?? 0)).toBe(HOUR_MS);
  });

  it('are not taken twice for one moment when another keeper goes on, and made up for when it was missed', async () => {
    const world = new World();
    await using before = world.keeper();
    await settled(world, 1);
    await before[Symbol.asyncDispose]();
    const left = world.clock.ms;
    const after = world.keeper();
    await world.clock.pass(HOUR_MS / 2);
    expect(world.orders).toHaveLength(1);
    expect(after.measure()).toMatchObject({ taken: 0, ageMs: expect.any(Number) });
    await after[Symbol.asyncDispose]();
    // Nobody kept it for a day.
    world.clock.ms = left + 24 * HOUR_MS;
    world.keeper();
    await settled(world, 2);
    // At once, but for what spreads many VMs.
    expect(world.clock.ms - left - 24 * HOUR_MS).toBeLessThanOrEqual(2 * 60_000);
  });

  it('leave alone what somebody asked for, and what cannot be read', async () => {
    const world = new World();
    const manual = world.store.newPath(world.clock.ms - 1000 * HOUR_MS);
    const damaged = world.store.newPath(world.clock.ms - 999 * HOUR_MS);
    await world.write({ path: manual });
    writeFileSync(damaged, 'nothing of a snapshot');
    world.keeper({ keep: 1 });
    await settled(world, 2);
    await settled(world, 3);
    expect(existsSync(manual)).toBe(true);
    expect(existsSync(damaged)).toBe(true);
  });

  it('are skipped without a shadow in sync, which is said once, and made up for as soon as there is one', async () => {
    const world = new World();
    world.phase = 'alone';
    const own = world.keeper();
    await world.clock.pass(HOUR_MS + HOUR_MS / 2);
    expect(world.kinds()).toEqual(['snapshot-skipped']);
    expect(world.events[0]?.facts).toMatchObject({ code: 'KEEPER_NOT_PROTECTED', reason: 'schedule' });
    expect(world.orders).toEqual([]);
    world.phase = 'protected';
    await settled(world, 1);
    expect(own.measure()).toMatchObject({ taken: 1, skipped: 1 });
  });

  it('are skipped while somebody else uses the shadow, or it is needed', async () => {
    const world = new World();
    world.refuse = () => new KeeperError('KEEPER_TEST_UNDER_WAY', 'the failover of vm is being tested');
    const own = world.keeper();
    await settled(world, 1);
    world.refuse = undefined;
    await settled(world, 2);
    expect(own.measure()).toMatchObject({ taken: 1, skipped: 1, failed: 0 });
  });

  it('spare the old ones when the new one is damaged', async () => {
    const world = new World();
    const own = world.keeper({ keep: 1 });
    await settled(world, 1);
    const [good] = world.store.list();
    world.afterWriting = (path) => damageChunk(path, 0);
    await settled(world, 2);
    expect(existsSync(good?.path ?? '')).toBe(true);
    expect(own.measure()).toMatchObject({ taken: 1, failed: 1 });
    expect(world.events.at(-1)).toMatchObject({
      kind: 'snapshot-failed',
      facts: { error: expect.stringContaining('does not fit its checksum') },
    });
  });

  it('are tried again after one that failed', async () => {
    const world = new World();
    world.refuse = () => new Error('no room');
    const own = world.keeper();
    await settled(world, 1);
    world.refuse = undefined;
    await settled(world, 2);
    expect(own.measure()).toMatchObject({ taken: 1, failed: 1 });
  });
});

describe('a snapshot at the shutdown', () => {
  it('is taken once, also of a VM that has to stand still for it, and keeps nothing from being stopped', async () => {
    const world = new World();
    const own = world.keeper({ onShutdown: true });
    await Promise.all([own.beforeShutdown(), own.beforeShutdown()]);
    expect(world.orders).toMatchObject([{ reason: 'shutdown', pause: true }]);
    expect(world.store.list().map(({ outline }) => outline?.facts.reason)).toEqual(['shutdown']);
    const other = new World();
    other.refuse = () => new KeeperError('KEEPER_CANNOT_SAVE', 'its disks are no part of a snapshot');
    await other.keeper({ onShutdown: true }).beforeShutdown();
    expect(other.kinds()).toEqual(['snapshot-failed']);
  });

  it('is not taken where it was not asked for', async () => {
    const world = new World();
    await world.keeper().beforeShutdown();
    expect(world.orders).toEqual([]);
  });
});
