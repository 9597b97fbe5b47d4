import { createHash, randomBytes } from 'node:crypto';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { SmallTmpfs } from '../../test/kit/small-tmpfs.ts';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { ChunkWriter } from './chunk-writer.ts';
import { SnapshotFile } from './snapshot-file.ts';
import { FIXTURE_FACTS, FIXTURE_PAGES } from './snapshot-fixture.ts';
import { locationOf } from './snapshot-format.ts';
import { readKeyFile } from './snapshot-key.ts';

let folder: string;
let path: string;
const KEY = randomBytes(32);

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-snapshot-'));
  path = join(folder, 'vm.usnap');
  onTestFinished(() => rmSync(folder, { recursive: true }));
});

type Content = ReadonlyMap<number, Buffer>;

async function write(content: Content, key?: Uint8Array): Promise<number> {
  await using writer = await ChunkWriter.create(path, { memoryBytes: FIXTURE_FACTS.memoryBytes, key });
  for (const [page, bytes] of content) await writer.writePages(page, bytes);
  await writer.writeBlob('deviceState', Buffer.alloc(300_000, 'devices'));
  await writer.writeBlob('firmware', Buffer.from('firmware'));
  return await writer.finish(FIXTURE_FACTS);
}

/** All that can be read of a file. */
function readAll(key?: Uint8Array) {
  using file = SnapshotFile.open(path, { key });
  const pages = new Map<number, Buffer>();
  for (const [page, place] of file.index.places.entries()) {
    if (place === 0) continue;
    const { chunk, slot } = locationOf(place);
    pages.set(page, file.chunk(chunk).subarray(slot * PAGE_BYTES, (slot + 1) * PAGE_BYTES));
  }
  const { facts } = file;
  const blobs = [file.blob('deviceState'), file.blob('firmware'), file.blob('spec')].map(String);
  return { facts, pages, blobs };
}

const pageOf = (content: number | 'noise') =>
  content === 'noise' ? randomBytes(PAGE_BYTES) : Buffer.alloc(PAGE_BYTES, content);

/** Every second page noise, with zeros and duplicates between. */
function mixture(pages = 200): Content {
  return new Map(
    Array.from({ length: pages }, (_, index) => [
      (index * 7) % FIXTURE_PAGES,
      pageOf(index % 2 === 0 ? 'noise' : index % 5),
    ]),
  );
}

describe('a snapshot file', () => {
  it('gives back what was written, of a page written twice the later content, encrypted or not', async () => {
    const page = fc.oneof(fc.constant('noise' as const), fc.nat(3));
    const writes = fc.array(fc.tuple(fc.nat(FIXTURE_PAGES - 1), page), { maxLength: 120 });
    await fc.assert(
      fc.asyncProperty(writes, fc.boolean(), async (pages, encrypted) => {
        const key = encrypted ? KEY : undefined;
        const expected = new Map<number, Buffer>();
        await using writer = await ChunkWriter.create(path, { memoryBytes: FIXTURE_FACTS.memoryBytes, key });
        for (const [number, content] of pages) {
          const bytes = pageOf(content);
          await writer.writePages(number, bytes);
          if (content === 0) expected.delete(number);
          else expected.set(number, bytes);
        }
        await writer.finish(FIXTURE_FACTS);
        const found = readAll(key);
        expect([...found.pages.keys()]).toEqual([...expected.keys()].sort((a, b) => a - b));
        for (const [number, bytes] of expected) expect(found.pages.get(number)?.equals(bytes)).toBe(true);
        expect(found.facts).toEqual(FIXTURE_FACTS);
      }),
      { numRuns: 60 },
    );
  });

  it('holds device state and firmware, and takes a page of zeros or a duplicate no room', async () => {
    const noise = pageOf('noise');
    const sizeBytes = await write(new Map([...Array(FIXTURE_PAGES).keys()].map((page) => [page, noise])));
    expect(sizeBytes).toBe(readFileSync(path).length);
    expect(sizeBytes).toBeLessThan(6 * PAGE_BYTES);
    expect(readAll().blobs).toEqual([String(Buffer.alloc(300_000, 'devices')), 'firmware', '']);
    await write(new Map([[1, pageOf(0)]]));
    expect(readAll().pages.size).toBe(0);
  });

  it('keeps pages apart that differ in little, also from those that were written long ago', async () => {
    const content = new Map(
      Array.from({ length: FIXTURE_PAGES }, (_, page) => {
        const bytes = Buffer.alloc(PAGE_BYTES, 1);
        bytes.writeUInt32LE(page % 300, PAGE_BYTES - 4);
        return [page, bytes] as const;
      }),
    );
    await write(content);
    const { pages } = readAll();
    for (const [page, bytes] of content) expect(pages.get(page)?.equals(bytes)).toBe(true);
  });

  it.each([
    ['plain', undefined],
    ['encrypted', KEY],
  ])('that is %s is noticed to be damaged, wherever a bit is flipped or it is cut', async (_, key) => {
    await write(mixture(80), key);
    const whole = readFileSync(path);
    const codes = new Set<string>();
    const noticed = async (bytes: Buffer) => {
      writeFileSync(path, bytes);
      try {
        using file = SnapshotFile.open(path, { key });
        await file.verify();
        return false;
      } catch (thrown) {
        codes.add((thrown as { code: string }).code);
        return true;
      }
    };
    expect(await noticed(whole)).toBe(false);
    const bits = fc.oneof(
      fc.nat(whole.length * 8 - 1),
      fc.nat(4096 * 8 - 1),
      fc.integer({ min: (whole.length - 400) * 8, max: whole.length * 8 - 1 }),
    );
    await fc.assert(
      fc.asyncProperty(bits, async (bit) => {
        const bytes = Buffer.from(whole);
        bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7));
        expect(await noticed(bytes)).toBe(true);
      }),
      { numRuns: 300 },
    );
    await fc.assert(
      fc.asyncProperty(fc.nat(whole.length - 1), async (length) => {
        expect(await noticed(whole.subarray(0, length))).toBe(true);
      }),
      { numRuns: 80 },
    );
    expect([...codes]).toEqual(['SNAPSHOT_DAMAGED']);
  });

  it('of another version, or none at all, is told apart from a damaged one', async () => {
    await write(mixture(1));
    expect(() => SnapshotFile.open(join(folder, 'other'))).toThrow(
      expect.objectContaining({ code: 'SNAPSHOT_MISSING' }),
    );
    const bytes = readFileSync(path);
    bytes.writeUInt32LE(2, 8);
    createHash('sha256').update(bytes.subarray(0, 4064)).digest().copy(bytes, 4064);
    writeFileSync(path, bytes);
    expect(() => SnapshotFile.open(path)).toThrow(expect.objectContaining({ code: 'SNAPSHOT_FOREIGN' }));
  });
});

