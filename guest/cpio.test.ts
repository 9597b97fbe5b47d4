import { execFileSync } from 'node:child_process';
import { lstatSync, mkdirSync, mkdtempSync, readFileSync, readlinkSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { cacheDirectory } from '../src/base/cache-directory.ts';
import { ensureDemoGuest } from './build.ts';
import { type CpioEntry, writeCpio } from './cpio.ts';
import { DebianPackages } from './debian-packages.ts';

const folder = mkdtempSync(join(tmpdir(), 'cpio-test-'));
const busybox = join(folder, 'bin/busybox');
afterAll(() => rmSync(folder, { recursive: true }));

beforeAll(async () => {
  await ensureDemoGuest();
  await using packages = await DebianPackages.open(join(cacheDirectory(), 'guest/packages'), {
    onProgress: () => {},
  });
  for (const wanted of await packages.obtain(['busybox-static'])) await packages.unpack(wanted, folder);
});

function unpack(archive: Buffer): string {
  const target = mkdtempSync(join(folder, 'unpacked-'));
  execFileSync(busybox, ['cpio', '-id'], { cwd: target, input: archive, stdio: ['pipe', 'pipe', 'pipe'] });
  return target;
}

const anyFile = fc.record({
  kind: fc.constant('file' as const),
  path: fc
    .array(fc.stringMatching(/^[a-c]{1,3}$/), { minLength: 1, maxLength: 3 })
    .map((names) => names.join('/')),
  mode: fc.constantFrom(0o755, 0o644, 0o600),
  data: fc.uint8Array({ maxLength: 5000 }).map((bytes) => Buffer.from(bytes)),
});
/** Files of which none lies where another one is a folder. */
const anyTree = fc
  .uniqueArray(anyFile, { selector: ({ path }) => path, maxLength: 8 })
  .filter((files) => files.every((a) => files.every((b) => !b.path.startsWith(`${a.path}/`))));

describe('a cpio archive', () => {
  it('is unpacked to the same files by another program', () => {
    fc.assert(
      fc.property(anyTree, (files) => {
        const target = unpack(writeCpio(files));
        for (const { path, mode, data } of files) {
          expect(readFileSync(join(target, path)).equals(data)).toBe(true);
          expect(statSync(join(target, path)).mode & 0o777).toBe(mode);
        }
      }),
      { numRuns: 20 },
    );
  });

  it('holds symbolic links, empty folders, and folders that only a path names', () => {
    const target = unpack(
      writeCpio([
        { kind: 'symlink', path: 'a/b/link', target: '../none' },
        { kind: 'directory', path: 'empty' },
      ]),
    );
    expect(readlinkSync(join(target, 'a/b/link'))).toBe('../none');
    expect(lstatSync(join(target, 'empty')).isDirectory()).toBe(true);
    mkdirSync(join(target, 'a/b/writable'));
  });

  it('has the same bytes whatever the order of its entries', () => {
    const reordered = anyTree.chain((files) =>
      fc.tuple(fc.constant(files), fc.shuffledSubarray(files, { minLength: files.length })),
    );
    fc.assert(
      fc.property(reordered, ([files, shuffled]) => {
        expect(writeCpio(shuffled).equals(writeCpio(files))).toBe(true);
      }),
    );
  });

  it.each<[string, CpioEntry[]]>([
    ['an absolute path', [{ kind: 'directory', path: '/a' }]],
    [
      'the same path twice',
      [
        { kind: 'directory', path: 'a' },
        { kind: 'symlink', path: 'a', target: 'b' },
      ],
    ],
    [
      'a path below a link',
      [
        { kind: 'symlink', path: 'a', target: 'b' },
        { kind: 'directory', path: 'a/c' },
      ],
    ],
  ])('is refused with %s', (_, entries) => {
    expect(() => writeCpio(entries)).toThrow(/cpio p/);
  });
});
