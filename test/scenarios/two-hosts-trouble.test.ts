import { existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../../src/base/clock.ts';
import type { VmEvent } from '../../src/control/vm-event.ts';
import { CertificateStore } from '../../src/pki/certificate-store.ts';
import { foreignTls } from '../kit/etcd-cluster.ts';
import { OddClock } from '../kit/odd-clock.ts';
import { SmallTmpfs } from '../kit/small-tmpfs.ts';
import type { Roles } from '../kit/two-host-faults.ts';
import { TwoHostOracle } from '../kit/two-host-oracle.ts';
import { type HostName, otherThan, TwoHosts } from '../kit/two-hosts.ts';

const DAY_MS = 24 * 3_600_000;
const YEAR_MS = 365 * DAY_MS;
/** Longer than silence may last. */
const NOTICED_MS = 2500;
const ROOM_BYTES = 512 * 2 ** 20;
const FILLER_BYTES = 12 * 2 ** 20;

/** Files that say what goes wrong in a keeper, see `misbehaving`. */
interface Orders {
  /** It stands still at the failpoint that the file names; once. */
  readonly standStill: string;
  /** No QEMU is brought to act. */
  readonly failToAct: string;
}

function misbehaving({ standStill, failToAct }: Orders): string {
  const failpointUrl = new URL('../../src/base/failpoint.ts', import.meta.url).href;
  return `
    const { Failpoints } = await import(${JSON.stringify(failpointUrl)});
    const { existsSync, readFileSync, rmSync } = await import('node:fs');
    const [standStill, failToAct] = ${JSON.stringify([standStill, failToAct])};
    Failpoints.prototype.hit = (name) => {
      const isToAct = name === 'promote.before' || name === 'start.before-cont';
      if (isToAct && existsSync(failToAct)) throw new Error('planted');
      if (!existsSync(standStill) || readFileSync(standStill, 'utf8') !== name) return;
      rmSync(standStill);
      process.kill(process.pid, 'SIGSTOP');
    };`;
}

let hosts: TwoHosts;
let oracle: TwoHostOracle;
let oddClock: OddClock;
let room: SmallTmpfs;
let orders: Orders;

/** Each of these makes the one that is wanted, so that no test depends on where the one before left the VM. */
async function actingOn(host: HostName): Promise<Roles> {
  const roles = await oracle.settled();
  if (roles.here === host) return roles;
  hosts.killHost(roles.here);
  return await oracle.settled();
}

async function lastSeq(host: HostName): Promise<number> {
  return (await hosts.events(host)).at(-1)?.seq ?? 0;
}

/** The shadow is lost, and what comes of the next one. */
async function withoutShadow({ here, there }: Roles): Promise<VmEvent> {
  const after = await lastSeq(here);
  process.kill(hosts.keeperPid(there), 'SIGKILL');
  return await hosts.until(here, 'shadow-failed', { after });
}

/** Of a VM that nobody asks whether it answers. */
async function protectedRoles(): Promise<Roles> {
  const record = await hosts.eventually('a VM in sync', async () => {
    const found = await hosts.record();
    return found?.mode === 'in-sync' ? found : undefined;
  });
  const here = record.holder === 'a' ? 'a' : 'b';
  return { here, there: otherThan(here) };
}

/** The same keepers, and the same token. */
async function identity({ here, there }: Roles): Promise<unknown> {
  const record = await hosts.record();
  return { record, pids: [hosts.keeperPid(here), hosts.keeperPid(there)] };
}

function pkiOf(): CertificateStore {
  return new CertificateStore(join(hosts.folder, 'pki'), { wallMs: clock.wallMs });
}

function removeCertificate(host: HostName): void {
  for (const kind of ['crt', 'key']) rmSync(join(hosts.folder, 'pki', `${host}.${kind}`));
}

async function isHarmless(): Promise<void> {
  const roles = await oracle.settled();
  const report = await hosts.load.end();
  expect(await oracle.judge(roles, report)).toEqual([]);
  await hosts.load.begin({ gapMs: 10 });
}

describe('a VM with its shadow on a host with clocks, certificates and room of its own', () => {
  beforeAll(async () => {
    hosts = await TwoHosts.open({
      clocks: ({ folder }) => {
        oddClock = new OddClock(folder, { rate: 1.05 });
        return { b: oddClock };
      },
      plants: ({ folder }) => {
        orders = { standStill: join(folder, 'stand-still'), failToAct: join(folder, 'fail-to-act') };
        return { a: misbehaving(orders), b: misbehaving(orders) };
      },
    });
    room = new SmallTmpfs(ROOM_BYTES, hosts.memoryOf('b'));
    await hosts.start('a');
    await hosts.connect(2);
    await hosts.until('a', 'protected');
    oracle = new TwoHostOracle(hosts);
    await hosts.load.begin({ gapMs: 10 });
  });

  afterAll(async () => {
    await oracle?.[Symbol.asyncDispose]();
    room?.[Symbol.dispose]();
    await hosts?.[Symbol.asyncDispose]();
  });

  it('is taken over, protected again and taken back, though the wall clock there is set forth and back', async () => {
    // As far back as certificates were valid before they were made.
    for (const offsetMs of [300 * DAY_MS, -DAY_MS / 48]) {
      const { here, there } = await oracle.settled();
      oddClock.setWall(offsetMs);
      const before = await identity({ here, there });
      await clock.sleep(300);
      expect(await identity({ here, there })).toEqual(before);
      hosts.killHost(here);
      expect(await oracle.settled()).toEqual({ here: there, there: here });
    }
    await isHarmless();
  });

  it.each([
    ['have expired', 20 * YEAR_MS],
    ['are not valid yet', -YEAR_MS],
  ])(
    'does not notice that certificates %s there, and has no other shadow on it until that has passed',
    async (_what, offsetMs) => {
      const roles = await actingOn('a');
      const before = await identity(roles);
      oddClock.setWall(offsetMs);
      await clock.sleep(NOTICED_MS);
      expect(await identity(roles)).toEqual(before);
      const { facts } = await withoutShadow(roles);
      expect(JSON.stringify(facts)).toMatch(/WIRE_PEER_EXPIRED/);
      oddClock.setWall(0);
      await isHarmless();
    },
  );

  it('has no shadow on a host whose certificate is by another CA', async () => {
    const roles = await actingOn('a');
    const foreign = await foreignTls();
    removeCertificate('b');
    writeFileSync(join(hosts.folder, 'pki/b.crt'), foreign.certificate);
    writeFileSync(join(hosts.folder, 'pki/b.key'), foreign.key, { mode: 0o600 });
    await hosts.endSite('b');
    await expect(hosts.startSite('b')).rejects.toThrow('WIRE_CERTIFICATE_UNUSABLE');
    const { facts } = await withoutShadow(roles);
    expect(JSON.stringify(facts)).toMatch(/WIRE_DIAL_FAILED/);
    removeCertificate('b');
    await pkiOf().host('b', hosts.addressesOf('b'));
    await hosts.startSite('b');
    await isHarmless();
  });

  it('does not notice that certificates are renewed, and is protected with the new ones', async () => {
    const roles = await oracle.settled();
    const before = await identity(roles);
    for (const host of ['a', 'b'] as const) {
      removeCertificate(host);
      await pkiOf().host(host, hosts.addressesOf(host));
      await hosts.endSite(host);
      await hosts.startSite(host);
    }
    await clock.sleep(NOTICED_MS);
    expect(await identity(roles)).toEqual(before);
    hosts.killHost(roles.here);
    expect(await oracle.settled()).toEqual({ here: roles.there, there: roles.here });
    await isHarmless();
  });

  it('sends nothing that its shadow holds, when its keeper goes on after that has taken over', async () => {
    const { here, there } = await actingOn('a');
    const pid = hosts.keeperPid(here);
    // An epoch is held there, and what waited for that has not left.
    writeFileSync(orders.standStill, 'commit.after-acknowledge');
    await hosts.eventually('its keeper to stand still', () => !existsSync(orders.standStill));
    await hosts.until(there, 'promoted');
    // So that frames of the host that acts now are on the network before.
    await hosts.load.command('PING');
    process.kill(pid, 'SIGCONT');
    expect(await oracle.settled()).toEqual({ here: there, there: here });
    await isHarmless();
  });

  it('is taken over by a shadow that takes so long that its keeper does not wait for it', async () => {
    const { here, there } = await oracle.settled();
    const pid = hosts.keeperPid(there);
    writeFileSync(orders.standStill, 'promote.before');
    await expect(hosts.cli(here, 'promote', hosts.vm)).rejects.toThrow('KEEPER_SUPERSEDED');
    process.kill(pid, 'SIGCONT');
    expect(await oracle.settled()).toEqual({ here: there, there: here });
    await isHarmless();
  });

  it('goes on alone when there is no room left for its epochs there, and is protected when there is', async () => {
    const roles = await actingOn('a');
    const after = await lastSeq('a');
    room.fill();
    // More than there is room for in what earlier epochs took.
    await hosts.load.command('SET', 'filler', 'x'.repeat(FILLER_BYTES));
    await hosts.until('a', 'shadow-lost', { after });
    room.empty();
    expect(await oracle.settled()).toEqual(roles);
    await isHarmless();
  });

  it('begins anew on one host when both have lost power, and only where somebody says so', async () => {
    const { here } = await oracle.settled();
    const before = await hosts.record();
    await hosts.load.end();
    for (const host of ['a', 'b'] as const) {
      hosts.killHost(host);
      await hosts.endSite(host);
    }
    for (const host of ['a', 'b'] as const) {
      await hosts.eventually('their end', () => hosts.qemuPids(host).length === 0);
      for (const folder of [hosts.runDirectory(host), hosts.memoryOf(host)])
        for (const name of readdirSync(folder)) rmSync(join(folder, name), { recursive: true });
      await hosts.startSite(host);
    }
    await clock.sleep(NOTICED_MS);
    for (const host of ['a', 'b'] as const) {
      expect(existsSync(join(hosts.runDirectory(host), hosts.vm))).toBe(false);
      await expect(hosts.start(host)).rejects.toThrow('KEEPER_SUPERSEDED');
    }
    // The host of the shadow has said that its copy is lost; who acts has not changed.
    expect(await hosts.record()).toEqual({ ...before, shadow: { ...before?.shadow, state: 'stale' } });
    const other = otherThan(here);
    await hosts.cli(other, 'run', join(hosts.folder, 'vm.yaml'), '--wait', 'started', '--anew');
    expect(await hosts.record()).toMatchObject({ holder: other, token: (before?.token ?? 0) + 1 });
    // Or it has the shadow of that one already.
    await expect(hosts.start(here)).rejects.toThrow(/KEEPER_SUPERSEDED|KEEPER_IS_SHADOW|KEEPER_NAME_TAKEN/);
    await hosts.until(other, 'protected');
    expect(oracle.judgeActing()).toEqual([]);
  });

  it('ends for who stops it though etcd is away, who is told that its shadow may go on; and that does', async () => {
    const { here, there } = await protectedRoles();
    const before = await hosts.record();
    const after = await lastSeq(here);
    hosts.signalEtcd('SIGSTOP');
    await hosts.cutPeers();
    // From here on its keeper waits for who acts.
    await hosts.until(here, 'shadow-lost', { after });
    await expect(hosts.cli(here, 'stop', hosts.vm, '--force')).rejects.toThrow(
      new RegExp(`KEEPER_END_UNRECORDED[^]*shadow on ${there}`),
    );
    expect(hosts.qemuPids(here)).toEqual([]);
    hosts.signalEtcd('SIGCONT');
    await hosts.until(there, 'promoted');
    expect(await hosts.record()).toMatchObject({ holder: there, token: (before?.token ?? 0) + 1 });
    await hosts.mend();
    await hosts.until(there, 'protected');
  });

  it('is free for whoever is told to start it when the shadow that took it over cannot act', async () => {
    const { here, there } = await protectedRoles();
    writeFileSync(orders.failToAct, '');
    hosts.killHost(here);
    const { facts } = await hosts.until(there, 'takeover-failed');
    expect(facts).toMatchObject({ from: here, isOnRecord: true, error: 'planted' });
    expect(await hosts.record()).toMatchObject({ holder: there, mode: 'ended' });
    await expect(hosts.cli(there, 'status', hosts.vm)).rejects.toThrow('failed and is not running');
    expect(await hosts.cli(there, 'events', hosts.vm)).toContain('takeover-failed');
    rmSync(orders.failToAct);
    await hosts.start(here);
    expect(await hosts.record()).toMatchObject({ holder: here, mode: 'alone' });
  });
});
