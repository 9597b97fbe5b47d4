import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { SnapshotOrder, SnapshotReport } from '../control/snapshot-report.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { damageChunk, FIXTURE_FACTS, writePages } from '../snapshot/snapshot-fixture.ts';
import { snapshotStill } from '../snapshot/snapshot-writer.ts';
import { SnapshotFiles } from './snapshot-files.ts';

let directory: string;
let memory: GuestMemory;
const events: string[] = [];

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('files')}-`);
  memory = GuestMemory.create(join(directory, 'ram'), FIXTURE_FACTS.memoryBytes);
  writePages(memory, new Map([[3, 'noise' as const]]));
  events.length = 0;
  onTestFinished(() => {
    memory[Symbol.dispose]();
    rmSync(directory, { recursive: true });
  });
});

/** As the keeper of a VM does. */
async function write({ path }: SnapshotOrder): Promise<SnapshotReport> {
  const written = await snapshotStill({
    ...{ path, key: undefined, spec: Buffer.alloc(0), firmware: Buffer.alloc(0), facts: FIXTURE_FACTS },
    ...{ memory, deviceState: Buffer.from('devices') },
    ...{ signal: new AbortController().signal, onProgress: () => {} },
  });
  return { ...written, path, tookMs: 0 };
}

function files(): SnapshotFiles {
  return new SnapshotFiles({
    ...{ clock, order: (_, order) => write(order), publish: (_, kind) => events.push(kind) },
    specOf: (name) => ({ name, snapshots: { directory: join(directory, 'store') } }) as unknown as VmSpec,
  });
}

describe('the snapshots of a VM that a host knows', () => {
  it('are written where its specification says, listed, and found damaged where they are', async () => {
    const host = files();
    const taken = await host.take('vm', { pause: false });
    expect(taken).toMatchObject({ epoch: 7, reason: 'manual', isEncrypted: false, problem: null });
    expect(host.list('vm').snapshots).toEqual([taken]);
    expect(await host.verify('vm', taken.id)).toEqual({ id: taken.id, ok: true, problem: null });
    damageChunk(join(directory, 'store/vm', `${taken.id}.usnap`), 0);
    expect(await host.verify('vm', taken.id)).toMatchObject({
      ok: false,
      problem: { code: 'SNAPSHOT_DAMAGED' },
    });
  });

  it('are removed one by one, also the last, or pruned but for the last that is good', async () => {
    const host = files();
    const [oldest, newest] = [
      await host.take('vm', { pause: false }),
      await host.take('vm', { pause: false }),
    ];
    damageChunk(join(directory, 'store/vm', `${newest.id}.usnap`), 0);
    expect(await host.prune('vm', { keep: 1 })).toEqual({ removed: [] });
    host.remove('vm', newest.id);
    expect(() => host.remove('vm', newest.id)).toThrow(`there is no snapshot ${newest.id}`);
    host.remove('vm', oldest.id);
    expect(host.list('vm').snapshots).toEqual([]);
    expect(events).toEqual(['snapshot-removed', 'snapshot-removed']);
  });
});
