import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { LeaseRecord } from '../../src/lease/lease-record.ts';
import { dieAt, dyingWhenTold } from '../kit/told-death.ts';
import { type HostName, otherThan, TwoHosts } from '../kit/two-hosts.ts';

let hosts: TwoHosts;

interface Settled {
  readonly here: HostName;
  readonly there: HostName;
  readonly record: LeaseRecord;
}

/** Where the VM acts, with a shadow in sync: another copy than `before`. */
async function settled(before?: LeaseRecord): Promise<Settled> {
  return await hosts.eventually('a VM with another shadow in sync', async () => {
    const record = await hosts.record();
    if (record?.mode !== 'in-sync' || record.shadow?.copy === before?.shadow?.copy) return undefined;
    const here = record.holder === 'a' ? 'a' : 'b';
    return { here, there: otherThan(here), record };
  });
}

function suspend(host: HostName): Promise<unknown> {
  return hosts.cli(host, 'stop', hosts.vm, '--then', 'suspend');
}

describe('a VM of two hosts, one keeper of which is killed in the middle of a step', () => {
  beforeAll(async () => {
    hosts = await TwoHosts.open({
      plants: dyingWhenTold,
      spec: { shadow: { hosts: ['a', 'b'], restartElsewhere: true } },
    });
    await hosts.startKept('a');
    await hosts.connect(2);
    await hosts.until('a', 'protected');
  });

  afterAll(() => hosts?.[Symbol.asyncDispose]());

  it.each(['save.alone', 'save.on-record'])(
    'goes on where it stood still when it was being suspended as far as %s, and nowhere else',
    async (step) => {
      const { record } = await settled();
      await dieAt(hosts, { host: 'a', step, act: () => suspend('a').catch(() => {}) });
      if (step === 'save.on-record') {
        expect(await hosts.record()).toMatchObject({ holder: 'a', suspended: expect.any(Number) });
        await expect(hosts.start('b')).rejects.toThrow('KEEPER_SUSPENDED_ELSEWHERE');
      }
      await hosts.startKept('a');
      const after = await settled(record);
      expect(after.record).toMatchObject({ holder: 'a' });
      expect(after.record.suspended).toBe(undefined);
      expect(await hosts.isSameGuest()).toBe(true);
    },
  );

  it('is not started by the daemon of another host while it is suspended, which says where it is', async () => {
    const { record } = await settled();
    await suspend('a');
    const daemon = await hosts.startDaemon('b');
    await daemon.call('declareVm', { body: { spec: hosts.spec, directory: hosts.folder } });
    const params = { name: hosts.vm };
    const observed = async () => (await daemon.call('getVm', { params })).observed;
    const problem = await hosts.eventually(
      'why it is not started',
      async () => (await observed()).problem ?? undefined,
    );
    expect(problem).toMatchObject({
      code: 'KEEPER_SUSPENDED_ELSEWHERE',
      hint: expect.stringContaining('Start it on a'),
    });
    await hosts.startKept('a');
    await hosts.eventually('where it is', async () => (await observed()).actsOn === 'a');
    await daemon.call('deleteVm', { params });
    await hosts.killDaemon('b');
    await settled(record);
    expect(await hosts.isSameGuest()).toBe(true);
  });

  it.each([
    ['resume.before-knock', 'here'],
    ['resume.before-answer', 'there'],
    ['resume.after-answer', 'there'],
    ['resume.before-going-on', 'here'],
  ] as const)(
    'is protected anew when a broken link is taken up again as far as %s, %s',
    async (step, side) => {
      const before = await settled();
      if (step === 'resume.before-knock') await hosts.load.begin({ gapMs: 10 });
      await dieAt(hosts, { host: before[side], step, act: () => hosts.resetPeers() });
      const after = await settled(before.record);
      expect(after.here).toBe(side === 'here' ? before.there : before.here);
      expect(await hosts.isSameGuest()).toBe(true);
    },
  );

  it('has lost nothing in all of this, and no connection', async () => {
    const { connections } = await hosts.load.end();
    expect(connections.survived).toBe(connections.total);
    expect(await hosts.load.verify()).toMatchObject({ lostWrites: 0 });
  });

  it('is begun anew where it was about to have its shadow, as its specification says', async () => {
    const { here, there, record } = await settled();
    await dieAt(hosts, {
      ...{ host: here, step: 'arm.before-record' },
      act: () => process.kill(hosts.keeperPid(there), 'SIGKILL'),
    });
    const anew = await hosts.eventually('a VM that acts there', async () => {
      const found = await hosts.record();
      return found?.holder === there ? found : undefined;
    });
    expect(anew.token).toBeGreaterThan(record.token);
    expect((await hosts.status(there)).primary).not.toBe(null);
  });
});
