import {
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { buildArguments } from './launch-arguments.ts';
import { Machine } from './machine.ts';
import { COUNT_ADDRESS, type FixtureOptions, MachineFixture } from './machine-fixture.ts';

const EVERYTHING = 'vcpus: 2\nnics: [{uplink: {kind: none}}, {uplink: {kind: none}}]';
const failing = (code: string, facts = {}) => expect.objectContaining({ code, ...facts });

let fixture: MachineFixture;
function given(options?: FixtureOptions): MachineFixture {
  fixture = new MachineFixture(options);
  return fixture;
}
afterEach(() => fixture[Symbol.asyncDispose]());

/** What the counting guest has counted to. */
function count(memoryPath: string): number {
  const bytes = Buffer.alloc(4);
  const fd = openSync(memoryPath, 'r');
  readSync(fd, bytes, 0, 4, COUNT_ADDRESS);
  closeSync(fd);
  return bytes.readUInt32LE();
}

/** Until the firmware is through and the guest counts further than `start`. */
async function counting(memoryPath: string, start = 0): Promise<number> {
  while (count(memoryPath) <= start) await new Promise((resolve) => setImmediate(resolve));
  return count(memoryPath);
}

describe('a machine with everything that a specification can ask for', () => {
  test('starts with its guest standing still and can be reset, stopped and ended', async () => {
    const { machine, paths } = await given({ yaml: EVERYTHING }).start();
    expect(await machine.status()).toEqual({ running: false, status: 'prelaunch' });
    await machine.cont();
    await counting(paths.memory);
    await machine.stop();
    expect(await machine.status()).toEqual({ running: false, status: 'paused' });
    const standing = count(paths.memory);
    await machine.reset();
    await machine.announceSelf();
    expect(count(paths.memory)).toBe(standing);
    await machine.quit();
    expect(machine.process.exit).toEqual({ code: 0, signal: null });
  });

  test('goes on as its standby, from where its state was saved', async () => {
    given({ yaml: EVERYTHING });
    const primary = await fixture.start('primary');
    const standby = await fixture.start('standby');
    expect(await standby.machine.status()).toEqual({ running: false, status: 'inmigrate' });
    await standby.machine.beginIncoming(standby.paths.incoming);

    await primary.machine.cont();
    await counting(primary.paths.memory);
    await primary.machine.stopAndSave(primary.paths.deviceState).saved;
    const saved = count(primary.paths.memory);
    copyFileSync(primary.paths.memory, standby.paths.memory, constants.COPYFILE_FICLONE);
    const state = readFileSync(primary.paths.deviceState);
    await primary.machine.process.kill();

    await standby.machine.loadDeviceState(state);
    expect(await standby.machine.status()).toEqual({ running: false, status: 'paused' });
    // The guest counts in a register: had the CPU's state not come over, it would begin anew.
    expect(count(standby.paths.memory)).toBe(saved);
    await standby.machine.cont();
    expect(await counting(standby.paths.memory, saved)).toBeGreaterThan(saved);
    expect(await standby.machine.status()).toEqual({ running: true, status: 'running' });
  });
});

test('the start of a machine that is given up does not wait for a QEMU that says nothing', async () => {
  given();
  const [binary, heard] = [join(fixture.folder, 'mute'), join(fixture.folder, 'heard')];
  const listen = `require('node:net').createServer(() => require('node:fs').writeFileSync('${heard}', String(process.pid))).listen(process.argv[1])`;
  writeFileSync(
    binary,
    `#!/bin/sh\nfor arg; do case "$arg" in *id=qmp,*) p=\${arg#*path=}; p=\${p%%,server*};; esac; done\n` +
      `exec ${process.execPath} -e "${listen}" "$(echo "$p" | sed s/,,/,/g)"\n`,
    { mode: 0o755 },
  );
  const paths = await fixture.prepare();
  const controller = new AbortController();
  const starting = Machine.start({
    launch: {
      binary,
      args: buildArguments(fixture.spec, { role: 'primary', paths, accel: 'tcg' }),
      logPath: paths.log,
    },
    qmpPath: paths.qmp,
    clock: systemClock,
    deadlineMs: 600_000,
    signal: controller.signal,
  });
  const ended = expect(starting).rejects.toThrow('no longer wanted');
  await vi.waitFor(() => expect(readFileSync(heard, 'utf8')).toMatch(/./), { timeout: 20_000 });
  controller.abort(new Error('no longer wanted'));
  await ended;
  expect(existsSync(`/proc/${readFileSync(heard, 'utf8')}`)).toBe(false);
});

describe('saving device state', () => {
  test('leaves the machine fit to go on, again and again, and replaces a longer file', async () => {
    const { machine, paths } = await given().start();
    await machine.cont();
    await counting(paths.memory);
    writeFileSync(paths.deviceState, Buffer.alloc(1024 * 1024));
    for (let round = 0; round < 20; round += 1) {
      const { stopped, saved } = machine.stopAndSave(paths.deviceState);
      await stopped;
      const standing = count(paths.memory);
      await saved;
      expect(count(paths.memory)).toBe(standing);
      await machine.cont();
      await counting(paths.memory, standing);
    }
    const { size } = statSync(paths.deviceState);
    expect(size).toBeGreaterThan(10_000);
    expect(size).toBeLessThan(500_000);
  });

  test('keeps the disks; QEMU by itself would give them away', async () => {
    given({ yaml: 'shadow: {enabled: false}\ndisks: [{path: disk.raw, format: raw}]' });
    const disk = join(fixture.folder, 'disk.raw');
    writeFileSync(disk, '');
    truncateSync(disk, 1024 * 1024);
    const { machine, paths } = await fixture.start();
    await machine.cont();
    const held = diskLocks(machine, disk);
    expect(held).toBeGreaterThan(0);
    await machine.stopAndSave(paths.deviceState).saved;
    expect(diskLocks(machine, disk)).toBe(held);
    await machine.qmp.execute('xen-save-devices-state', { filename: paths.deviceState, live: true });
    expect(diskLocks(machine, disk)).toBeLessThan(held);
  });

  test('to where it cannot be written is refused, and the machine lives on', async () => {
    const { machine } = await given().start();
    await machine.cont();
    const { stopped, saved } = machine.stopAndSave('/nowhere/state');
    await stopped;
    await expect(saved).rejects.toThrow(failing('QMP_COMMAND_FAILED'));
    await machine.cont();
    expect(await machine.status()).toMatchObject({ running: true });
  });
});

describe('loading device state', () => {
  test('fails with the words of QEMU when it is no device state', async () => {
    const { machine, paths } = await given().start('standby');
    await machine.beginIncoming(paths.incoming);
    await expect(machine.loadDeviceState(Buffer.from('no device state at all'))).rejects.toThrow(
      failing('QEMU_LOAD_FAILED', { message: expect.stringContaining('Not a migration stream') }),
    );
    await machine.process.exited;
  });

  test('fails when the state ends too early', async () => {
    const primary = await given().start();
    const standby = await fixture.start('standby');
    await standby.machine.beginIncoming(standby.paths.incoming);
    await primary.machine.stopAndSave(primary.paths.deviceState).saved;
    const state = readFileSync(primary.paths.deviceState);
    await expect(standby.machine.loadDeviceState(state.subarray(0, state.length / 2))).rejects.toThrow(
      failing('QEMU_LOAD_FAILED'),
    );
  });

  test('fails when the standby was killed', async () => {
    const { machine, paths } = await given().start('standby');
    await machine.beginIncoming(paths.incoming);
    await machine.process.kill();
    await expect(machine.loadDeviceState(Buffer.alloc(100))).rejects.toThrow(failing('QEMU_LOAD_FAILED'));
  });

  test('fails at once when nobody listens for it', async () => {
    const { machine, paths } = await given().start('standby');
    await machine.beginIncoming(paths.incoming);
    rmSync(paths.incoming);
    await expect(machine.loadDeviceState(Buffer.alloc(100), { deadlineMs: 600_000 })).rejects.toThrow(
      failing('QEMU_LOAD_FAILED', { message: expect.stringContaining('ENOENT') }),
    );
  });

  test('fails at its deadline when the standby hangs', async () => {
    const { machine, paths } = await given().start('standby');
    await machine.beginIncoming(paths.incoming);
    machine.process.signal('SIGSTOP');
    await expect(machine.loadDeviceState(Buffer.alloc(100), { deadlineMs: 100 })).rejects.toThrow(
      failing('QEMU_LOAD_FAILED'),
    );
  });
});

test('a guest that powers off stands still, and QEMU stays', async () => {
  const { machine } = await given({ guest: 'poweringOff' }).start();
  const shutdown = new Promise((resolve) => machine.qmp.on('SHUTDOWN', resolve));
  await machine.cont();
  expect(await shutdown).toEqual({ guest: true, reason: 'guest-shutdown' });
  expect(await machine.status()).toEqual({ running: false, status: 'shutdown' });
  expect(machine.process.hasExited).toBe(false);
});

test('a machine that cannot start says why in the words of QEMU', async () => {
  given({ yaml: 'shadow: {enabled: false}\nqemu: {extraArgs: [-device, no-such-device]}' });
  await expect(fixture.start()).rejects.toThrow(
    failing('QEMU_START_FAILED', {
      message: expect.stringContaining("'no-such-device' is not a valid device model"),
    }),
  );
});

/** Locks that QEMU holds on a file (QEMU locks images it uses, with open file description locks). */
function diskLocks(machine: Machine, path: string): number {
  const folder = `/proc/${machine.process.pid}`;
  const descriptors = readdirSync(`${folder}/fd`).filter((fd) => readlinkSync(`${folder}/fd/${fd}`) === path);
  const infos = descriptors.map((fd) => readFileSync(`${folder}/fdinfo/${fd}`, 'utf8'));
  return infos.join('').match(/^lock:/gm)?.length ?? 0;
}
