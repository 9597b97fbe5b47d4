import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { EtcdCluster, foreignTls } from '../../test/kit/etcd-cluster.ts';
import { itIsALeaseStore, record } from '../../test/kit/lease-store-contract.ts';
import { systemClock as clock } from '../base/clock.ts';
import { EtcdGateway } from './etcd-gateway.ts';
import type { EtcdLeaseStore } from './etcd-lease-store.ts';

let cluster: EtcdCluster;
let store: EtcdLeaseStore;

beforeAll(async () => {
  cluster = await EtcdCluster.start();
});
afterAll(async () => await cluster?.[Symbol.asyncDispose]());
beforeEach(() => {
  store = cluster.store();
});
afterEach(async () => await store[Symbol.asyncDispose]());

/** Holds end in etcd when etcd says so: the last key with a lease is gone. */
async function holdPasses(): Promise<void> {
  const { endpoints, tls } = cluster;
  using gateway = new EtcdGateway({ endpoints, tls, callDeadlineMs: 3_000 });
  for (;;) {
    const outcome = await gateway.call('/v3/lease/leases', {});
    if (outcome.kind === 'answered' && Object(outcome.body).leases === undefined) return;
    await clock.sleep(50);
  }
}

describe('a store in an etcd of three nodes', () => {
  itIsALeaseStore(() => ({ store, open: () => cluster.store(), holdPasses }));

  it('lets nobody act on a record that it does not understand', async () => {
    const { endpoints, tls } = cluster;
    using gateway = new EtcdGateway({ endpoints, tls, callDeadlineMs: 3_000 });
    const base64 = (text: string) => Buffer.from(text).toString('base64');
    const key = base64('understudy/lease/odd/record');
    await gateway.call('/v3/kv/put', { key, value: base64('{"token": 0}') });
    await expect(store.read('odd')).rejects.toMatchObject({ code: 'LEASE_RECORD_UNREADABLE' });
  });

  it('is nobody’s whose certificate another CA has signed', async () => {
    const { certificate, key } = await foreignTls();
    await using foreign = cluster.store({ tls: { ca: cluster.tls.ca, certificate, key } });
    await expect(foreign.read('vm')).rejects.toMatchObject({ code: 'LEASE_STORE_AWAY' });
    const write = { expectedRevision: 0, record: record(1), onlyIfUnheld: false };
    expect(await foreign.swap('foreign', write)).not.toMatchObject({ kind: 'swapped' });
    expect(await store.read('foreign')).toMatchObject({ revision: 0 });
  });

  it('is used with a renewed certificate from the next call on, also by one whose old one has expired', async () => {
    const expired = await cluster.renewedTls({ issuedYearsAgo: 2 });
    let renewed: EtcdCluster['tls'] | undefined;
    await using lasting = cluster.store({ tls: expired, renewed: () => renewed });
    await expect(lasting.read('vm')).rejects.toMatchObject({
      code: 'LEASE_STORE_AWAY',
      message: expect.stringMatching(/no node answers \([^:]*certificate[^:]*\)$/),
    });
    renewed = await cluster.renewedTls();
    expect(await lasting.read('renewed')).toMatchObject({ revision: 0 });
    // The other way: a connection on which another one was shown is of no more use.
    renewed = expired;
    await expect(lasting.read('vm')).rejects.toMatchObject({ code: 'LEASE_STORE_AWAY' });
  });

  it('trusts no node whose certificate another CA has signed', async () => {
    const { ca } = await foreignTls();
    await using wary = cluster.store({ tls: { ...cluster.tls, ca } });
    await expect(wary.read('vm')).rejects.toMatchObject({ code: 'LEASE_STORE_AWAY' });
    // An authenticated connection never came to be, so nothing can have been done.
    const write = { expectedRevision: 0, record: record(1, { mode: 'in-sync' }), onlyIfUnheld: false };
    expect(await wary.swap('wary', write)).toEqual({ kind: 'unreachable' });
  });

  it('tells what it was not meant to be asked', async () => {
    const { endpoints, tls } = cluster;
    using gateway = new EtcdGateway({ endpoints, tls, callDeadlineMs: 3_000 });
    await expect(gateway.call('/v9/nothing', {})).rejects.toMatchObject({ code: 'LEASE_STORE_REFUSED' });
  });

  it.each([
    ['a hold that etcd cannot count', { holdTtlMs: 1_500 }],
    ['an endpoint without TLS', { endpoints: ['http://127.0.0.1:2379'] }],
    ['no endpoint', { endpoints: [] }],
  ])('is refused with %s', (_, options) => {
    expect(() => cluster.store(options)).toThrow(expect.objectContaining({ code: 'LEASE_STORE_UNUSABLE' }));
  });
});
