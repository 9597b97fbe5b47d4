import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import { Failpoints } from '../base/failpoint.ts';
import { silentLogger as log } from '../base/logger.ts';
import { BlockError } from '../block/block-error.ts';
import { JournaledImage } from '../block/journaled-image.ts';
import { PowerLog } from '../block/power-fixture.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import { RunDirectory } from '../control/run-directory.ts';
import { leasePolicy } from '../lease/lease-state.ts';
import { ShadowDisks } from '../replication/shadow-disks.ts';
import { RecordPatience } from './record-patience.ts';
import { RecordedRight } from './recorded-right.ts';
import { QuickTime, Store, TTL_MS } from './recorded-right-fixture.ts';
import { recordEnd } from './remote-site.ts';
import type { AskedShadow } from './shadow-hello.ts';
import { actOrGiveBack, ShadowLodging } from './shadow-lodging.ts';
import { twoHosts } from './site-fixture.ts';

const SPEC = 'name: one\nvcpus: 1\nmemory: 64MiB\nboot: {disk: {path: /none, format: raw, readOnly: true}}\n';

describe('room for the shadow of a VM of another host', () => {
  it('is not made at the expense of what is here while nobody can tell who acts as it', async () => {
    const root = mkdtempSync(`/dev/shm/${marked('lodging')}-`);
    onTestFinished(() => {
      vi.unstubAllEnvs();
      rmSync(root, { recursive: true });
    });
    vi.stubEnv('UNDERSTUDY_MEMORY_DIR', join(root, 'memory'));
    vi.stubEnv('UNDERSTUDY_RUN_DIR', join(root, 'run'));
    mkdirSync(join(root, 'memory'), { mode: 0o700 });
    const killed = await RunDirectory.open('one', { clock });
    const memory = join(killed.memoryPath, 'us-one-1.ram');
    mkdirSync(killed.memoryPath, { recursive: true });
    writeFileSync(memory, 'all that there is of a VM');
    killed.leaveHeritage();
    const { a } = await twoHosts(onTestFinished);
    const etcd = { ...a.lease.etcd, endpoints: ['https://127.0.0.1:1'] };
    const site = { ...a, lease: { ...a.lease, etcd } };
    const spec = parseVmSpec(SPEC, { source: 'one.yaml' });
    const asked = { spec, peer: 'b', hello: { token: 9, disks: [] } } as unknown as AskedShadow;
    const signal = new AbortController().signal;
    await expect(ShadowLodging.open(site, asked, { clock, signal })).rejects.toMatchObject({
      code: 'LEASE_STORE_AWAY',
    });
    expect(existsSync(memory)).toBe(true);
    // Whoever comes into the name clears it away (control).
    (await RunDirectory.open('one', { clock })).remove();
    expect(existsSync(memory)).toBe(false);
  });
});

/** The record by the time that the shadow on b has the right to act, and what comes of it when its disk is `lost` just then. */
async function takenOver(lost: BlockError | undefined, how: 'promote' | 'anew') {
  const { clock: quick } = new QuickTime();
  const store = new Store(quick);
  const failpoints = new Failpoints();
  const options = (host: string) => ({
    ...{ store: store.seenBy(host), vm: 'one', host, policy: leasePolicy({ holdTtlMs: TTL_MS }) },
    ...{ clock: quick, bootTimeMs: () => quick.nowMs(), log, failpoints },
  });
  await using before = await RecordedRight.begin(options('a'), { fromScratch: true, anew: false });
  await before.arm({ host: 'b', copy: 1 });
  const taken = await RecordedRight.takeOver(options('b'), { copy: 1 });
  if (taken === undefined) throw new Error('the shadow is on record');
  await using right = taken.right;
  const power = new PowerLog({ image: Buffer.alloc(4096), journal: Buffer.alloc(0) });
  const image = await JournaledImage.open({ device: power.device(), journal: power.journalFile() });
  const disk = { name: 'root', image, token: 1, ...(lost && { lost: Promise.resolve(lost) }) };
  const disks = new ShadowDisks({ failpoints, disks: [disk] });
  const end = async () => {
    if (lost !== undefined) throw lost;
  };
  const session = { image: { disks }, [Symbol.asyncDispose]: end };
  const acting = actOrGiveBack(session, {
    how,
    act: async () => 'acts',
    giveBack: async () => {
      const patience = new RecordPatience(quick);
      await recordEnd(right, { reason: 'failed', log, patience });
    },
  });
  const outcome = await acting.catch(({ code }: BlockError) => code);
  return { outcome, mode: store.record?.mode, holder: store.record?.holder };
}

describe('a shadow that has the right to act', () => {
  it.each(['promote', 'anew'] as const)(
    'gives it back when its disk is lost in that moment (%s), so that others may act',
    async (how) => {
      const lost = new BlockError('BLOCK_DISK_FAILED', 'its process is gone');
      expect(await takenOver(lost, how)).toEqual({
        ...{ outcome: 'BLOCK_DISK_FAILED', mode: 'ended', holder: 'b' },
      });
      expect(await takenOver(undefined, how)).toEqual({ outcome: 'acts', mode: 'alone', holder: 'b' });
    },
  );
});
