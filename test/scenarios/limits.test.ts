import { expect, it } from 'vitest';
import { systemClock } from '../../src/base/clock.ts';
import { cpuSecondsOf } from '../kit/cpu-use.ts';
import { TestVm } from '../kit/test-vm.ts';

const OVER_MS = 3000;
const NONE = { wanted: null, inForce: null };

/** Cores that a process uses. */
async function coresOf(pid: number): Promise<number> {
  const beginMs = systemClock.nowMs();
  const before = cpuSecondsOf(pid);
  await systemClock.sleep(OVER_MS);
  return (cpuSecondsOf(pid) - before) / ((systemClock.nowMs() - beginMs) / 1000);
}

/** A guest that computes and does nothing else. */
async function makeBusy(vm: TestVm): Promise<void> {
  using console = vm.openConsole();
  await console.untilShell();
  console.type('while :; do :; done');
  await systemClock.sleep(500);
}

async function throttledShareOf(vm: TestVm): Promise<number | undefined> {
  const { profile } = await vm.keeper.telemetry({});
  return profile?.metrics['cpu.throttledShare']?.max;
}

it('a busy guest uses what it may, also after a takeover, and all there is once it may again', async () => {
  await using vm = await TestVm.start();
  await makeBusy(vm);
  // The control: without a limit it uses a core, or what others leave of one.
  const free = await coresOf(vm.primaryPid);
  expect(free).toBeGreaterThan(0.5);
  await vm.keeper.telemetry({ intervalMs: 250 });
  expect(await vm.keeper.limits({})).toMatchObject({ cpuMillicores: NONE });

  const { cpuMillicores, netBytesPerSecond } = await vm.keeper.limits({ cpuMillicores: 300 });
  expect(cpuMillicores).toEqual({ wanted: 300, inForce: 300 });
  expect(netBytesPerSecond).toEqual(NONE);
  expect(await coresOf(vm.primaryPid)).toBeLessThan(0.36);
  expect(await throttledShareOf(vm)).toBeGreaterThan(0.2);

  await vm.untilProtected();
  const promoted = vm.nextEvent('promoted');
  vm.signalPrimary('SIGKILL');
  await promoted;
  expect(await vm.keeper.limits({})).toMatchObject({ cpuMillicores: { wanted: 300, inForce: 300 } });
  expect(await coresOf(vm.primaryPid)).toBeLessThan(0.36);
  expect(vm.eventKinds).not.toContain('limit-lost');

  expect(await vm.keeper.limits({ cpuMillicores: null })).toMatchObject({ cpuMillicores: NONE });
  expect(await coresOf(vm.primaryPid)).toBeGreaterThan(0.5);
});

it('a limit that fails half-way leaves what was there before', async () => {
  await using vm = await TestVm.start();
  await vm.keeper.limits({ cpuMillicores: 900 });
  const disarm = vm.failpoints.arm('limits.before-read-back', () => {
    throw new Error('no');
  });
  expect(await vm.keeper.limits({ cpuMillicores: 500 })).toMatchObject({
    cpuMillicores: { wanted: 500, inForce: 900, problem: { code: 'KEEPER_INTERNAL', message: 'no' } },
  });
  disarm();
  expect(await vm.keeper.limits({})).toMatchObject({ cpuMillicores: { wanted: 900, inForce: 900 } });
  // The control: without the failure it is set.
  expect(await vm.keeper.limits({ cpuMillicores: 500 })).toMatchObject({
    cpuMillicores: { wanted: 500, inForce: 500 },
  });
});
