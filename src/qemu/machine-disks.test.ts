import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { MIB } from '../base/units.ts';
import type { Machine } from './machine.ts';
import { MachineFixture } from './machine-fixture.ts';
import { checkMachine } from './protectability.ts';

let fixture: MachineFixture;
afterEach(() => fixture?.[Symbol.asyncDispose]());

const FORMATS = ['raw', 'qcow2'] as const;

/** A machine to be, with one disk of 1 MiB. */
function given(format: (typeof FORMATS)[number], more = 'unprotectedDisk: true'): string {
  fixture = new MachineFixture({ yaml: `disks: [{path: disk, format: ${format}, serial: s-1, ${more}}]` });
  const path = join(fixture.folder, 'disk');
  if (format === 'qcow2') execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', path, '1M']);
  else makeRaw(path);
  return path;
}

function makeRaw(path: string): void {
  writeFileSync(path, '');
  truncateSync(path, MIB);
}

/** Locks that QEMU holds on a file (QEMU locks images it uses, with open file description locks). */
function locksOf({ process }: Machine, path: string): number {
  const folder = `/proc/${process.pid}`;
  const descriptors = readdirSync(`${folder}/fd`).filter((fd) => readlinkSync(`${folder}/fd/${fd}`) === path);
  expect(descriptors).not.toEqual([]);
  const infos = descriptors.map((fd) => readFileSync(`${folder}/fdinfo/${fd}`, 'utf8'));
  return infos.join('').match(/^lock:/gm)?.length ?? 0;
}

describe.each(FORMATS)('a writable %s disk that a standby shares with its primary', (format) => {
  test('is the primary’s alone until that is dead, and then the standby’s', async () => {
    const path = given(format);
    const primary = await fixture.start();
    const standby = await fixture.start('standby');
    for (const { machine } of [primary, standby]) await checkMachine(machine, fixture.spec);
    await standby.machine.beginIncoming(standby.paths.incoming);
    await primary.machine.cont();
    await primary.machine.stopAndSave(primary.paths.deviceState).saved;
    await primary.machine.cont();
    expect(locksOf(primary.machine, path)).toBeGreaterThan(0);
    expect(locksOf(standby.machine, path)).toBe(0);

    await primary.machine.process.kill();
    await standby.machine.loadDeviceState(readFileSync(primary.paths.deviceState));
    await standby.machine.cont();
    expect(await standby.machine.status()).toMatchObject({ running: true });
    expect(locksOf(standby.machine, path)).toBeGreaterThan(0);
  });

  test('keeps a standby from running that is loaded while its primary still lives', async () => {
    given(format);
    const primary = await fixture.start();
    const standby = await fixture.start('standby');
    await standby.machine.beginIncoming(standby.paths.incoming);
    await primary.machine.stopAndSave(primary.paths.deviceState).saved;
    await standby.machine.loadDeviceState(readFileSync(primary.paths.deviceState));
    await expect(standby.machine.cont()).rejects.toMatchObject({
      code: 'QMP_COMMAND_FAILED',
      message: expect.stringContaining('lock'),
    });
    expect(await standby.machine.status()).toMatchObject({ running: false });
  });

  test('keeps another VM away, which is told whose image it is', async () => {
    const path = given(format);
    await fixture.start();
    await expect(fixture.start()).rejects.toMatchObject({
      code: 'QEMU_DISK_IN_USE',
      message: `another process uses the image ${path}`,
    });
  });
});

test('a disk that is only read may be that of several machines', async () => {
  given('raw', 'readOnly: true');
  for (const role of ['primary', 'standby', 'primary'] as const) {
    const { machine } = await fixture.start(role);
    await checkMachine(machine, fixture.spec);
  }
});

test('what an image stands on is opened by the name that the specification says', async () => {
  fixture = new MachineFixture({
    yaml: 'disks: [{path: top, format: qcow2, backing: {path: base, format: raw}, unprotectedDisk: true}]',
  });
  const top = join(fixture.folder, 'top');
  const base = join(fixture.folder, 'base');
  const other = join(fixture.folder, 'other');
  makeRaw(base);
  // The image names another one: nothing of that is opened.
  makeRaw(other);
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', other, '-F', 'raw', top]);
  const { machine } = await fixture.start();
  await checkMachine(machine, fixture.spec);
  const folder = `/proc/${machine.process.pid}/fd`;
  const open = readdirSync(folder).map((fd) => readlinkSync(join(folder, fd)));
  expect(open).toEqual(expect.arrayContaining([top, base]));
  expect(open).not.toContain(other);
});

test('a machine with a file open that only an image names is not protected', async () => {
  const path = given('qcow2');
  const data = join(fixture.folder, 'data');
  const option = `data_file=${data.replaceAll(',', ',,')}`;
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', option, path, '1M']);
  const { machine } = await fixture.start();
  await expect(checkMachine(machine, fixture.spec)).rejects.toMatchObject({
    code: 'QEMU_UNPROTECTABLE',
    message: expect.stringContaining(`drive ${data}: it does not commit with the epochs`),
  });
});
