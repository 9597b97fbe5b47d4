import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it, onTestFinished } from 'vitest';
import { systemClock } from '../../src/base/clock.ts';
import { MIB } from '../../src/base/units.ts';
import { ControlClient } from '../../src/control/control-client.ts';
import { controlSocketOf } from '../../src/control/run-directory.ts';
import { ByteSink } from '../kit/byte-sink.ts';
import { cpuSecondsOf } from '../kit/cpu-use.ts';
import { KeptVm } from '../kit/kept-vm.ts';
import { type GuestConsole, TestVm } from '../kit/test-vm.ts';

const OVER_MS = 3000;
const NONE = { wanted: null, inForce: null };
const both = (amount: number) => ({ wanted: amount, inForce: amount });

/** By how much something grows in a second. */
async function perSecond(read: () => number | Promise<number>): Promise<number> {
  const beginMs = systemClock.nowMs();
  const before = await read();
  await systemClock.sleep(OVER_MS);
  return ((await read()) - before) / ((systemClock.nowMs() - beginMs) / 1000);
}

const coresOf = (pid: number) => perSecond(() => cpuSecondsOf(pid));

async function shellOf(vm: TestVm): Promise<GuestConsole> {
  const console = vm.openConsole();
  await console.untilShell();
  return console;
}

function controlOf({ name }: KeptVm): Promise<ControlClient> {
  return ControlClient.connect(controlSocketOf(name), { vm: name, clock: systemClock });
}

/** What a VM has used since a moment ago, by its telemetry, and what it would have used if others had left it. */
async function measuredOf(vm: TestVm): Promise<{ demand: number; throttled: number }> {
  const values: Readonly<Record<string, number>>[] = [];
  using samples = vm.keeper.samples({ samplesMax: 100, onSample: () => {} });
  await systemClock.sleep(OVER_MS);
  for (let fed = samples.take(); fed !== undefined; fed = samples.take()) values.push(fed.sample.values);
  const mean = (metric: string) =>
    values.reduce((sum, each) => sum + (each[metric] ?? 0), 0) / Math.max(1, values.length);
  return {
    demand: mean('cpu.usedCores') + mean('cpu.waitedCores'),
    throttled: mean('cpu.throttledShare'),
  };
}

it('a busy guest uses what it may, also after a takeover, and all there is once it may again', async () => {
  await using vm = await TestVm.start();
  using console = await shellOf(vm);
  console.type('while :; do :; done');
  await vm.keeper.telemetry({ intervalMs: 250 });
  expect(await vm.keeper.limits({})).toMatchObject({ cpuMillicores: NONE });
  // The control: without a limit it wants a core, and waits for others at most.
  const before = await measuredOf(vm);
  expect(before.demand).toBeGreaterThan(0.5);
  expect(before.throttled).toBeLessThan(0.05);

  const { cpuMillicores, netBytesPerSecond } = await vm.keeper.limits({ cpuMillicores: 300 });
  expect(cpuMillicores).toEqual(both(300));
  expect(netBytesPerSecond).toEqual(NONE);
  expect(await coresOf(vm.primaryPid)).toBeLessThan(0.36);
  expect((await measuredOf(vm)).throttled).toBeGreaterThan(0.2);

  await vm.untilProtected();
  const promoted = vm.nextEvent('promoted');
  vm.signalPrimary('SIGKILL');
  await promoted;
  expect(await vm.keeper.limits({})).toMatchObject({ cpuMillicores: both(300) });
  expect(await coresOf(vm.primaryPid)).toBeLessThan(0.36);
  expect(vm.eventKinds).not.toContain('limit-lost');

  expect(await vm.keeper.limits({ cpuMillicores: null })).toMatchObject({ cpuMillicores: NONE });
  const after = await measuredOf(vm);
  expect(after.demand).toBeGreaterThan(0.5);
  expect(after.throttled).toBeLessThan(0.05);
});