describe('an encrypted snapshot', () => {
  it('tells its facts without the key, and opens with no other one', async () => {
    await write(mixture(), KEY);
    expect(SnapshotFile.outline(path)).toMatchObject({ facts: FIXTURE_FACTS, isEncrypted: true });
    const wrong = expect.objectContaining({ code: 'SNAPSHOT_KEY_WRONG' });
    expect(() => SnapshotFile.open(path)).toThrow(wrong);
    expect(() => SnapshotFile.open(path, { key: randomBytes(32) })).toThrow(wrong);
    expect(readAll(KEY).pages.size).toBeGreaterThan(100);
  });

  it('shows nothing of the pages, and never the same bytes twice', async () => {
    const secret = new Map([[5, Buffer.alloc(PAGE_BYTES, 'a secret of the guest ')]]);
    const stored: Buffer[] = [];
    for (const _ of [1, 2]) {
      await write(secret, KEY);
      stored.push(readFileSync(path).subarray(4096, 4096 + 64));
    }
    expect(stored[0]?.equals(stored[1] ?? Buffer.alloc(0))).toBe(false);
    expect(readFileSync(path).includes('secret')).toBe(false);
    await write(secret);
    expect(readFileSync(path).includes('secret')).toBe(true);
  });
});

describe('a key file', () => {
  const keyFile = (content: string | Buffer, mode = 0o600) => {
    const file = join(folder, 'key');
    rmSync(file, { force: true });
    writeFileSync(file, content);
    chmodSync(file, mode);
    return file;
  };

  it('holds 32 bytes or their digits', () => {
    expect(readKeyFile(keyFile(KEY))).toEqual(KEY);
    expect(readKeyFile(keyFile(`${KEY.toString('hex')}\n`))).toEqual(KEY);
  });

  it.each([
    ['that others may read', KEY, 0o640],
    ['that is too short', KEY.subarray(1), 0o600],
    ['that is empty', '', 0o600],
  ])('%s is refused', (_, content, mode) => {
    expect(() => readKeyFile(keyFile(content, mode))).toThrow(
      expect.objectContaining({ code: 'SNAPSHOT_KEY_REFUSED' }),
    );
  });
});

describe('a snapshot that is not finished', () => {
  it('has no name, and leaves nothing when it is given up', async () => {
    {
      await using writer = await ChunkWriter.create(path, {
        memoryBytes: FIXTURE_FACTS.memoryBytes,
        key: undefined,
      });
      for (const [page, bytes] of mixture()) await writer.writePages(page, bytes);
      expect(readdirSync(folder).filter((name) => name.endsWith('.usnap'))).toEqual([]);
    }
    expect(readdirSync(folder)).toEqual([]);
  });

  it('says where there is no room', async () => {
    using disk = new SmallTmpfs(MIB);
    path = join(disk.path, 'vm.usnap');
    await expect(
      write(new Map([...Array(400).keys()].map((page) => [page, pageOf('noise')]))),
    ).rejects.toMatchObject({
      code: 'SNAPSHOT_NO_ROOM',
    });
    expect(readdirSync(disk.path)).toEqual([]);
  });
});
