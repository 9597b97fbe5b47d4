import { copyFileSync, existsSync, linkSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { readFirmware, withFirmware } from './firmware.ts';
import type { Machine } from './machine.ts';
import { MachineFixture } from './machine-fixture.ts';

let fixture: MachineFixture;
let primary: Awaited<ReturnType<MachineFixture['start']>>;
let standby: Awaited<ReturnType<MachineFixture['start']>>;
let firmware: Uint8Array;

beforeEach(async () => {
  fixture = new MachineFixture({ yaml: 'console: true' });
  primary = await fixture.start('primary');
  standby = await fixture.start('standby');
  firmware = await firmwareOf(primary.machine);
});
afterEach(() => fixture[Symbol.asyncDispose]());

function firmwareOf(machine: Machine): Promise<Uint8Array> {
  return readFirmware(machine, join(fixture.folder, 'firmware'));
}

/** Lets the standby take over from the primary. */
async function takeOver(state: (saved: Buffer) => Uint8Array): Promise<void> {
  await primary.machine.stopAndSave(primary.paths.deviceState).saved;
  copyFileSync(primary.paths.memory, standby.paths.memory);
  await standby.machine.beginIncoming(standby.paths.incoming);
  await standby.machine.loadDeviceState(state(readFileSync(primary.paths.deviceState)));
}

describe('the firmware of a machine', () => {
  it('is there after a takeover, byte by byte', async () => {
    expect(firmware.length).toBeGreaterThanOrEqual(128 * 1024);
    // The reset vector: a far jump to f000:e05b.
    expect([...firmware.subarray(-16, -11)]).toEqual([0xea, 0x5b, 0xe0, 0x00, 0xf0]);
    await takeOver((saved) => withFirmware(saved, firmware));
    expect(Buffer.from(await firmwareOf(standby.machine)).equals(firmware)).toBe(true);
  });

  it.each([
    ['symbolic', symlinkSync],
    ['second hard', linkSync],
  ])('is not read through a %s link that was put in its place', async (_, plant) => {
    const [secret, path] = [join(fixture.folder, 'secret'), join(fixture.folder, 'firmware')];
    writeFileSync(secret, 'not for the guest');
    plant(secret, path);
    await expect(firmwareOf(primary.machine)).rejects.toMatchObject({ code: 'QEMU_FIRMWARE_REFUSED' });
    expect(existsSync(path)).toBe(false);
    expect((await firmwareOf(primary.machine)).length).toBe(firmware.length);
  });

  it('is missing after a takeover with the device state alone', async () => {
    await takeOver((saved) => saved);
    const found = await firmwareOf(standby.machine);
    expect(found.every((byte) => byte === 0)).toBe(true);
  });
});
