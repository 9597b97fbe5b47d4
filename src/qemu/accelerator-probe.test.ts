import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { silentLogger } from '../base/logger.ts';
import { bootsUnder, type ProbeOptions, probeAccelerator } from './accelerator-probe.ts';
import { writeGuest } from './machine-fixture.ts';
import { QemuFinder } from './qemu-binary.ts';

const MARKER = 'the guest is up';
/** For guests that answer: generous, it is not used up. */
const LONG_MS = 60_000;
/** For guests that never answer. */
const SHORT_MS = 300;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-probe-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

async function options(
  guest: Parameters<typeof writeGuest>[1],
  more: Partial<ProbeOptions> = {},
): Promise<ProbeOptions> {
  const kernel = join(folder, 'guest');
  writeGuest(kernel, guest);
  return {
    requested: 'auto',
    qemu: await new QemuFinder().find('qemu-system-x86_64'),
    guest: { kernel, marker: MARKER },
    deadlineMs: SHORT_MS,
    cacheFile: join(folder, 'cache', 'accelerator.json'),
    logPath: join(folder, 'log'),
    clock: systemClock,
    log: silentLogger,
    ...more,
  };
}

describe('a guest that is booted for the probe', () => {
  test('counts when its marker comes over the serial port', async () => {
    const result = await bootsUnder(
      'tcg',
      await options({ says: `hello\n${MARKER}\n` }, { deadlineMs: LONG_MS }),
    );
    expect(result).toEqual({ works: true, reason: 'a guest came up under tcg' });
  });

  test('does not count when it says nothing until the deadline', async () => {
    expect(await bootsUnder('tcg', await options('silent'))).toEqual({
      works: false,
      reason: `a guest did not come up under tcg within ${SHORT_MS} ms`,
    });
  });

  test('does not count when it says something else', async () => {
    expect(await bootsUnder('tcg', await options({ says: MARKER.slice(0, -1) }))).toMatchObject({
      works: false,
    });
  });

  test('is given up with the start that it is for, and QEMU ends with it', async () => {
    const given = await options('silent', { deadlineMs: LONG_MS, signal: AbortSignal.timeout(SHORT_MS) });
    await expect(bootsUnder('tcg', given)).rejects.toHaveProperty('name', 'TimeoutError');
  });

  test('does not count when QEMU ends', async () => {
    expect(await bootsUnder('tcg', await options('crashing', { deadlineMs: LONG_MS }))).toEqual({
      works: false,
      reason: 'QEMU ended under tcg: it said nothing',
    });
  });
});

describe('the choice of the accelerator', () => {
  test('is not probed for TCG', async () => {
    const given = await options('silent', { requested: 'tcg' });
    expect(await probeAccelerator(given)).toMatchObject({ accel: 'tcg', source: 'requested' });
    expect(existsSync(given.cacheFile)).toBe(false);
  });

  // On a machine without /dev/kvm there is nothing to boot: the same answer, without the probe.
  const kvmThere = existsSync('/dev/kvm');

  test('falls back to TCG when no guest comes up under KVM, whether its device opens or not', async () => {
    const given = await options('silent');
    expect(await probeAccelerator(given)).toMatchObject({
      accel: 'tcg',
      source: kvmThere ? 'booted' : 'no device',
    });
    expect(await probeAccelerator(given)).toMatchObject({
      accel: 'tcg',
      source: kvmThere ? 'remembered' : 'no device',
    });
  });

  test('is an error when KVM was asked for by name', async () => {
    const given = await options('silent', { requested: 'kvm' });
    await expect(probeAccelerator(given)).rejects.toThrow(
      expect.objectContaining({ code: 'QEMU_KVM_UNUSABLE' }),
    );
  });

  test.runIf(kvmThere)('is not remembered when the start was given up meanwhile', async () => {
    // Under a KVM that does not work QEMU may spin or end at once, as the machine will have it: this one takes its time.
    const qemu = { path: join(folder, 'slow-qemu'), version: '7.2.0' };
    writeFileSync(qemu.path, '#!/bin/sh\nexec sleep 60\n', { mode: 0o755 });
    const signal = AbortSignal.timeout(SHORT_MS);
    const given = await options('silent', { qemu, deadlineMs: LONG_MS, signal });
    await expect(probeAccelerator(given)).rejects.toHaveProperty('name', 'TimeoutError');
    expect(existsSync(given.cacheFile)).toBe(false);
  });

  test.runIf(kvmThere)('is not remembered where this user was not let in', async () => {
    const refusal = 'Could not access KVM kernel module: Permission denied';
    const qemu = { path: join(folder, 'refused-qemu'), version: '7.2.0' };
    writeFileSync(qemu.path, `#!/bin/sh\necho 'qemu: -accel kvm: ${refusal}' >&2\nexit 1\n`, { mode: 0o755 });
    const given = await options('silent', { qemu, deadlineMs: LONG_MS });
    expect(await probeAccelerator(given)).toMatchObject({ accel: 'tcg', source: 'booted' });
    expect(existsSync(given.cacheFile)).toBe(false);
    // Any other failure is.
    writeFileSync(qemu.path, '#!/bin/sh\nexit 1\n');
    await probeAccelerator(given);
    expect(existsSync(given.cacheFile)).toBe(true);
  });

  test.runIf(kvmThere)('is not taken from a cache of another machine or a broken one', async () => {
    const given = await options('silent');
    await probeAccelerator(given);
    const remembered = JSON.parse(readFileSync(given.cacheFile, 'utf8'));
    for (const cache of [
      JSON.stringify({ ...remembered, key: 'another machine', works: true }),
      '{"works": tr',
      'null',
    ]) {
      writeFileSync(given.cacheFile, cache);
      expect(await probeAccelerator(given)).toMatchObject({ accel: 'tcg', source: 'booted' });
    }
  });

  test.runIf(kvmThere)('is KVM when it is remembered to work', async () => {
    const given = await options('silent');
    await probeAccelerator(given);
    const remembered = JSON.parse(readFileSync(given.cacheFile, 'utf8'));
    writeFileSync(given.cacheFile, JSON.stringify({ ...remembered, works: true, reason: 'it came up' }));
    expect(await probeAccelerator(given)).toEqual({
      accel: 'kvm',
      reason: 'it came up',
      source: 'remembered',
    });
  });

  test.runIf(kvmThere)('survives a cache that cannot be written', async () => {
    writeFileSync(join(folder, 'file'), '');
    const given = await options('silent', { cacheFile: join(folder, 'file', 'cache.json') });
    expect(await probeAccelerator(given)).toMatchObject({ accel: 'tcg', source: 'booted' });
  });
});
