import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { ensureDemoGuest } from '../../guest/build.ts';
import { DEFAULT_SCALING } from '../../src/allocation/scaling-policy.ts';
import { VmAgent } from '../../src/allocation/vm-agent.ts';
import type { Forecast } from '../../src/api/foresight-resources.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { ControlClient } from '../../src/control/control-client.ts';
import { controlSocketOf } from '../../src/control/run-directory.ts';
import { TestHost } from '../kit/test-host.ts';

const CLI = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const DEADLINE_MS = 90_000;

let host: TestHost;
beforeEach(async () => {
  host = await TestHost.start();
});
afterEach(() => host[Symbol.asyncDispose]());

async function understudy(...args: string[]) {
  const child = spawn(process.execPath, [CLI, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const closed = once(child, 'close');
  const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)]);
  const [exitCode] = await closed;
  return { exitCode, stdout, stderr };
}

async function declare(more: string): Promise<void> {
  const { kernel, initrd, cmdline } = await ensureDemoGuest();
  const boot = `accel: tcg\nboot: {kernel: ${kernel}, initrd: ${initrd}, cmdline: ${cmdline}}\n`;
  const spec = `name: seen\nmemory: 128MiB\ntelemetry: {interval: 100ms}\n${boot}${more}`;
  await host.client.call('declareVm', { body: { spec, directory: '/', desired: 'running' } });
}

async function forecastWhen(holds: (forecast: Forecast) => boolean): Promise<Forecast> {
  return await vi.waitFor(
    async () => {
      const params = { name: 'seen', resource: 'cpu' as const };
      const forecast = await host.client.call('getForecast', { params });
      expect(holds(forecast)).toBe(true);
      return forecast;
    },
    { timeout: DEADLINE_MS, interval: 200 },
  );
}

it('a VM is forecast soon after its start, goes on to be over a takeover, and by the next daemon', async () => {
  const early = await understudy('forecast', 'seen', '--json');
  expect([early.exitCode, JSON.parse(early.stderr || early.stdout).error?.code]).toEqual([
    3,
    'HOST_VM_UNKNOWN',
  ]);
  await declare('');
  const first = await forecastWhen(({ rows }) => rows.length > 0);
  for (const { values } of first.rows) {
    expect(values.toSorted((a, b) => a - b)).toEqual(values);
    expect(values.every((value) => value >= 0 && value < 4000)).toBe(true);
  }
  expect(first.allocation).toMatchObject({ allocated: 1000, min: 100, max: 1000 });

  const shown = await understudy('forecast', 'seen');
  expect(shown.stdout).toContain('seen, cpu\n');
  expect(shown.stdout).toMatch(/in 1 h +[\d.]+ cores/);
  const explained = await understudy('explain', 'seen');
  expect(explained.stdout).toContain('seen: what is decided is only said (allocation.mode: recommend)');
  expect((await understudy('forecast', 'seen', 'gpu')).exitCode).toBe(2);
  const [cpu] = JSON.parse((await understudy('capacity', '--risk', '0.1', '--json')).stdout).resources;
  expect(cpu).toMatchObject({ resource: 'cpu', vms: 1, allocated: 1000, capacity: expect.any(Number) });

  // QEMU is killed: samples are of the next one, and the forecast is that of the same VM.
  await host.until('seen', ({ observed }) => observed.state === 'protected');
  using control = await ControlClient.connect(controlSocketOf('seen'), { vm: 'seen', clock });
  process.kill((await control.status()).primary?.pid ?? 0, 'SIGKILL');
  const { id: after } = await host.nextEvent('promoted', { vm: 'seen', after: 0 });
  const takenMs = Date.now();
  await forecastWhen(({ at, rows }) => rows.length > 0 && Date.parse(at) > takenMs);
  expect((await host.events()).filter(({ id, kind }) => id > after && kind === 'anomaly')).toEqual([]);

  // The next daemon knows at its first sample what the last one knew.
  await host.end('SIGTERM');
  await host.startDaemon();
  const again = await vi.waitFor(
    async () => await host.client.call('getForecast', { params: { name: 'seen', resource: 'cpu' } }),
    { timeout: DEADLINE_MS, interval: 50 },
  );
  expect(again.rows.length).toBe(first.rows.length);

  // What was measured before the takeover and before this daemon is kept.
  const measured = JSON.parse((await understudy('history', 'seen', '--resolution', '1s', '--json')).stdout);
  const before = measured.buckets.filter(
    ({ startedAt }: { startedAt: string }) => Date.parse(startedAt) < takenMs,
  );
  expect(before.length).toBeGreaterThan(1);
  expect(measured.metrics).toContain('memory.residentBytes');
});

/** What an agent has learnt of two days in which the VM needed little: it has 0.3 of a core. */
function savedAgent(): Uint8Array {
  const policy = { ...DEFAULT_SCALING, min: 300, max: 600 };
  const scaled = { cpuMillicores: { policy, allocated: 300, all: 1000 } };
  const agent = new VmAgent({ horizonMs: 3_600_000, scaled, phase: 0 });
  const startMs = Date.now() - 2 * 3_600_000;
  for (let second = 0; second < 7000; second += 10)
    agent.take({
      ...{ vm: 'seen', instanceId: 'before', intervalMs: 10_000 },
      ...{ wallMs: startMs + second * 1000, monotonicMs: second * 1000 },
      values: { 'cpu.usedCores': 0.05 },
    });
  expect(agent.view('cpuMillicores').scaling?.allocated).toBe(300);
  return agent.save();
}

it('a VM that has what it usually needs gets more at once when it is held back, and is free when nobody decides any more', async () => {
  mkdirSync(join(host.stateDirectory, 'agents'), { recursive: true });
  const [learnt, limited] = ['agent', 'limited'].map((name) =>
    join(host.stateDirectory, 'agents', `seen.${name}`),
  );
  writeFileSync(learnt ?? '', savedAgent());
  // What it has is not only recommended: it was carried out before.
  writeFileSync(limited ?? '', '');
  const before = await host.lastEventId();
  await declare('allocation: {mode: auto, cpu: {min: 0.3, max: 0.6}}\n');
  const relief = await host.nextEvent('allocation', { vm: 'seen', after: before });
  expect(relief.facts).toMatchObject({
    mode: 'auto',
    decision: 'relief',
    allocated: 300,
    resource: 'cpuMillicores',
  });
  using control = await ControlClient.connect(controlSocketOf('seen'), { vm: 'seen', clock });
  // What the kernel says, not what was decided.
  const untilInForce = (millicores: number | null) =>
    vi.waitFor(async () => expect((await control.limits({})).cpuMillicores.inForce).toBe(millicores), {
      timeout: DEADLINE_MS,
      interval: 100,
    });
  await untilInForce(600);
  const explained = await understudy('explain', 'seen');
  expect(explained.stdout).toContain('what is decided is carried out (allocation.mode: auto)');
  expect(explained.stdout).toMatch(/more at once .* granted\)/);
  // While it runs.
  const { spec, version } = await host.client.call('getVm', { params: { name: 'seen' } });
  await host.client.call('changeVm', {
    params: { name: 'seen' },
    headers: { 'if-match': `"${version}"` },
    body: { spec: spec.replace('mode: auto', 'mode: off'), directory: '/' },
  });
  await untilInForce(null);
});
