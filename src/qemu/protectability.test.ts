import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parseVmSpec } from '../config/vm-spec.ts';
import { MachineFixture } from './machine-fixture.ts';
import { checkMachine, checkSpec, qomObstacles, ramBlockObstacles } from './protectability.ts';
import { QemuError } from './qemu-error.ts';

function spec(extraArgs: readonly string[], more = '') {
  const text = `name: a\nmemory: 64M\nboot: {kernel: k}\nqemu: {extraArgs: ${JSON.stringify(extraArgs)}}\n${more}`;
  return parseVmSpec(text, { source: 'a.yaml' });
}

function refusal(extraArgs: readonly string[], more?: string): QemuError | undefined {
  try {
    checkSpec(spec(extraArgs, more));
    return undefined;
  } catch (error) {
    if (error instanceof QemuError) return error;
    throw error;
  }
}

describe('arguments of a protected VM', () => {
  test.each([
    [['-device', 'virtio-rng-pci,max-bytes=1024', '-object', 'rng-random,id=r,filename=/dev/urandom']],
    [['-smbios', 'type=1,serial=7', '-uuid', '11111111-2222-3333-4444-555555555555', '-d', 'guest_errors']],
    [['--cpu', 'max', '-fw_cfg', 'name=opt/a,string=-drive']],
    [[]],
  ])('%j are accepted', (args) => {
    expect(refusal(args)).toBeUndefined();
  });

  test.each([
    [['-device', 'vfio-pci,host=01:00.0'], 'pins guest memory'],
    [['-device', '{"driver": "vfio-pci", "host": "01:00.0"}'], 'pins guest memory'],
    [['-device', 'id=a,driver=vfio-pci'], 'pins guest memory'],
    [['-vga', 'std'], 'video memory'],
    [['-device', 'VGA'], 'video memory'],
    [['-device', 'virtio-gpu-pci'], 'video memory'],
    [['-pflash', 'OVMF.fd'], 'firmware flash'],
    [['-drive', 'if=pflash,file=OVMF.fd'], 'it does not commit with the epochs'],
    [['-device', 'virtio-balloon-pci'], 'unseen by the dirty log'],
    [['-device', 'vhost-user-blk-pci,chardev=c'], 'unseen by the dirty log'],
    [['-netdev', 'user,id=n'], 'not held'],
    [['-device', 'ivshmem-plain,memdev=m'], 'outside main memory'],
    [['-device', 'pc-testdev'], 'not known to be safe'],
    [['disk.raw'], 'it does not commit with the epochs'],
    [['-device', 'virtio-rng-pci', 'disk.raw'], 'it does not commit with the epochs'],
    [['-constructor'], 'not known to be safe'],
    [['-xen-domid', '1'], 'not known to be safe'],
    [['-global', 'migration.x-ignore-shared=on'], 'form of the device state'],
    [['-object', 'memory-backend-ram,id=m,size=1M'], 'not known to be safe'],
  ])('%j are refused', (args, why) => {
    const error = refusal(args);
    expect(error?.code).toBe('QEMU_UNPROTECTABLE');
    expect(error?.message).toContain(why);
    expect(refusal(args, 'shadow: {enabled: false}')).toBeUndefined();
  });

  test('are refused with all that stands against them at once', () => {
    const message = refusal(['-vga', 'std', '-device', 'virtio-rng-pci', '-pflash', 'a'])?.message;
    expect(message?.split('\n').slice(1)).toEqual([
      expect.stringMatching(/^-vga/),
      expect.stringMatching(/^-pflash/),
    ]);
  });

  test('that contradict ours are refused with and without a shadow', () => {
    for (const more of ['', 'shadow: {enabled: false}']) {
      expect(refusal(['-m', '1G'], more)?.code).toBe('QEMU_ARGUMENT_REFUSED');
      expect(refusal(['--incoming', 'defer'], more)?.code).toBe('QEMU_ARGUMENT_REFUSED');
    }
  });

  test('may have disks that are only read, that the keeper serves, or whose owner accepts that a shadow does not follow', () => {
    expect(refusal([], 'disks: [{path: a.raw, format: raw, readOnly: true}]')).toBeUndefined();
    expect(refusal([], 'disks: [{path: a.raw, format: raw}]')).toBeUndefined();
    expect(refusal([], 'disks: [{path: a.raw, format: raw, unprotectedDisk: true}]')).toBeUndefined();
  });

  test('are refused with any other disk, as that of a VM that was started without a shadow', () => {
    const withDisk = spec([], 'disks: [{path: a.raw, format: raw}]');
    expect(() => checkSpec(withDisk, [])).toThrow(
      expect.objectContaining({
        code: 'QEMU_UNPROTECTABLE',
        message: expect.stringMatching(/disk .*a\.raw: it is writable/),
        hint: expect.stringContaining('unprotectedDisk: true'),
      }),
    );
  });
});

