import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../../src/base/clock.ts';
import { LeaseDriver, type VmEffect } from '../../src/lease/lease-driver.ts';
import type { LeasePolicy } from '../../src/lease/lease-state.ts';
import { bootTimeMs } from '../../src/linux/boot-clock.ts';
import { EtcdCluster } from '../kit/etcd-cluster.ts';

const HOLD_TTL_MS = 3_000;
const POLICY: LeasePolicy = { holdTtlMs: HOLD_TTL_MS, clockRateBound: 0.01, slackMs: 300, renewEveryMs: 500 };

/** One of two hosts: a real decision, clock and store, and a VM of which only the orders are written down. */
class Host implements AsyncDisposable {
  readonly driver: LeaseDriver;
  readonly orders: VmEffect['kind'][] = [];
  readonly #store: AsyncDisposable;
  #changed = Promise.withResolvers<void>();

  constructor(self: string, { mayStartCold }: { mayStartCold: boolean }) {
    const store = cluster.store({ holdTtlMs: HOLD_TTL_MS, callDeadlineMs: 3_000 });
    this.#store = store;
    this.driver = new LeaseDriver({
      vm: 'vm',
      self,
      store,
      policy: POLICY,
      mayStartCold,
      clock,
      bootTimeMs,
      tickEveryMs: 50,
      probeEveryMs: 500,
      carryOut: (effect) => {
        this.orders.push(effect.kind);
        this.#changed.resolve();
        this.#changed = Promise.withResolvers();
        if (effect.kind === 'stop-vm') this.driver.report({ kind: 'vm-stopped' });
      },
    });
  }

  async is(phase: string): Promise<void> {
    await until(() => this.driver.state.phase === phase);
  }

  async hasOrder(kind: VmEffect['kind']): Promise<void> {
    while (!this.orders.includes(kind)) await this.#changed.promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.driver[Symbol.asyncDispose]();
    await this.#store[Symbol.asyncDispose]();
  }
}

let cluster: EtcdCluster;
let a: Host;
let b: Host;

beforeEach(async () => {
  cluster = await EtcdCluster.start();
  a = new Host('A', { mayStartCold: true });
  await a.is('alone');
  b = new Host('B', { mayStartCold: false });
});
afterEach(async () => {
  for (const node of [0, 1, 2]) cluster?.signal(node, 'SIGCONT');
  await a?.[Symbol.asyncDispose]();
  await b?.[Symbol.asyncDispose]();
  await cluster?.[Symbol.asyncDispose]();
});

async function getInSync(): Promise<void> {
  b.driver.report({ kind: 'copy-begun', copy: 1, token: a.driver.state.token });
  a.driver.report({ kind: 'shadow-ready', host: 'B', copy: 1, epoch: 5 });
  expect(a.driver.outputRight).toBe('acknowledged');
  a.driver.report({ kind: 'epoch-acknowledged', copy: 1, epoch: 5 });
  await a.is('in-sync');
}

describe('two hosts and a real etcd', () => {
  it('begin with one that boots the VM under token 1, and no other boots it meanwhile', async () => {
    expect(a.orders).toEqual(['start-cold', 'release-everything']);
    expect(a.driver.state.token).toBe(1);
    await using other = new Host('C', { mayStartCold: true });
    await until(() => other.driver.state.token === 1);
    expect(other.orders).toEqual([]);
  });

  it('hand the VM over when the shadow hears nothing, and the old primary ends its own', async () => {
    await getInSync();
    b.driver.report({ kind: 'peer-lost' });
    await b.hasOrder('promote');
    expect(b.driver.state).toMatchObject({ phase: 'alone', token: 2 });
    expect(b.driver.outputRight).toBe('everything');
    expect(a.driver.outputRight).not.toBe('everything');
    // The primary learns it from the store, which it watches.
    await a.hasOrder('stop-vm');
    expect(a.driver.outputRight).toBe('nothing');
    expect(a.driver.state.phase).toBe('idle');
    expect(a.orders.slice(-2)).toEqual(['hold-output', 'stop-vm']);
  });

  it('leave a VM that has ended alone, until somebody wants it', async () => {
    await getInSync();
    a.driver.report({ kind: 'vm-ended', keepsState: false });
    await until(() => !a.driver.state.isEnding);
    b.driver.report({ kind: 'peer-lost' });
    await b.is('idle');
    expect(b.orders).not.toContain('promote');
    b.driver.report({ kind: 'start-wanted' });
    await b.hasOrder('start-cold');
    expect(b.driver.state.token).toBe(3);
  });

  it('that both hear nothing of each other give the VM to exactly one', async () => {
    await getInSync();
    a.driver.report({ kind: 'peer-lost' });
    b.driver.report({ kind: 'peer-lost' });
    await until(() => a.driver.state.phase === 'alone' || b.driver.state.phase === 'alone');
    await until(() => a.driver.state.pending === undefined && b.driver.state.pending === undefined);
    await until(() => !a.driver.state.isReading && !b.driver.state.isReading);
    const acting = [a, b].filter(({ driver }) => driver.outputRight === 'everything');
    expect(acting).toHaveLength(1);
    expect(acting[0]?.driver.state.token).toBe(2);
    expect(b.orders.includes('promote')).toBe(acting[0] === b);
  });

  it('change nothing while etcd is away, show it, and go on when it is back', async () => {
    await getInSync();
    for (const node of [0, 1, 2]) cluster.signal(node, 'SIGSTOP');
    await until(() => a.driver.state.isStoreAway && b.driver.state.isStoreAway);
    b.driver.report({ kind: 'peer-lost' });
    a.driver.report({ kind: 'peer-lost' });
    await clock.sleep(HOLD_TTL_MS);
    expect(a.driver.outputRight).toBe('acknowledged');
    expect(b.driver.mayAcknowledge({ copy: 1, token: 1 })).toBe(true);
    expect(b.orders).toEqual([]);
    // They hear of each other again: nothing has happened.
    a.driver.report({ kind: 'peer-back' });
    b.driver.report({ kind: 'peer-back' });
    for (const node of [0, 1, 2]) cluster.signal(node, 'SIGCONT');
    await until(() => !a.driver.state.isStoreAway && !b.driver.state.isStoreAway);
    expect(a.driver.state).toMatchObject({ phase: 'in-sync', token: 1 });
    b.driver.report({ kind: 'peer-lost' });
    await b.hasOrder('promote');
  });
});

describe('a host that is alone', () => {
  it('stands still when it cannot renew its right, and goes on as the same VM when nobody took it', async () => {
    for (const node of [0, 1, 2]) cluster.signal(node, 'SIGSTOP');
    await a.hasOrder('suspend-vm');
    expect(a.driver.outputRight).toBe('nothing');
    for (const node of [0, 1, 2]) cluster.signal(node, 'SIGCONT');
    await a.hasOrder('resume-vm');
    expect(a.driver.state).toMatchObject({ phase: 'alone', body: 'runs', token: 2 });
    expect(a.driver.outputRight).toBe('everything');
  });

  it('keeps its right for as long as it renews it, and another boots the VM only after that', async () => {
    await using other = new Host('C', { mayStartCold: true });
    await clock.sleep(2 * HOLD_TTL_MS);
    expect(a.driver.outputRight).toBe('everything');
    expect(other.orders).toEqual([]);
    await a.driver[Symbol.asyncDispose]();
    await other.hasOrder('start-cold');
    expect(other.driver.state.token).toBe(2);
  });
});

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await clock.sleep(10);
}
