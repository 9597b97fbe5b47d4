import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { type AgentSettings, agentSettings } from '../allocation/agent-settings.ts';
import { systemClock } from '../base/clock.ts';
import { silentLogger as log } from '../base/logger.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import type { LimitsOrder, LimitsStatus } from '../control/limits-status.ts';
import type { Sample } from '../telemetry/sample.ts';
import { AgentFiles } from './agent-files.ts';
import { VmAgents, type VmAgentsOptions } from './vm-agents.ts';

const MINUTE_MS = 60_000;
const START_MS = Date.UTC(2026, 0, 5);

interface Told {
  readonly kind: string;
  readonly vm: string;
  readonly facts: Readonly<Record<string, unknown>>;
}

let folder: string;
let nowMs: number;
let told: Told[];
let orders: { readonly vm: string; readonly order: LimitsOrder }[];
let answer: (order: LimitsOrder) => Promise<LimitsStatus>;
const clock = { ...systemClock, nowMs: () => nowMs, wallMs: () => START_MS + nowMs };

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-agents-'));
  nowMs = 0;
  told = [];
  orders = [];
  answer = async (order) => statusOf(order);
});

/** A keeper that does all that it is told, but for what `problem` says. */
function statusOf(order: LimitsOrder, problem?: { code: string; message: string }): LimitsStatus {
  const none = { wanted: null, inForce: null };
  const all = { cpuMillicores: none, diskBytesPerSecond: none, netBytesPerSecond: none, memoryBytes: none };
  const wanted = order.cpuMillicores ?? null;
  const cpuMillicores =
    problem === undefined ? { wanted, inForce: wanted } : { wanted, inForce: null, problem };
  return { ...all, memoryReadyBytes: none, cpuMillicores };
}
afterEach(() => rmSync(folder, { recursive: true }));

function settings(vm: string, more: string): AgentSettings {
  const text = `name: ${vm}\nvcpus: 2\nmemory: 64MiB\nboot: {kernel: k}\n${more}`;
  return agentSettings(parseVmSpec(text, { source: 'a.yaml', directory: '/' }));
}

function optionsOf({ cores = 4 }: { readonly cores?: number } = {}): Omit<VmAgentsOptions, 'settingsOf'> {
  return {
    capacity: {
      cpuMillicores: 1000 * cores,
      ...{ memoryBytes: 2 ** 30, diskBytesPerSecond: 2 ** 40, netBytesPerSecond: 2 ** 40 },
    },
    ...{ files: new AgentFiles(folder), clock, log },
    publish: (kind, vm, facts) => told.push({ kind, vm, facts }),
    order: async (vm, order) => {
      orders.push({ vm, order });
      return await answer(order);
    },
  };
}

function agents({
  more = '',
  cores = 4,
}: {
  readonly more?: string;
  readonly cores?: number;
} = {}): VmAgents {
  const settingsOf = (vm: string) => (vm === 'stranger' ? undefined : settings(vm, more));
  return new VmAgents({ ...optionsOf({ cores }), settingsOf });
}

/** A sample a minute. */
function feed(
  host: VmAgents,
  {
    vm = 'a',
    minutes,
    cores,
    throttled = 0,
  }: { vm?: string; minutes: number; cores: number; throttled?: number },
): void {
  for (let minute = 0; minute < minutes; minute += 1) {
    nowMs += MINUTE_MS;
    const sample: Sample = {
      ...{ vm, instanceId: 'one', wallMs: clock.wallMs(), monotonicMs: nowMs, intervalMs: MINUTE_MS },
      values: { 'cpu.usedCores': cores, 'cpu.throttledShare': throttled },
    };
    host.take(sample);
  }
}

const decisions = () => told.filter(({ kind }) => kind === 'allocation').map(({ facts }) => facts);

test('a VM that needs little is told to get less, with what that was made from', async () => {
  await using host = agents();
  feed(host, { minutes: 40, cores: 0.2 });
  expect(decisions()[0]).toMatchObject({
    ...{ resource: 'cpuMillicores', mode: 'recommend', decision: 'lower', reason: 'too-much', to: 1500 },
    ...{ allocated: 2000, reserved: 0, used: 200, peak: { 0.5: expect.closeTo(200, -1) } },
  });
  expect(host.view('a')?.agent.view('cpuMillicores').scaling?.allocated).toBeLessThan(700);
});

