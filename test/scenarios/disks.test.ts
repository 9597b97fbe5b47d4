import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type GuestConsole, TestVm } from '../kit/test-vm.ts';

const SECTOR_BYTES = 512;
const ACKNOWLEDGED_AT_LEAST = 4;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-disks-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

type Format = 'raw' | 'qcow2';

const imagePath = (format: Format) => join(folder, `data.${format}`);

function start(disk: string): Promise<TestVm> {
  return TestVm.start({ clients: 0, yaml: `disks: [${disk}]` });
}

function startWithDisk(format: Format): Promise<TestVm> {
  return start(
    `{path: ${imagePath(format)}, format: ${format}, size: 8MiB, create: true, unprotectedDisk: true}`,
  );
}

/** The console of the guest's shell, once that takes commands. */
async function shellOf(vm: TestVm): Promise<GuestConsole> {
  const console = vm.openConsole();
  await console.take(/understudy-guest: ready[\s\S]*\/ # /);
  return console;
}

/**
 * Has the guest write its numbers, each to a sector of its own, through to the disk, and say each of them once that is
 * done. Ends when /tmp/enough exists.
 */
function beginWriting(console: GuestConsole): void {
  const dd = `dd of=/dev/vda bs=${SECTOR_BYTES} seek=$i conv=fsync,notrunc 2>/dev/null`;
  const write = `printf %0${SECTOR_BYTES}d $i | ${dd} && echo "w:$i;" || echo fai""led`;
  const loop = `i=0; while [ ! -e /tmp/enough ]; do i=$((i+1)); ${write}; done; echo fin""ished`;
  console.type(`(${loop}) &`);
}

async function nextWritten(console: GuestConsole): Promise<number> {
  return Number((await console.take(/w:(\d+);/))[1]);
}

/** What the disk holds, as a guest would see it. */
function diskContent(format: Format): Buffer {
  const raw = join(folder, 'content');
  execFileSync('qemu-img', ['convert', '-f', format, '-O', 'raw', imagePath(format), raw]);
  return readFileSync(raw);
}

/** Numbers up to `last` that are not in their sectors. */
function lostNumbers(content: Buffer, last: number): number[] {
  const numbers = Array.from({ length: last }, (_, index) => index + 1);
  return numbers.filter((number) => {
    const sector = content.toString('latin1', number * SECTOR_BYTES, (number + 1) * SECTOR_BYTES);
    return sector !== String(number).padStart(SECTOR_BYTES, '0');
  });
}

describe.each<Format>(['raw', 'qcow2'])('a VM with an unprotected %s disk whose QEMU is killed', (format) => {
  it('goes on in its shadow with that disk, which has everything that the guest was told is on it', async () => {
    let last = 0;
    {
      await using vm = await startWithDisk(format);
      using console = await shellOf(vm);
      beginWriting(console);
      for (const place of ['cut.after-pause', 'cut.after-resume', 'commit.after-acknowledge']) {
        for (let count = 0; count < ACKNOWLEDGED_AT_LEAST; count += 1) last = await nextWritten(console);
        const promoted = vm.nextEvent('promoted');
        await vm.atNext(place, () => {
          vm.signalPrimary('SIGKILL');
        });
        await promoted;
        expect(await nextWritten(console)).toBeGreaterThanOrEqual(last);
        await vm.untilProtected();
      }
      await vm.keeper.promote();
      expect(await nextWritten(console)).toBeGreaterThanOrEqual(last);
      // Still the disk that the guest had: nothing was refused to it, and it reads what it wrote.
      console.type(': > /tmp/enough');
      const text = (await console.take(/^([\s\S]*)finished\r?\n/))[1] ?? '';
      expect(text).not.toContain('failed');
      last = Math.max(last, ...[...text.matchAll(/w:(\d+);/g)].map(([, number]) => Number(number)));
      console.type(
        `dd if=/dev/vda bs=${SECTOR_BYTES} skip=${last} count=1 2>/dev/null | tail -c 8; echo :read`,
      );
      expect((await console.take(/(\d{8}):read/))[1]).toBe(String(last).padStart(8, '0'));
      expect(vm.status).toMatchObject({ promotions: 4, restarts: 0 });
    }
    expect(last).toBeGreaterThan(3 * ACKNOWLEDGED_AT_LEAST);
    const content = diskContent(format);
    expect(lostNumbers(content, last)).toEqual([]);
    // Clusters that a dead QEMU had allocated and not used yet are lost room, no damage; anything else is.
    if (format === 'qcow2')
      execFileSync('qemu-img', ['check', '-q', '-r', 'leaks', '-f', format, imagePath(format)]);
    // It would be noticed.
    content.fill(0, 2 * SECTOR_BYTES, 3 * SECTOR_BYTES);
    expect(lostNumbers(content, last)).toEqual([2]);
  });
});

describe('a disk', () => {
  it('that is only read is read by the guest before and after a takeover, and cannot be written', async () => {
    writeFileSync(imagePath('raw'), Buffer.from('of the disk;'.padEnd(1024 * 1024, '.')));
    await using vm = await start(`{path: ${imagePath('raw')}, format: raw, readOnly: true}`);
    using console = await shellOf(vm);
    const read = async () => {
      console.type('dd if=/dev/vda iflag=direct bs=4096 count=1 2>/dev/null | head -c 12; echo');
      await console.take(/of the disk;/);
    };
    await read();
    await vm.keeper.promote();
    await read();
    console.type('echo x > /dev/vda || echo refu""sed');
    await console.take(/refused/);
  });

  it('is not made anew for a VM that has one already', async () => {
    writeFileSync(imagePath('raw'), 'precious');
    const wrong = `{path: ${imagePath('raw')}, format: raw, size: 8MiB, create: true, unprotectedDisk: true}`;
    await expect(start(wrong)).rejects.toMatchObject({ code: 'BLOCK_IMAGE_UNFIT' });
    expect(readFileSync(imagePath('raw'), 'utf8')).toBe('precious');
  });

  it.each([', unprotectedDisk: true', ''])(
    'that another VM writes to is refused, and that VM is let alone%s',
    async (more) => {
      const disk = `{path: ${imagePath('raw')}, format: raw, size: 8MiB, create: true`;
      await using vm = await start(`${disk}${more}}`);
      for (const other of [', unprotectedDisk: true', ''])
        await expect(start(`${disk}${other}}`)).rejects.toMatchObject({ code: 'QEMU_DISK_IN_USE' });
      expect(vm.status.phase).toBe('protected');
    },
  );
});