it('a limit that fails half-way leaves what was there before, and more than the maximum is refused', async () => {
  await using vm = await TestVm.start({ keeper: { cpuShareMax: 1.5 } });
  expect(await vm.keeper.limits({ cpuMillicores: 900, netBytesPerSecond: MIB })).toMatchObject({
    ...{ cpuMillicores: both(900), netBytesPerSecond: both(MIB) },
  });
  const disarm = vm.failpoints.arm('limits.before-read-back', () => {
    throw new Error('no');
  });
  const failed = await vm.keeper.limits({ cpuMillicores: 500, netBytesPerSecond: 2 * MIB });
  const problem = { code: 'KEEPER_INTERNAL', message: 'no' };
  expect(failed.cpuMillicores).toEqual({ wanted: 500, inForce: 900, problem });
  expect(failed.netBytesPerSecond).toEqual({ wanted: 2 * MIB, inForce: MIB, problem });
  disarm();
  expect(await vm.keeper.limits({})).toMatchObject({
    cpuMillicores: both(900),
    netBytesPerSecond: both(MIB),
  });
  // The control: without the failure it is set.
  expect(await vm.keeper.limits({ cpuMillicores: 500 })).toMatchObject({ cpuMillicores: both(500) });

  const refused = await vm.keeper.limits({ cpuMillicores: 1501, memoryBytes: MIB, diskBytesPerSecond: MIB });
  expect(refused).toMatchObject({
    cpuMillicores: { wanted: 1501, inForce: 500, problem: { code: 'KEEPER_LIMIT_REFUSED' } },
    memoryBytes: { inForce: null, problem: { code: 'KEEPER_LIMIT_IMPOSSIBLE' } },
    diskBytesPerSecond: { inForce: null, problem: { code: 'KEEPER_LIMIT_IMPOSSIBLE' } },
  });
  // Of a protected VM as well: no dirty log is told of pages that read as zeros.
  const ready = await vm.keeper.limits({ memoryReadyBytes: 128 * MIB });
  expect(ready.memoryReadyBytes).toEqual(both(128 * MIB));
  const tooMuch = await vm.keeper.limits({ memoryReadyBytes: 129 * MIB });
  expect(tooMuch.memoryReadyBytes).toMatchObject({ problem: { code: 'KEEPER_LIMIT_REFUSED' } });
  const none = {
    ...{ cpuMillicores: null, netBytesPerSecond: null, diskBytesPerSecond: null },
    ...{ memoryBytes: null, memoryReadyBytes: null },
  };
  const freed = await vm.keeper.limits(none);
  for (const { problem } of Object.values(freed)) expect(problem).toBe(undefined);
  expect(freed.netBytesPerSecond).toEqual(NONE);
  // What it was given for good is still there.
  expect(freed.cpuMillicores).toEqual({ wanted: null, inForce: 1500 });
});

it('a guest that sends all it can is heard at its limit, and at more without', async () => {
  await using vm = await TestVm.start();
  await using sink = await ByteSink.listen(vm.netns, 7000);
  using console = await shellOf(vm);
  console.type('cat /dev/zero | nc 10.77.0.1 7000 &');
  const free = await perSecond(() => sink.receivedBytes());
  expect(free).toBeGreaterThan(0.6 * MIB);
  expect(await vm.keeper.limits({ netBytesPerSecond: MIB / 4 })).toMatchObject({
    netBytesPerSecond: both(MIB / 4),
  });
  // What had left already has arrived by then.
  await systemClock.sleep(500);
  const limited = await perSecond(() => sink.receivedBytes());
  expect(limited).toBeGreaterThan(0.05 * MIB);
  expect(limited).toBeLessThan(0.3 * MIB);
  await vm.keeper.limits({ netBytesPerSecond: null });
  expect(await perSecond(() => sink.receivedBytes())).toBeGreaterThan(2 * limited);
});

