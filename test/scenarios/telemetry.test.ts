import { mkdtempSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { MIB } from '../../src/base/units.ts';
import type { Keeper } from '../../src/keeper/keeper.ts';
import type { Sample } from '../../src/telemetry/sample.ts';
import { DATA_ON_FIRST_DISK, makeDataDisk } from '../kit/data-disk.ts';
import { TestVm, until } from '../kit/test-vm.ts';

const OFTEN = 'telemetry: {interval: 100ms}';
const ALONE = 'shadow: {enabled: false, hangTimeoutMs: 600000}';
const DEADLINE_MS = 60_000;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-telemetry-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** Samples of a keeper from now on. */
function samplesOf(keeper: Keeper): Sample[] {
  const samples: Sample[] = [];
  const subscription = keeper.samples({
    samplesMax: 8,
    onSample: () => {
      for (let fed = subscription.take(); fed !== undefined; fed = subscription.take()) {
        expect(fed.lost).toBe(0);
        samples.push(fed.sample);
      }
    },
  });
  onTestFinished(() => subscription[Symbol.dispose]());
  return samples;
}

/** Some sample has more than this of a metric. */
async function shows(samples: readonly Sample[], metric: string, moreThan = 0): Promise<void> {
  await expect
    .poll(() => samples.some(({ values }) => (values[metric] ?? -1) > moreThan), {
      timeout: DEADLINE_MS,
      message: `${metric} > ${moreThan}`,
    })
    .toBe(true);
}

function expectSound(samples: readonly Sample[]): void {
  for (const [index, { vm, monotonicMs, intervalMs, values }] of samples.entries()) {
    const before = samples[index - 1];
    expect(vm).toBe(samples[0]?.vm);
    if (before !== undefined) expect(monotonicMs - before.monotonicMs).toBeCloseTo(intervalMs, 6);
    for (const [name, value] of Object.entries(values))
      expect(Number.isFinite(value) && value >= 0, `${name} = ${value}`).toBe(true);
    // What two processes have used, as if it were one, would be seconds of processor time in a tenth of a second.
    expect(values['cpu.usedCores'] ?? 0).toBeLessThan(2 * availableParallelism());
  }
}

describe('a protected VM that is measured', () => {
  it('shows its load, and goes on to after a takeover, as the same instance', async () => {
    const path = join(folder, 'data.img');
    await makeDataDisk(path);
    await using vm = await TestVm.start({
      ...{ clients: 2, boots: true, cmdline: DATA_ON_FIRST_DISK },
      yaml: `${OFTEN}\ndisks: [{path: ${path}, format: raw}]`,
    });
    const samples = samplesOf(vm.keeper);
    await vm.load.begin();
    for (const metric of [
      ...['cpu.usedCores', 'cpu.waitedCores', 'cpu.overheadCores', 'memory.workingSetBytes'],
      ...['net.nic0.receivedBytesPerSecond', 'net.nic0.sentBytesPerSecond'],
      ...['net.nic0.receivedFramesPerSecond', 'net.nic0.sentFramesPerSecond'],
      ...['disk.disk0.writeOpsPerSecond', 'disk.disk0.writeBytesPerSecond', 'disk.disk0.queueDepth'],
      ...['disk.disk0.latencyP50Ms', 'disk.disk0.latencyP99Ms'],
      ...['epoch.perSecond', 'epoch.pausedShare', 'epoch.dirtyBytesPerSecond'],
      'telemetry.sampleMicroseconds',
    ])
      await shows(samples, metric);
    await shows(samples, 'memory.residentBytes', 16 * MIB);
    expect(samples.at(-1)?.values['memory.workingSetBytes']).toBeLessThanOrEqual(128 * MIB);

    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    await promoted;
    const after = samples.length;
    const since = () => samples.slice(after);
    await expect
      .poll(() => since().filter(({ values }) => (values['cpu.usedCores'] ?? 0) > 0).length, {
        timeout: DEADLINE_MS,
      })
      .toBeGreaterThan(3);
    await vm.untilProtected();
    const inSync = samples.length;
    for (const metric of ['disk.disk0.writeOpsPerSecond', 'net.nic0.sentBytesPerSecond', 'epoch.perSecond'])
      await expect
        .poll(() => samples.slice(inSync).some(({ values }) => (values[metric] ?? 0) > 0), {
          timeout: DEADLINE_MS,
          message: metric,
        })
        .toBe(true);
    await vm.load.end();
    expectSound(samples);
    expect(new Set(samples.map(({ instanceId }) => instanceId)).size).toBe(1);
    expect(vm.eventKinds.filter((kind) => kind.startsWith('telemetry'))).toEqual([]);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
  });

  it('is measured as often as was said last, and says so', async () => {
    await using vm = await TestVm.start();
    const samples = samplesOf(vm.keeper);
    expect(await vm.keeper.telemetry({})).toMatchObject({ intervalMs: 1000, failing: [] });
    const told = vm.nextEvent('telemetry-interval');
    await vm.keeper.telemetry({ intervalMs: 100 });
    expect((await told).facts).toEqual({ intervalMs: 100 });
    await until(() => samples.filter(({ intervalMs }) => intervalMs < 500).length >= 5);
    const { last, profile } = await vm.keeper.telemetry({ intervalMs: 60_000 });
    expect(profile).toMatchObject({ vm: vm.spec.name, instanceId: last?.instanceId });
    expect(profile?.metrics['cpu.usedCores']?.count).toBeGreaterThan(0);
    expect(vm.status.telemetry).toMatchObject({ intervalMs: 60_000, failing: [], last });
  });
});

describe('a VM without a shadow that is measured', () => {
  it('shows what its guest says of its memory, if it has a balloon, and nothing of epochs that there are none of', async () => {
    const qemu = 'qemu: {extraArgs: [-device, virtio-balloon-pci]}';
    await using vm = await TestVm.start({ boots: true, yaml: [OFTEN, ALONE, qemu].join('\n') });
    const samples = samplesOf(vm.keeper);
    await shows(samples, 'memory.guestFreeBytes');
    await shows(samples, 'memory.guestAvailableBytes');
    const { values = {} } = samples.at(-1) ?? {};
    expect(values['memory.guestAvailableBytes']).toBeLessThan(128 * MIB);
    expect(values).not.toHaveProperty('memory.workingSetBytes');
    expect(values['epoch.perSecond']).toBe(0);
    expectSound(samples);
  });

  it('goes on to be measured while its QEMU hangs, but for what only that knows; and is another instance when it boots anew', async () => {
    const path = join(folder, 'data.raw');
    await using vm = await TestVm.start({
      boots: true,
      yaml: [OFTEN, ALONE, `disks: [{path: ${path}, format: raw, size: 8MiB, create: true}]`].join('\n'),
    });
    const samples = samplesOf(vm.keeper);
    await until(() => samples.some(({ values }) => 'disk.disk0.readOpsPerSecond' in values));
    const hangs = vm.nextEvent('telemetry-hangs');
    vm.signalPrimary('SIGSTOP');
    expect((await hangs).facts).toEqual({ source: 'disks' });
    const { values = {} } = samples.at(-1) ?? {};
    expect(values).not.toHaveProperty('disk.disk0.readOpsPerSecond');
    expect(values).toHaveProperty('cpu.usedCores');
    expect((await vm.keeper.telemetry({})).failing).toEqual(['disks']);
    const recovered = vm.nextEvent('telemetry-recovered');
    vm.signalPrimary('SIGCONT');
    expect((await recovered).facts).toEqual({ source: 'disks' });
    await until(() => 'disk.disk0.readOpsPerSecond' in (samples.at(-1)?.values ?? {}));

    const restarted = vm.nextEvent('restarted-cold');
    vm.signalPrimary('SIGKILL');
    await restarted;
    const before = samples[0]?.instanceId;
    await until(() => samples.at(-1)?.instanceId !== before);
    await until(() => (samples.at(-1)?.values['cpu.usedCores'] ?? 0) > 0);
    expectSound(samples);
  });
});
