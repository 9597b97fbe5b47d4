import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { SmallTmpfs } from '../../test/kit/small-tmpfs.ts';
import { systemClock as clock } from '../base/clock.ts';
import { MIB } from '../base/units.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import { freeBytesOf } from '../linux/file.ts';
import { assertDiskRoom, openCopies } from './shadow-disk-opening.ts';

type Hello = Parameters<typeof openCopies>[1];

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(`/dev/shm/${marked('copies')}-`);
  onTestFinished(() => rmSync(folder, { recursive: true }));
});

const options = () => ({ runDirectory: folder, user: undefined, clock });

/** Of a VM with two disks that it writes to, and the first words of a host that has these of them. */
function asked(
  names: readonly string[],
  { sizeBytes = MIB, usedBytes = sizeBytes }: { sizeBytes?: number; usedBytes?: number } = {},
) {
  const disks = [0, 1].map((index) => `{path: ${folder}/${index}.raw, format: raw}`);
  const yaml = `name: a\nmemory: 64M\nboot: {kernel: k}\ndisks: [${disks.join(', ')}]\n`;
  const said = names.map((name) => ({
    name,
    sizeBytes,
    usedBytes,
    identity: 'a'.repeat(32),
    token: 1,
  }));
  return { spec: parseVmSpec(yaml, { source: 'a.yaml' }), hello: { disks: said } as unknown as Hello };
}

describe('copies of the disks of a VM that acts on another host', () => {
  it('are made where there is nothing yet', async () => {
    const { spec, hello } = asked(['disk0', 'disk1']);
    const copies = await openCopies(spec, hello, options());
    expect(copies.map(({ name, isHeld }) => ({ name, isHeld }))).toEqual([
      { name: 'disk0', isHeld: false },
      { name: 'disk1', isHeld: false },
    ]);
    for (const { image } of copies) await image.close();
  });

  it('are not made where there is no room for a journal, and are as soon as there is', async () => {
    using tmpfs = new SmallTmpfs(3 * 2 ** 20, folder);
    const { spec, hello } = asked(['disk0', 'disk1'], { usedBytes: 0 });
    tmpfs.fill();
    await expect(openCopies(spec, hello, options())).rejects.toMatchObject({
      code: 'BLOCK_DISK_FAILED',
      message: expect.stringMatching(/ENOSPC/),
    });
    tmpfs.empty();
    const copies = await openCopies(spec, hello, options());
    for (const { image } of copies) {
      expect(image.isPartial).toBe(true);
      await image.close();
    }
  });

  it.each([
    ['lacks one that the guest writes to', ['disk0'], /disk1 is written to and would not be copied/],
    ['has one twice', ['disk0', 'disk1', 'disk1'], /a disk twice/],
    ['has one that the VM does not have', ['disk0', 'disk1', 'disk2'], /"disk2" is none/],
  ])('are refused to a host that %s, before there is anything', async (_, names, problem) => {
    const { spec, hello } = asked(names);
    await expect(openCopies(spec, hello, options())).rejects.toThrow(problem);
    expect(readdirSync(folder)).toEqual([]);
  });

  it('are refused where they do not fit, all of them together, before there is anything', async () => {
    const { spec, hello } = asked(['disk0', 'disk1'], { sizeBytes: 2 ** 50 });
    const noRoom = expect.objectContaining({
      code: 'KEEPER_HOST_NO_ROOM',
      hint: expect.stringMatching(/\S/),
    });
    await expect(openCopies(spec, hello, options())).rejects.toEqual(noRoom);
    expect(readdirSync(folder)).toEqual([]);
    const freeBytes = freeBytesOf(folder);
    const disk = (name: string, usedBytes: number) => ({ path: join(folder, name), usedBytes });
    expect(() => assertDiskRoom([disk('one', freeBytes), disk('two', freeBytes)])).toThrow(noRoom);
    expect(() => assertDiskRoom([disk('one', freeBytes / 4), disk('two', freeBytes / 4)])).not.toThrow();
    // What an image has already is no more to be found.
    writeFileSync(join(folder, 'held'), Buffer.alloc(MIB, 1));
    expect(() => assertDiskRoom([disk('held', MIB), disk('one', freeBytes / 4)])).not.toThrow();
  });
});
