import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { PAGE_BYTES } from '../base/units.ts';
import { ChunkWriter } from './chunk-writer.ts';
import { SnapshotFile } from './snapshot-file.ts';
import { FIXTURE_FACTS } from './snapshot-fixture.ts';
import { SnapshotStore } from './snapshot-store.ts';

const DAY_MS = 86_400_000;
const NOW_MS = Date.parse('2026-11-27T02:15:00.123Z');

let root: string;
let store: SnapshotStore;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'us-store-'));
  onTestFinished(() => rmSync(root, { recursive: true }));
  store = new SnapshotStore(root, 'redis');
});

async function add(daysAgo: number): Promise<string> {
  const path = store.newPath(NOW_MS - daysAgo * DAY_MS);
  const { memoryBytes } = FIXTURE_FACTS;
  await using writer = await ChunkWriter.create(path, { memoryBytes, key: undefined });
  await writer.writePages(1, Buffer.alloc(PAGE_BYTES, 1));
  await writer.finish(FIXTURE_FACTS);
  writeFileSync(`${path}.working-set`, 'hint');
  return path;
}

function damage(path: string): void {
  const bytes = readFileSync(path);
  bytes[PAGE_BYTES + 3] = (bytes[PAGE_BYTES + 3] ?? 0) ^ 1;
  writeFileSync(path, bytes);
}

async function isGood(path: string): Promise<boolean> {
  try {
    using file = SnapshotFile.open(path);
    await file.verify();
    return true;
  } catch {
    return false;
  }
}

const prune = (options: { keep?: number; olderThanMs?: number; mayTakeLast?: boolean }) =>
  store.prune({ mayTakeLast: false, wallMs: NOW_MS + 1, isGood, ...options });

const left = () => store.list().map(({ path }) => path);

describe('the snapshots of a VM', () => {
  it('are listed newest first, with what is wrong with those that are damaged', async () => {
    expect(store.list()).toEqual([]);
    const [old, recent] = [await add(3), await add(1)];
    writeFileSync(store.newPath(NOW_MS), 'no snapshot');
    writeFileSync(join(store.directory, 'notes.txt'), 'of somebody else');
    const listed = store.list();
    expect(listed.map(({ path }) => path)).toEqual([store.newPath(NOW_MS), recent, old]);
    expect(listed.map(({ problem }) => problem?.code)).toEqual(['SNAPSHOT_DAMAGED', undefined, undefined]);
    expect(listed[1]?.outline?.facts).toEqual(FIXTURE_FACTS);
    expect(SnapshotStore.vmsIn(root)).toEqual(['redis']);
    expect(store.find().path).toBe(recent);
    expect(store.find('20261124T021500123Z').path).toBe(old);
    expect(() => store.find('20001124T021500123Z')).toThrow(
      expect.objectContaining({ code: 'SNAPSHOT_MISSING' }),
    );
  });

  it('are pruned by number and by age, and what goes with them too', async () => {
    const paths = [await add(0), await add(1), await add(2), await add(10)];
    expect((await prune({ olderThanMs: 5 * DAY_MS })).map(({ path }) => path)).toEqual([paths[3]]);
    expect((await prune({ keep: 1 })).map(({ path }) => path)).toEqual([paths[1], paths[2]]);
    expect(
      readdirSync(store.directory)
        .map((name) => basename(name))
        .sort(),
    ).toEqual([basename(paths[0] ?? ''), `${basename(paths[0] ?? '')}.working-set`]);
  });

  it('never lose the last one that a VM could go on from, unless it is told', async () => {
    const paths = [await add(0), await add(1), await add(2)];
    damage(paths[0] ?? '');
    await prune({ keep: 1 });
    expect(left()).toEqual([paths[0], paths[1]]);
    await prune({ olderThanMs: 0 });
    expect(left()).toEqual([paths[1]]);
    await prune({ olderThanMs: 0, mayTakeLast: true });
    expect(left()).toEqual([]);
  });

  it('are cleared of what a writer left that was killed, and not of what is being written', async () => {
    const path = await add(0);
    const abandoned = join(store.directory, 'x.usnap-1.unfinished');
    writeFileSync(abandoned, 'half');
    await using _writer = await ChunkWriter.create(store.newPath(NOW_MS + 1), {
      memoryBytes: FIXTURE_FACTS.memoryBytes,
      key: undefined,
    });
    store.removeUnfinished();
    expect(existsSync(abandoned)).toBe(false);
    expect(readdirSync(store.directory).filter((name) => name.endsWith('.unfinished'))).toHaveLength(1);
    expect(left()).toEqual([path]);
  });
});