test('one that is held back gets more at once, whatever others were promised, and that is told once a minute', async () => {
  await using host = agents({ cores: 2, more: 'allocation: {cpu: {max: 2}}\n' });
  feed(host, { minutes: 60, cores: 0.2 });
  feed(host, { vm: 'b', minutes: 1, cores: 0.2 });
  told = [];
  // What b has was given to it whether there was room or not: nothing is free.
  for (let second = 0; second < 30; second += 1) {
    nowMs += 1000 - MINUTE_MS;
    feed(host, { minutes: 1, cores: 0.3, throttled: 0.5 });
  }
  const [relief, ...others] = decisions();
  expect(relief).toMatchObject({ decision: 'relief', reason: 'held-back', granted: relief?.amount });
  expect(others).toEqual([]);
});

test('nothing is decided where that is not wanted, and the forecast goes on', async () => {
  await using host = agents({ more: 'allocation: {mode: off}\n' });
  feed(host, { minutes: 60, cores: 0.2 });
  expect(decisions()).toEqual([]);
  expect(host.forecast('a', 'cpuMillicores')?.values.length).toBeGreaterThan(0);
});

test('what agents have learnt is there for the next host daemon, and gone with the VM', async () => {
  {
    await using host = agents();
    feed(host, { minutes: 120, cores: 0.2 });
  }
  await using next = agents();
  feed(next, { minutes: 1, cores: 0.2 });
  expect(next.forecast('a', 'cpuMillicores', { horizonsMs: [3_600_000] })?.values[4]).toBeCloseTo(200, -1);
  next.forget('a');
  await vi.waitFor(() => expect(readdirSync(folder)).toEqual([]));
});

test('a file that is damaged costs what was learnt, and nothing else', async () => {
  writeFileSync(join(folder, 'a.agent'), 'no state at all, but long enough to be looked at');
  await using host = agents();
  feed(host, { minutes: 60, cores: 0.2 });
  expect(host.forecast('a', 'cpuMillicores')).toBeDefined();
});

test('samples of a VM that nobody declared here are of no interest', async () => {
  await using host = agents();
  feed(host, { vm: 'stranger', minutes: 5, cores: 1 });
  expect(host.view('stranger')).toBeUndefined();
});

test('what is unusual is told when it begins and when it is over', async () => {
  await using host = agents({ more: 'allocation: {mode: off}\n' });
  const usual = () => {
    for (let minute = 0; minute < 5; minute += 1)
      feed(host, { minutes: 1, cores: 0.2 + 0.01 * Math.sin(nowMs / 1e6) });
  };
  for (let step = 0; step < 600; step += 1) usual();
  told = [];
  feed(host, { minutes: 15, cores: 1.9 });
  expect(told).toMatchObject([
    { kind: 'anomaly', vm: 'a', facts: { resource: 'cpuMillicores', reason: expect.any(String) } },
  ]);
  for (let step = 0; step < 40; step += 1) usual();
  expect(told.at(-1)).toMatchObject({ kind: 'anomaly-over', vm: 'a' });
});

test('in mode auto what is decided is carried out, the newest for all, and taken back when nobody decides any more', async () => {
  let mode = 'auto';
  await using host = new VmAgents({
    ...optionsOf(),
    settingsOf: (vm) => settings(vm, `allocation: {mode: ${mode}}\n`),
  });
  feed(host, { minutes: 1, cores: 0.2 });
  expect(orders).toEqual([{ vm: 'a', order: { cpuMillicores: null } }]);
  for (let minute = 0; minute < 40; minute += 1) {
    feed(host, { minutes: 1, cores: 0.2 });
    await Promise.resolve();
    await new Promise(setImmediate);
  }
  expect(decisions()[0]).toMatchObject({ mode: 'auto', decision: 'lower', to: 1500 });
  expect(orders.map(({ order }) => order.cpuMillicores)).toContain(1500);
  expect(orders.at(-1)?.order.cpuMillicores).toBe(
    host.view('a')?.agent.view('cpuMillicores').scaling?.allocated,
  );
  mode = 'recommend';
  feed(host, { minutes: 1, cores: 0.2 });
  await new Promise(setImmediate);
  expect(orders.at(-1)?.order).toMatchObject({ cpuMillicores: null });
});

