import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ApiClient } from '../../src/api/api-client.ts';
import type { Vm } from '../../src/api/resources.ts';
import { EXIT_CODES } from '../../src/cli/exit-codes.ts';
import { ThirdHost } from '../kit/third-host.ts';
import { type HostName, TwoHosts } from '../kit/two-hosts.ts';

let hosts: TwoHosts;
let a: ApiClient;
let b: ApiClient;
let third: ThirdHost;

/** What a command prints with --json, or the error that it ends with. */
async function say(host: HostName, ...words: string[]): Promise<Record<string, unknown>> {
  const said = await hosts
    .cli(host, ...words, '--json')
    .catch((thrown: { stdout?: string }) => thrown.stdout ?? '');
  const line = said.trim().split('\n').at(-1) ?? '';
  return JSON.parse(line);
}

const params = () => ({ name: hosts.vm });

async function untilVm(holds: (observed: Vm['observed']) => boolean): Promise<Vm> {
  return await hosts.eventually('the VM as its daemon on a shows it', async () => {
    const vm = await a.call('getVm', { params: params() });
    return holds(vm.observed) ? vm : undefined;
  });
}

async function kindsOn(client: ApiClient, after = 0): Promise<string[]> {
  const { events } = await client.call('listEvents', { query: { after, limit: 1000, vm: hosts.vm } });
  return events.map(({ kind }) => kind);
}

