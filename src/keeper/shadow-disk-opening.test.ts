import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MIB } from '../base/units.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import { freeBytesOf } from '../linux/file.ts';
import { assertDiskRoom, openCopies } from './shadow-disk-opening.ts';

function folderOfTest(): string {
  const folder = mkdtempSync(join(tmpdir(), 'us-room-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  return folder;
}

describe('room for the disks of a shadow', () => {
  it('is for all of them together, and what they have already counts', () => {
    const folder = folderOfTest();
    const most = freeBytesOf(folder);
    const disk = (name: string, sizeBytes: number) => ({ path: join(folder, name), sizeBytes });
    expect(() => assertDiskRoom([disk('one', most / 4), disk('two', most / 4)])).not.toThrow();
    const noRoom = expect.objectContaining({ code: 'KEEPER_HOST_NO_ROOM' });
    expect(() => assertDiskRoom([disk('one', most), disk('two', most)])).toThrow(noRoom);
    writeFileSync(join(folder, 'held'), Buffer.alloc(4 * MIB, 1));
    expect(() => assertDiskRoom([disk('held', 4 * MIB)])).not.toThrow();
  });

  it('is looked for before anything is made', async () => {
    const folder = folderOfTest();
    const path = join(folder, 'root.img');
    const spec = parseVmSpec(
      `name: one\nvcpus: 1\nmemory: 64MiB\nboot: {disk: {path: ${path}, format: raw}}\nshadow: {hosts: [a, b]}\n`,
      { source: 'one.yaml' },
    );
    const disk = { name: 'boot', identity: 'ab'.repeat(16), token: 1, sizeBytes: 2 ** 52 };
    await expect(openCopies(spec, { disks: [disk] } as never)).rejects.toMatchObject({
      code: 'KEEPER_HOST_NO_ROOM',
    });
    expect(existsSync(path)).toBe(false);
  });
});