test('what could not be carried out is told once, and the next decision begins at what holds', async () => {
  answer = async (order) => statusOf(order, { code: 'KEEPER_LIMIT_IMPOSSIBLE', message: 'no cgroup' });
  await using host = agents({ more: 'allocation: {mode: auto}\n' });
  for (let minute = 0; minute < 20; minute += 1) {
    feed(host, { minutes: 1, cores: 0.2 });
    await new Promise(setImmediate);
  }
  const failures = told.filter(({ kind }) => kind === 'allocation-failed');
  expect(failures[0]?.facts).toMatchObject({ resource: 'cpuMillicores', code: 'KEEPER_LIMIT_IMPOSSIBLE' });
  expect(host.view('a')?.agent.view('cpuMillicores').scaling?.allocated).toBe(2000);
});

test('a keeper that does not answer is asked again later, and nothing else waits for it', async () => {
  answer = () => Promise.reject(new Error('no answer'));
  await using host = agents({ more: 'allocation: {mode: auto}\n' });
  for (let minute = 0; minute < 3; minute += 1) {
    feed(host, { minutes: 1, cores: 0.2 });
    await new Promise(setImmediate);
  }
  expect(orders.length).toBeGreaterThanOrEqual(2);
  expect(told.filter(({ kind }) => kind === 'allocation-failed').length).toBeGreaterThanOrEqual(1);
});

test('limits that a daemon left behind are taken back by the next one, until that is done, where nobody decides any more', async () => {
  {
    await using host = agents({ more: 'allocation: {mode: auto}\n' });
    for (let minute = 0; minute < 40; minute += 1) {
      feed(host, { minutes: 1, cores: 0.2 });
      await new Promise(setImmediate);
    }
  }
  expect(orders.at(-1)?.order.cpuMillicores).toBeLessThan(1000);
  orders = [];
  answer = () => Promise.reject(new Error('busy with a takeover'));
  await using next = agents();
  feed(next, { minutes: 1, cores: 0.2 });
  await new Promise(setImmediate);
  expect(orders).toMatchObject([{ order: { cpuMillicores: null, netBytesPerSecond: null } }]);
  answer = async (order) => statusOf(order);
  for (let minute = 0; minute < 3; minute += 1) {
    feed(next, { minutes: 1, cores: 0.2 });
    await new Promise(setImmediate);
  }
  expect(orders.length).toBe(2);
  await using last = agents();
  feed(last, { minutes: 1, cores: 0.2 });
  await new Promise(setImmediate);
  expect(orders.length).toBe(2);
});

test('a maximum below all that there is holds, and one that is not named any more does not', async () => {
  let more = 'allocation: {mode: auto, cpu: {max: 0.5}, net: {max: 1MiB}}\n';
  await using host = new VmAgents({ ...optionsOf(), settingsOf: (vm) => settings(vm, more) });
  feed(host, { minutes: 1, cores: 0.2 });
  await new Promise(setImmediate);
  expect(orders.at(-1)?.order).toEqual({ cpuMillicores: 500, netBytesPerSecond: 1_048_576 });
  more = 'allocation: {mode: auto, cpu: {max: 0.5}}\n';
  feed(host, { minutes: 1, cores: 0.2 });
  await new Promise(setImmediate);
  expect(orders.at(-1)?.order).toEqual({ cpuMillicores: 500, netBytesPerSecond: null });
});

test('a VM that is silent gives back what it had, and goes on from what was learnt of it', async () => {
  await using host = agents({ cores: 2 });
  feed(host, { minutes: 60, cores: 0.2 });
  feed(host, { vm: 'b', minutes: 10, cores: 0.2 });
  expect(host.view('a')).toBeUndefined();
  expect(host.hostView('cpuMillicores')).toMatchObject({ vms: 1, allocated: 2000 });
  feed(host, { minutes: 1, cores: 0.2 });
  expect(host.forecast('a', 'cpuMillicores', { horizonsMs: [3_600_000] })?.values[4]).toBeCloseTo(200, -1);
});
