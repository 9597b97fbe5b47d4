import { expect, test } from 'vitest';
import type { Sample } from '../telemetry/sample.ts';
import { DEFAULT_SCALING, type ScalingPolicy } from './scaling-policy.ts';
import { type AgentDecision, VmAgent } from './vm-agent.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const START_MS = Date.UTC(2026, 0, 5);
const STEP_MS = 60_000;
const policy: ScalingPolicy = { ...DEFAULT_SCALING, min: 100, max: 8000 };

function sample(atMs: number, cores: number, more: Readonly<Record<string, number>> = {}): Sample {
  return {
    vm: 'a',
    instanceId: 'one',
    wallMs: START_MS + atMs,
    monotonicMs: atMs,
    intervalMs: STEP_MS,
    values: { 'cpu.usedCores': cores, ...more },
  };
}

function agentWith(allocated: number): VmAgent {
  return new VmAgent({ horizonMs: HOUR_MS, scaled: { cpuMillicores: { policy, allocated, all: 8000 } } });
}

/** A day of little work, but for two hours from noon on. */
function coresAt(atMs: number): number {
  const hour = (atMs % DAY_MS) / HOUR_MS;
  return (hour >= 12 && hour < 14 ? 3 : 0.3) + 0.02 * Math.sin(atMs / 600_000);
}

/** Grants what is asked for. */
function run(
  agent: VmAgent,
  { fromMs, toMs }: { readonly fromMs: number; readonly toMs: number },
): AgentDecision[] {
  const all: AgentDecision[] = [];
  for (let atMs = fromMs; atMs < toMs; atMs += STEP_MS) {
    for (const decision of agent.take(sample(atMs, coresAt(atMs))).decisions) {
      all.push(decision);
      const { effect, resource } = decision;
      if (effect.kind === 'reserve') agent.tell(resource, { kind: 'reserved', granted: effect.amount });
      if (effect.kind === 'relief') agent.tell(resource, { kind: 'relieved', granted: effect.amount });
    }
  }
  return all;
}

test('what comes every day is reserved before it comes, with the forecast that says so, and handed over when it does', () => {
  const agent = agentWith(1000);
  run(agent, { fromMs: 0, toMs: 6 * DAY_MS + 10 * HOUR_MS });
  const morning = agent.view('cpuMillicores').scaling;
  expect(morning?.allocated).toBeLessThan(1000);
  const noonMs = 6 * DAY_MS + 12 * HOUR_MS;
  const before = run(agent, { fromMs: noonMs - 2 * HOUR_MS, toMs: noonMs });
  const reserved = before.find(({ effect }) => effect.kind === 'reserve');
  expect(reserved?.peak?.values.at(-1)).toBeGreaterThan(2500);
  expect(agent.view('cpuMillicores').scaling?.reserved).toBeGreaterThan(2000);
  const [first] = run(agent, { fromMs: noonMs, toMs: noonMs + STEP_MS });
  expect(first?.effect).toMatchObject({ kind: 'hand-over', reason: 'full' });
});

test('a VM without a history has what it has, until it is held back', () => {
  const agent = agentWith(1000);
  expect(agent.take(sample(0, 0.5)).decisions).toEqual([]);
  const { decisions } = agent.take(sample(STEP_MS, 0.5, { 'cpu.throttledShare': 0.4 }));
  expect(decisions).toMatchObject([
    { resource: 'cpuMillicores', effect: { kind: 'relief', amount: 500, reason: 'held-back' } },
  ]);
});

test('what it waits for is wanted, too', () => {
  const { decisions } = agentWith(1000).take(sample(0, 0.5, { 'cpu.waitedCores': 0.6 }));
  expect(decisions).toMatchObject([{ effect: { kind: 'relief', reason: 'full' } }]);
});

test('a resource that is not scaled is forecast, and nothing is decided', () => {
  const agent = agentWith(1000);
  const net = { 'net.lan.receivedBytesPerSecond': 1e6, 'net.lan.sentBytesPerSecond': 5e5 };
  for (let atMs = 0; atMs < HOUR_MS; atMs += STEP_MS) agent.take(sample(atMs, 0.5, net));
  expect(agent.view('netBytesPerSecond').scaling).toBeUndefined();
  const forecast = agent.forecast('netBytesPerSecond', { horizonsMs: [600_000] });
  expect(forecast?.values[4]).toBeCloseTo(1.5e6, -4);
});

test('a takeover by another host, whose clock began elsewhere, changes no decision', () => {
  const decisions = [0, 5e9, -HOUR_MS].map((jumpMs) => {
    const agent = agentWith(4000);
    run(agent, { fromMs: 0, toMs: 12 * STEP_MS });
    const after: AgentDecision[] = [];
    for (let atMs = 12 * STEP_MS; atMs < HOUR_MS; atMs += STEP_MS) {
      const taken = { ...sample(atMs, coresAt(atMs)), monotonicMs: atMs + jumpMs };
      after.push(...agent.take(taken).decisions);
    }
    return after;
  });
  expect(decisions[0]?.length).toBeGreaterThan(3);
  expect(decisions[1]).toEqual(decisions[0]);
  expect(decisions[2]).toEqual(decisions[0]);
});

test('an agent that goes on from what another one saved says the same', () => {
  const agent = agentWith(1000);
  run(agent, { fromMs: 0, toMs: 2 * DAY_MS });
  const saved = agent.save();
  const options = { horizonMs: HOUR_MS, scaled: { cpuMillicores: { policy, allocated: 1000, all: 8000 } } };
  const next = new VmAgent(options, saved);
  expect(next.forecast('cpuMillicores')).toEqual(agent.forecast('cpuMillicores'));
  expect(next.view('cpuMillicores').scaling?.allocated).toBe(agent.view('cpuMillicores').scaling?.allocated);
  const span = { fromMs: 2 * DAY_MS, toMs: 2 * DAY_MS + 5 * STEP_MS };
  expect(run(next, span).map(({ peak }) => peak)).toEqual(run(agent, span).map(({ peak }) => peak));
  // What is damaged is not believed, and does no harm.
  for (const at of [3, 100, saved.length >> 1, saved.length - 1]) {
    const damaged = saved.slice();
    damaged[at] = (damaged[at] ?? 0) ^ 0x40;
    expect(new VmAgent(options, damaged).forecast('cpuMillicores')).toBeUndefined();
  }
});