describe('a machine that was started', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'us-flash-'));
    // A flash needs some content of its size, not a firmware that works: the guest never runs.
    writeFileSync(join(folder, 'flash'), '');
    truncateSync(join(folder, 'flash'), 1024 * 1024);
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  async function obstacles(extraArgs: readonly string[]): Promise<string[]> {
    const yaml = `nics: [{uplink: {kind: none}}]\nshadow: {enabled: false}\nqemu: {extraArgs: ${JSON.stringify(extraArgs)}}`;
    await using fixture = new MachineFixture({ yaml });
    const { machine } = await fixture.start();
    const outcome = await checkMachine(machine, fixture.spec).catch((error: unknown) => error);
    if (outcome === undefined) return [];
    expect(outcome).toMatchObject({ code: 'QEMU_UNPROTECTABLE' });
    return (outcome as QemuError).message.split('\n').slice(1);
  }

  test('can be protected as we start it', async () => {
    expect(await obstacles([])).toEqual([]);
    expect(await obstacles(['-device', 'virtio-rng-pci'])).toEqual([]);
  });

  test('is refused with video memory', async () => {
    expect(await obstacles(['-vga', 'std'])).toEqual([
      expect.stringMatching(/^RAM block .*vga\.vram: it is memory outside main memory/),
      expect.stringMatching(/^RAM block .*vga\.rom/),
    ]);
    expect((await obstacles(['-device', 'VGA,id=screen'])).at(-1)).toContain('device VGA: ');
  });

  test('is refused with firmware flash', async () => {
    const found = await obstacles(['-drive', `if=pflash,format=raw,file=${folder}/flash`]);
    expect(found).toContainEqual(expect.stringMatching(/^RAM block system\.flash0: /));
    expect(found).toContainEqual(expect.stringMatching(/^drive .*flash: it does not commit/));
  });

  test('is refused with a balloon, and with shared memory that QEMU itself cannot migrate', async () => {
    expect(await obstacles(['-device', 'virtio-balloon-pci'])).toEqual([
      expect.stringMatching(/^device virtio-balloon-pci: /),
    ]);
    const shared = [
      '-object',
      'memory-backend-ram,id=m,size=1M,share=on',
      '-device',
      'ivshmem-plain,memdev=m',
    ];
    expect(await obstacles(shared)).toEqual([
      expect.stringMatching(/^RAM block .*\/m: it is memory outside main memory/),
      expect.stringMatching(/^device ivshmem-plain: /),
      expect.stringMatching(/^QEMU refuses migration: .*ivshmem/),
    ]);
  });

  test('is refused with an option ROM', async () => {
    // This one needs no ROM file of its own: any file serves.
    const found = await obstacles(['-device', `virtio-rng-pci,romfile=${folder}/flash`]);
    expect(found).toEqual([expect.stringMatching(/^RAM block .*rom: /)]);
  });
});

test('a machine whose main memory is not ours is refused', () => {
  const table = '   Block Name    PSize     Offset\r\n   pc.ram    4 KiB  0x0000000000000000 0x04000000\r\n';
  expect(ramBlockObstacles(table).map(({ what }) => what)).toEqual(['RAM block ram', 'RAM block pc.ram']);
});

test('a passed-through device is found by its type', () => {
  const found = qomObstacles([
    { name: 'type', type: 'string' },
    { name: 'device[0]', type: 'child<virtio-net-pci>' },
    { name: 'gpu', type: 'child<vfio-pci>' },
  ]);
  expect(found.map(({ what }) => what)).toEqual(['device vfio-pci']);
});