it('all disks together are as fast as they may be, and epochs do not wait for them', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'us-limits-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const disk = (name: string) => `{path: ${join(folder, name)}, format: raw, size: 64MiB, create: true}`;
  await using vm = await TestVm.start({ clients: 0, yaml: `disks: [${disk('a')}, ${disk('b')}]` });
  using console = vm.openConsole();
  await console.take(/understudy-guest: ready[\s\S]*\/ # /);
  for (const device of ['vda', 'vdb'])
    console.type(`(while :; do dd if=/dev/${device} iflag=direct of=/dev/null bs=64k 2>/dev/null; done) &`);
  await vm.keeper.telemetry({ intervalMs: 500 });
  const readRate = async () => {
    await systemClock.sleep(OVER_MS);
    const values = (await vm.keeper.telemetry({})).last?.values ?? {};
    return (values['disk.disk0.readBytesPerSecond'] ?? 0) + (values['disk.disk1.readBytesPerSecond'] ?? 0);
  };
  expect(await readRate()).toBeGreaterThan(8 * MIB);
  expect(await vm.keeper.limits({ diskBytesPerSecond: 2 * MIB })).toMatchObject({
    diskBytesPerSecond: both(2 * MIB),
  });
  const limited = await readRate();
  expect(limited).toBeGreaterThan(0.5 * MIB);
  expect(limited).toBeLessThan(5 * MIB);
  expect(vm.status.phase).toBe('protected');

  const promoted = vm.nextEvent('promoted');
  vm.signalPrimary('SIGKILL');
  await promoted;
  expect(await vm.keeper.limits({})).toMatchObject({ diskBytesPerSecond: both(2 * MIB) });
  expect(await readRate()).toBeLessThan(5 * MIB);
  await vm.keeper.limits({ diskBytesPerSecond: null });
  expect(await readRate()).toBeGreaterThan(8 * MIB);
});

it('a guest with a balloon has the memory that it may have, and all of it again afterwards', async () => {
  const yaml = 'shadow: {enabled: false}\nqemu: {extraArgs: [-device, virtio-balloon-pci]}';
  await using vm = await TestVm.start({ clients: 0, yaml });
  using console = vm.openConsole();
  await console.take(/understudy-guest: ready[\s\S]*\/ # /);
  const totalKib = async () => {
    console.type('grep MemTotal: /proc/meminfo');
    return Number((await console.take(/MemTotal:\s+(\d+) kB/))[1]);
  };
  const before = await totalKib();
  const order = { memoryBytes: 96 * MIB };
  expect(await vm.keeper.limits(order)).toMatchObject({ memoryBytes: both(96 * MIB) });
  expect(before - (await totalKib())).toBeGreaterThan(30 * 1024);
  expect(await vm.keeper.limits({ memoryBytes: 129 * MIB })).toMatchObject({
    memoryBytes: { inForce: 96 * MIB, problem: { code: 'KEEPER_LIMIT_REFUSED' } },
  });
  expect(await vm.keeper.limits({ memoryBytes: null })).toMatchObject({ memoryBytes: NONE });
  expect(Math.abs((await totalKib()) - before)).toBeLessThan(1024);
});

it('what was ordered holds under the next keeper of a VM that goes on', async () => {
  await using vm = await KeptVm.start({ shadow: false });
  {
    using control = await controlOf(vm);
    const set = await control.limits({ cpuMillicores: 700, netBytesPerSecond: 8 * MIB });
    expect(set).toMatchObject({ cpuMillicores: both(700), netBytesPerSecond: both(8 * MIB) });
  }
  await vm.killKeeper();
  await vm.untilStandsStill();
  await vm.startKeeper();
  using control = await controlOf(vm);
  expect(await control.limits()).toMatchObject({
    ...{ cpuMillicores: both(700), netBytesPerSecond: both(8 * MIB), diskBytesPerSecond: NONE },
  });
});
