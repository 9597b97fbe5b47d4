import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { EtcdLeaseStore } from '../../src/lease/etcd-lease-store.ts';
import { AnswerThief } from '../kit/answer-thief.ts';
import { EtcdCluster } from '../kit/etcd-cluster.ts';
import { record } from '../kit/lease-store-contract.ts';
import { soaking } from '../kit/soak.ts';
import { type Attempt, faultsOf, type Reading, TokenWriter } from '../kit/token-history.ts';

const ROUNDS = soaking ? 20 : 2;

let cluster: EtcdCluster;
let store: EtcdLeaseStore;

beforeEach(async () => {
  cluster = await EtcdCluster.start();
  store = cluster.store();
});
afterEach(async () => {
  await store?.[Symbol.asyncDispose]();
  await cluster?.[Symbol.asyncDispose]();
});

const inSync = (token: number) => record(token, { mode: 'in-sync' });

describe('with one node of three killed', () => {
  it('a token can be taken, even if it was the leader', async () => {
    expect(await swap(0, 1)).toMatchObject({ kind: 'swapped' });
    await cluster.kill(await cluster.leader());
    await cluster.untilItAnswers();
    const { revision, record: before } = await store.read('vm');
    expect(before).toEqual(inSync(1));
    expect(await swap(revision, 2)).toMatchObject({ kind: 'swapped' });
    expect(await store.read('vm')).toMatchObject({ record: inSync(2) });
  });
});

describe('with two nodes of three killed', () => {
  it('the store is away and nothing is invented; when they are back everything is as it was', async () => {
    await swap(0, 1);
    const before = await store.read('vm');
    await cluster.kill(0);
    await cluster.kill(1);
    await expect(store.read('vm')).rejects.toMatchObject({ code: 'LEASE_STORE_AWAY' });
    await expect(store.renew('vm', { token: 1 })).rejects.toMatchObject({ code: 'LEASE_STORE_AWAY' });
    expect(['unknown', 'unreachable']).toContain((await swap(before.revision, 2)).kind);
    // A hold cannot begin where no lease is given out: that is known not to have happened.
    const alone = { expectedRevision: before.revision, record: record(2), onlyIfUnheld: false };
    expect(await store.swap('vm', alone)).toEqual({ kind: 'unreachable' });
    cluster.run(0);
    cluster.run(1);
    await cluster.untilItAnswers();
    // What was not answered may have been carried out since; repeating it settles that.
    const again = await swap(before.revision, 2);
    expect(again.kind === 'lost' ? again.stored.record : inSync(2)).toEqual(inSync(2));
    expect(await store.read('vm')).toMatchObject({ record: inSync(2) });
  });

  it('nothing is answered by a node that is alone, though it has the record', async () => {
    await swap(0, 1);
    await using single = cluster.store({ endpoints: cluster.endpoints.slice(2) });
    expect(await single.read('vm')).toMatchObject({ record: inSync(1) });
    await cluster.kill(0);
    await cluster.kill(1);
    await expect(single.read('vm')).rejects.toMatchObject({ code: 'LEASE_STORE_AWAY' });
  });
});

describe('a leader that was stopped and goes on', () => {
  it('neither shows what was, nor renews what another has taken', async () => {
    const begun = { expectedRevision: 0, record: record(1), onlyIfUnheld: false };
    expect(await store.swap('vm', begun)).toMatchObject({ kind: 'swapped' });
    const leader = await cluster.leader();
    await using stale = cluster.store({
      endpoints: cluster.endpoints.filter((_, index) => index === leader),
    });
    expect(await stale.renew('vm', { token: 1 })).toBe('renewed');
    cluster.signal(leader, 'SIGSTOP');
    await untilUnheld();
    const { revision: expectedRevision } = await store.read('vm');
    const taken = { expectedRevision, record: record(2, { holder: 'B' }), onlyIfUnheld: true };
    expect(await store.swap('vm', taken)).toMatchObject({ kind: 'swapped' });
    // The requests wait for it when it goes on, before it has heard that there is another leader.
    const renewal = stale.renew('vm', { token: 1 }).catch((thrown: Error & { code?: string }) => thrown.code);
    const reading = stale.read('vm').catch((thrown: Error & { code?: string }) => thrown.code);
    cluster.signal(leader, 'SIGCONT');
    expect(['refused', 'LEASE_STORE_AWAY']).toContain(await renewal);
    const read = await reading;
    if (typeof read === 'object') expect(read).toMatchObject({ record: { token: 2, holder: 'B' } });
    else expect(read).toBe('LEASE_STORE_AWAY');
    expect(await store.read('vm')).toMatchObject({ record: { token: 2, holder: 'B' } });
  });
});