describe('two hosts with daemons, one of which owns a VM', () => {
  beforeAll(async () => {
    hosts = await TwoHosts.open({ spec: { shadow: { hosts: 'auto' } } });
    [a, b] = [await hosts.startDaemon('a'), await hosts.startDaemon('b')];
    await a.call('declareVm', { body: { spec: hosts.spec, directory: hosts.folder } });
    await untilVm(({ state }) => state === 'protected');
    await hosts.connect(3);
    await hosts.load.begin();
  });

  afterAll(async () => {
    await third?.leave();
    await hosts?.[Symbol.asyncDispose]();
  });

  it('show on the other one that a shadow is there, which is none of its VMs', async () => {
    expect((await b.call('listVms', {})).vms).toEqual([]);
    const { lodgers } = await b.call('listLodgers', {});
    expect(lodgers).toMatchObject([{ name: hosts.vm, state: 'shadowing', actsOn: 'a' }]);
    expect((await say('b', 'ls')).vms).toMatchObject([{ name: hosts.vm, state: 'shadowing', actsOn: 'a' }]);
    const again = await say('b', 'run', join(hosts.folder, 'vm.yaml'));
    expect(again.error).toMatchObject({ code: 'KEEPER_IS_SHADOW', hint: expect.stringContaining('migrate') });
    expect(await say('b', 'stop', hosts.vm)).toMatchObject({ outcome: 'shadow ended', actsOn: 'a' });
    await untilVm(({ state }) => state === 'protected');
    const { placement } = await hosts.status('a');
    expect(placement).toMatchObject({ host: 'b', candidates: [{ host: 'b' }] });
  });

  it('move it on request, after which its daemon neither starts nor stops it', async () => {
    const moved = await a.call('migrateVm', { params: params(), body: { to: 'b' } });
    expect(moved).toMatchObject({ from: 'a', to: 'b', protected: true, shadowHost: 'a' });
    expect(moved.token).toBe((await hosts.record())?.token);
    expect(moved.pauseMs).toBeGreaterThanOrEqual(moved.promoteMs);
    const vm = await untilVm(({ state }) => state === 'shadowing');
    expect(vm).toMatchObject({ desired: 'running', observed: { actsOn: 'b', problem: null } });
    expect(await a.call('getHealth', {})).toEqual({ status: 'ok' });
    for (const id of ['startVm', 'stopVm', 'promoteVm'] as const)
      await expect(a.call(id, { params: params() })).rejects.toMatchObject({ code: 'HOST_VM_ELSEWHERE' });
    expect(await say('a', 'start', hosts.vm)).toMatchObject({
      error: { code: 'HOST_VM_ELSEWHERE', message: `${hosts.vm} acts on b` },
    });
    expect((await b.call('listLodgers', {})).lodgers).toMatchObject([{ name: hosts.vm, actsOn: null }]);
  });

  it('say what keeps it from being moved, and let it be', async () => {
    const codes = await Promise.all(
      ['nowhere', 'b'].map(async (to) => (await say('b', 'migrate', hosts.vm, '--to', to)).error),
    );
    expect(codes).toMatchObject([{ code: 'KEEPER_HOST_UNKNOWN' }, { code: 'KEEPER_HOST_REFUSED' }]);
    expect((await say('a', 'migrate', hosts.vm)).error).toMatchObject({ code: 'KEEPER_IS_SHADOW' });
    expect(await hosts.record()).toMatchObject({ holder: 'b', mode: 'in-sync' });
  });

  it('take it up where it was declared when it is back', async () => {
    expect(await say('b', 'migrate', hosts.vm)).toMatchObject({ from: 'b', to: 'a', protected: true });
    const { observed } = await untilVm(({ state }) => state === 'protected');
    expect(observed).toMatchObject({ actsOn: null, keeperPid: hosts.keeperPid('a'), version: 1 });
  });

  it('have its shadow leave for maintenance, after which nobody counts on it, and take it again', async () => {
    expect(await say('b', 'maintenance', 'on')).toMatchObject({
      ...{ moved: [], shadows: [hosts.vm], alone: [hosts.vm], left: [] },
    });
    expect(await hosts.record()).toMatchObject({ holder: 'a', shadow: { host: 'b', state: 'stale' } });
    expect(await say('b', 'maintenance', 'status')).toMatchObject({ maintenance: true, here: [] });
    await say('b', 'maintenance', 'off');
    await untilVm(({ state }) => state === 'protected');
  });

  it('are emptied for maintenance, and take nothing until that ends', async () => {
    expect(await say('a', 'maintenance', 'on')).toMatchObject({
      ...{ maintenance: true, moved: [{ name: hosts.vm, to: 'b' }], left: [], alone: [hosts.vm] },
    });
    expect(hosts.qemuPids('a')).toEqual([]);
    expect(await say('a', 'maintenance', 'on')).toMatchObject({ moved: [], left: [] });
    await untilVm(({ state, actsOn }) => state === 'elsewhere' && actsOn === 'b');
    expect((await say('b', 'migrate', hosts.vm, '--to', 'a')).error).toMatchObject({
      code: 'KEEPER_HOST_MAINTENANCE',
    });
    await hosts.endSite('a');
    const late = await say('b', 'migrate', hosts.vm, '--timeout', '0.5');
    expect(late.error).toMatchObject({ code: 'KEEPER_MIGRATE_TIMEOUT' });
    expect(await hosts.interrupted('b', 'migrate', hosts.vm)).toBe(EXIT_CODES.interrupted.code);
    expect(await hosts.record()).toMatchObject({ holder: 'b', mode: 'alone' });
    third = await ThirdHost.join(hosts);
    await hosts.startSite('a');
    expect(await say('a', 'maintenance', 'off')).toMatchObject({ maintenance: false, changed: true });
    expect(await say('b', 'migrate', hosts.vm, '--to', 'a')).toMatchObject({ to: 'a', protected: true });
    await untilVm(({ state }) => state === 'protected');
  });

  it('move it to a third one where its shadow is not, which gets one first, and back', async () => {
    const { placement, shadow } = await hosts.status('a');
    expect(placement?.candidates.map(({ host }) => host).sort()).toEqual(['b', 'c']);
    expect(shadow?.host).toBe('b');
    const there = await say('a', 'migrate', hosts.vm, '--to', 'c', '--wait', 'moved');
    expect(there).toMatchObject({ from: 'a', to: 'c' });
    expect(await hosts.record()).toMatchObject({ holder: 'c', token: there.token });
    const back = JSON.parse(await third.cli('migrate', hosts.vm, '--to', 'a', '--json'));
    expect(back).toMatchObject({ from: 'c', to: 'a', protected: true });
    await third.leave();
    await untilVm(({ state }) => state === 'protected');
  });

  it('have it go on when its own is lost, whose daemon lets it be when it is back', async () => {
    const after = (await a.call('listEvents', { query: { limit: 1000 } })).events.at(-1)?.id ?? 0;
    await hosts.killDaemon('a');
    hosts.killHost('a');
    await hosts.until('b', 'promoted');
    const token = (await hosts.record())?.token;
    a = await hosts.startDaemon('a');
    await untilVm(({ state }) => state === 'shadowing');
    await hosts.eventually('protection in the other direction', async () =>
      (await hosts.record())?.mode === 'in-sync' ? true : undefined,
    );
    expect(await hosts.record()).toMatchObject({ holder: 'b', token });
    expect(await kindsOn(a, after)).not.toContain('qemu-started');
  });

  it('have a shadow leave only when its VM says so', async () => {
    const keeper = hosts.keeperPid('b');
    process.kill(keeper, 'SIGSTOP');
    // Nobody has noticed yet that it does not answer.
    const refused = await say('a', 'stop', hosts.vm);
    process.kill(keeper, 'SIGCONT');
    expect(refused.error).toMatchObject({ code: 'KEEPER_SHADOW_NEEDED' });
    await hosts.load.command('PING');
  });

  it('have lost nothing in all of this, and no connection', async () => {
    const { connections } = await hosts.load.end();
    expect(connections.survived).toBe(connections.total);
    expect(await hosts.load.verify()).toMatchObject({ lostWrites: 0 });
    expect(await hosts.isSameGuest()).toBe(true);
  });

  it('count it as stopped where it was declared when it is stopped where it acts', async () => {
    const holder = (await hosts.record())?.holder as HostName;
    await hosts.cli(holder, 'stop', hosts.vm, '--force');
    const vm = await untilVm(({ state }) => state === 'absent');
    await hosts.eventually('that it is to stay off', async () =>
      (await a.call('getVm', { params: params() })).desired === 'stopped' ? true : undefined,
    );
    expect(vm.observed.actsOn).toBeNull();
    for (const name of ['a', 'b'] as const)
      await hosts.eventually(`nothing on ${name}`, () =>
        existsSync(join(hosts.runDirectory(name), hosts.vm)) ? undefined : true,
      );
  });
});