describe('a write whose answer is lost', () => {
  it('is unknown, and is told by repeating it whether it was carried out', async () => {
    await using thief = await AnswerThief.inFrontOf(cluster.endpoints[0] ?? '');
    await using cut = cluster.store({ endpoints: [thief.url], callDeadlineMs: 2_000 });
    expect(await cut.read('vm')).toMatchObject({ revision: 0 });
    thief.steal();
    const write = { expectedRevision: 0, record: inSync(1), onlyIfUnheld: false };
    expect(await cut.swap('vm', write)).toEqual({ kind: 'unknown' });
    await thief.stolen;
    expect(await store.read('vm')).toMatchObject({ record: inSync(1) });
    thief.relent();
    expect(await cut.swap('vm', write)).toMatchObject({ kind: 'lost', stored: { record: inSync(1) } });
  });

  it('is asked for at another node in the same call', async () => {
    await using thief = await AnswerThief.inFrontOf(cluster.endpoints[0] ?? '');
    await using cut = cluster.store({ endpoints: [thief.url, cluster.endpoints[1] ?? ''] });
    expect(await cut.read('vm')).toMatchObject({ revision: 0 });
    thief.steal();
    const write = { expectedRevision: 0, record: inSync(1), onlyIfUnheld: false };
    expect(await cut.swap('vm', write)).toMatchObject({ kind: 'lost', stored: { record: inSync(1) } });
  });

  it('did not happen when it never left', async () => {
    await using thief = await AnswerThief.inFrontOf(cluster.endpoints[0] ?? '');
    const { url } = thief;
    await thief[Symbol.asyncDispose]();
    await using cut = cluster.store({ endpoints: [url] });
    const write = { expectedRevision: 0, record: inSync(1), onlyIfUnheld: false };
    expect(await cut.swap('vm', write)).toEqual({ kind: 'unreachable' });
    expect(await store.read('vm')).toMatchObject({ revision: 0 });
  });
});

describe('the history of many writers while nodes are killed and stopped', () => {
  it('is that of one record: each token once, no reading older than a write that was answered', async () => {
    const attempts: Attempt[] = [];
    const readings: Reading[] = [];
    const over = new AbortController();
    const writers = ['A', 'B', 'C'].map((holder) => {
      const open = () => cluster.store({ callDeadlineMs: 3_000 });
      return new TokenWriter({ holder, open, attempts, readings }).run(over.signal);
    });
    for (let round = 0; round < ROUNDS; round += 1) {
      const leader = await cluster.leader();
      await cluster.kill(leader);
      await tokensGrow(attempts);
      cluster.run(leader);
      await cluster.untilItAnswers();
      const next = await cluster.leader();
      cluster.signal(next, 'SIGSTOP');
      await tokensGrow(attempts);
      cluster.signal(next, 'SIGCONT');
      await tokensGrow(attempts);
    }
    over.abort();
    await Promise.all(writers);
    const final = await store.read('vm');
    expect(faultsOf({ attempts, readings, final })).toEqual([]);
    expect(attempts.filter(({ outcome }) => outcome.kind === 'swapped').length).toBeGreaterThan(10);
  });
});

async function swap(expectedRevision: number, token: number) {
  return await store.swap('vm', { expectedRevision, record: inSync(token), onlyIfUnheld: false });
}

async function untilUnheld(): Promise<void> {
  for (;;) {
    const now = await store.read('vm').catch(() => undefined);
    if (now?.isHeld === false) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Resolves when five more writes have succeeded. */
async function tokensGrow(attempts: readonly Attempt[]): Promise<void> {
  const count = () => attempts.filter(({ outcome }) => outcome.kind === 'swapped').length;
  const enough = count() + 5;
  while (count() < enough) await new Promise((resolve) => setTimeout(resolve, 20));
}
