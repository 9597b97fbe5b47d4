import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../../src/base/clock.ts';
import { TwoHostOracle } from '../kit/two-host-oracle.ts';
import { type HostName, TwoHosts } from '../kit/two-hosts.ts';

let hosts: TwoHosts;

/** Where the VM acts now, and the host with its shadow in sync. */
async function settled(): Promise<{ here: HostName; there: HostName }> {
  return await hosts.eventually('a VM with a shadow in sync', async () => {
    const record = await hosts.record();
    if (record?.mode !== 'in-sync') return undefined;
    return record.holder === 'a' ? { here: 'a', there: 'b' } : { here: 'b', there: 'a' };
  });
}

/** How its newest shadow got its memory, by the host that the VM acts on. */
async function lastFilling(here: HostName): Promise<unknown> {
  const fillings = (await hosts.events(here)).filter(({ kind }) => kind === 'shadow-filled');
  return fillings.at(-1)?.facts;
}

const DELTA = { kind: 'delta', savedBytes: expect.any(Number) };

async function tokenNow(): Promise<number> {
  return (await hosts.record())?.token ?? 0;
}

describe('a VM with its shadow on another host', () => {
  beforeAll(async () => {
    hosts = await TwoHosts.withVm({ spec: { generationId: true } });
    await hosts.load.begin();
  });

  afterAll(() => hosts?.[Symbol.asyncDispose]());

  it('keeps its shadow when only the connection breaks, at once or after an outage: nothing is copied, nobody takes over', async () => {
    const { here, there } = await settled();
    const record = await hosts.record();
    const shadow = hosts.keeperPid(there);
    const [last] = (await hosts.events(here)).slice(-1);
    let after = last?.seq ?? 0;
    for (const outageMs of [0, 0, 400, 0]) {
      if (outageMs > 0) await hosts.cutPeers();
      await hosts.resetPeers();
      await clock.sleep(outageMs);
      if (outageMs > 0) await hosts.mend();
      const reconnected = await hosts.until(here, 'shadow-reconnected', { after });
      expect(reconnected.facts).toMatchObject({ host: there, fromEpoch: expect.any(Number) });
      after = reconnected.seq;
      await clock.sleep(100 * Math.random());
    }
    // What was held meanwhile has left.
    expect(String(await hosts.load.command('PING'))).toBe('PONG');
    expect(await hosts.record()).toEqual(record);
    expect(hosts.keeperPid(there)).toBe(shadow);
    expect((await hosts.events(here)).map(({ kind }) => kind)).not.toContain('shadow-lost');
    expect((await hosts.status(here)).shadow).toMatchObject({ reconnects: 4, copiedShare: 1 });
  });

  it('goes on there when its own host is lost, is protected in the other direction, and comes back the same way', async () => {
    for (let round = 0; round < 2; round += 1) {
      const { here, there } = await settled();
      const token = await tokenNow();
      await clock.sleep(200 + Math.random() * 300);
      hosts.killHost(here);
      const promoted = await hosts.until(there, 'promoted');
      expect(promoted.facts).toMatchObject({ from: here, reason: 'peer-lost' });
      expect(await settled()).toEqual({ here: there, there: here });
      expect(await tokenNow()).toBe(token + 1);
      // What was killed there left memory that is as good as new.
      const { savedBytes, copiedBytes } = (await lastFilling(there)) as Record<string, number>;
      expect(savedBytes).toBeGreaterThan(copiedBytes ?? 0);
    }
  });

  it('is handed over when only its QEMU dies, and its keeper ends', async () => {
    const { here, there } = await settled();
    const keeper = hosts.keeperPid(here);
    for (const pid of hosts.qemuPids(here)) process.kill(pid, 'SIGKILL');
    const promoted = await hosts.until(there, 'promoted');
    // Its end and that of its QMP connection are seen in either order.
    expect(['exited', 'qmp-closed']).toContain(promoted.facts.reason);
    expect(await settled()).toEqual({ here: there, there: here });
    // The keeper of the new shadow is another process.
    expect(hosts.keeperPid(here)).not.toBe(keeper);
  });

  it('has its failover tested where its shadow is, which goes on being its shadow', async () => {
    const { here, there } = await settled();
    const standby = hosts.qemuPids(there);
    // Who is taken over has not gone back in time.
    expect(generations(standby)).toEqual(generations(hosts.qemuPids(here)));
    const report = JSON.parse(await hosts.cli(here, 'test-failover', hosts.vm, '--json'));
    expect(report).toMatchObject({ ok: true, reason: null });
    expect(report.runningMs).toBeGreaterThan(0);
    expect(hosts.qemuPids(there)).toEqual(standby);
    expect(await settled()).toEqual({ here, there });
  });

  it('leaves a snapshot on the host where it acts, from what its shadow holds', async () => {
    const { here, there } = await settled();
    const taken = JSON.parse(await hosts.cli(here, 'snapshot', 'create', hosts.vm, '--json'));
    expect(taken).toMatchObject({ path: expect.stringContaining(join(hosts.folder, here)) });
    expect(taken.epoch).toBeGreaterThan(0);
    const verified = JSON.parse(await hosts.cli(here, 'snapshot', 'verify', hosts.vm, '--json'));
    expect(verified.snapshots).toMatchObject([{ ok: true }]);
    expect(await settled()).toEqual({ here, there });
  });

  it('gives a snapshot up when its shadow is needed, and loses nothing', async () => {
    const { here, there } = await settled();
    const taking = hosts.cli(here, 'snapshot', 'create', hosts.vm, '--json').catch((cause: unknown) => cause);
    await hosts.until(here, 'snapshotting');
    hosts.killHost(here);
    await taking;
    await hosts.until(there, 'promoted');
    expect(await settled()).toEqual({ here: there, there: here });
  });

  it('moves when it is asked to', async () => {
    const { here, there } = await settled();
    await hosts.cli(here, 'promote', hosts.vm);
    const promoted = await hosts.until(there, 'promoted');
    expect(promoted.facts).toMatchObject({ reason: 'planned' });
    expect(await settled()).toEqual({ here: there, there: here });
    expect(await lastFilling(there)).toMatchObject(DELTA);
  });

  it('acts on one host only when the hosts lose each other, and is protected again when they have found each other', async () => {
    const { here, there } = await settled();
    const token = await tokenNow();
    await hosts.cutPeers();
    const record = await hosts.eventually('a decision', async () => {
      const found = await hosts.record();
      return found !== undefined && found.mode === 'alone' ? found : undefined;
    });
    expect(record.token).toBe(token + 1);
    const loser = record.holder === here ? there : here;
    await hosts.eventually('the end of the other one', () =>
      hosts.qemuPids(loser).length === 0 ? true : undefined,
    );
    expect(hosts.qemuPids(record.holder as HostName)).toHaveLength(1);
    await hosts.mend();
    expect(await settled()).toMatchObject({ here: record.holder });
    expect(await lastFilling(record.holder as HostName)).toMatchObject(DELTA);
  });

  it('acts on one host only when one of them is not heard by the other', async () => {
    const { here, there } = await settled();
    const token = await tokenNow();
    await hosts.cutPeers(here);
    const record = await hosts.eventually('a decision', async () => {
      const found = await hosts.record();
      return found !== undefined && found.token > token ? found : undefined;
    });
    const loser = record.holder === here ? there : here;
    await hosts.eventually('the end of the other one', () =>
      hosts.qemuPids(loser).length === 0 ? true : undefined,
    );
    await hosts.mend();
    expect(await settled()).toMatchObject({ here: record.holder });
  });

  it('stays where it is when one path between the hosts dies and another one lives', async () => {
    const { here, there } = await settled();
    const before = await hosts.status(here);
    expect(before.paths?.map(({ state }) => state)).toEqual(['heard', 'heard']);
    await hosts.cutPeers('both', { paths: [0] });
    await hosts.eventually('the loss of the path', async () =>
      (await hosts.events(here)).some(({ kind, facts }) => kind === 'path-lost' && facts.path === 0)
        ? true
        : undefined,
    );
    await hosts.load.command('PING');
    expect(await settled()).toEqual({ here, there });
    expect(await hosts.isSameGuest()).toBe(true);
    await hosts.mend();
    expect(existsSync(join(hosts.runDirectory(there), hosts.vm, 'events.jsonl'))).toBe(false);
  });

  it('stays where it is when its host is cut off from the world but not from the other one', async () => {
    const { here } = await settled();
    await hosts.cutLan(here);
    // Its shadow hears it, and nobody has a reason to take over.
    await clock.sleep(1500);
    expect((await hosts.record())?.holder).toBe(here);
    await hosts.mend();
    await hosts.load.command('PING');
    await settled();
  });

  it('goes on there when its keeper stands still, and what comes back of the old one is ended by itself', async () => {
    const { here, there } = await settled();
    const keeper = hosts.keeperPid(here);
    const qemus = hosts.qemuPids(here);
    process.kill(keeper, 'SIGSTOP');
    await hosts.until(there, 'promoted');
    const acked = await hosts.load.command('PING');
    expect(String(acked)).toBe('PONG');
    process.kill(keeper, 'SIGCONT');
    await hosts.eventually('the end of the one that came back', () =>
      qemus.every((pid) => !existsSync(`/proc/${pid}`)) ? true : undefined,
    );
    expect(await settled()).toEqual({ here: there, there: here });
  });

  it('gets another shadow when that one dies', async () => {
    const { here, there } = await settled();
    const shadow = hosts.keeperPid(there);
    hosts.killHost(there);
    await hosts.eventually('another shadow', async () => {
      const { here: still } = await settled();
      return still === here && hosts.keeperPid(there) !== shadow ? true : undefined;
    });
  });

  it('goes on while nobody says who may act, and is taken over as soon as somebody does', async () => {
    const { here, there } = await settled();
    hosts.signalEtcd('SIGSTOP');
    const before = await hosts.load.command('INCR', 'while-away');
    expect(Number(before)).toBeGreaterThan(0);
    hosts.killHost(here);
    // Longer than it takes to notice and to ask.
    await clock.sleep(2500);
    const path = join(hosts.runDirectory(there), hosts.vm, 'events.jsonl');
    expect(existsSync(path)).toBe(false);
    hosts.signalEtcd('SIGCONT');
    await hosts.until(there, 'promoted');
    expect(await settled()).toEqual({ here: there, there: here });
  });

  it('is not started on a second host', async () => {
    const { there } = await settled();
    await hosts.endSite(there);
    hosts.killHost(there);
    await expect(hosts.start(there)).rejects.toThrow('KEEPER_SUPERSEDED');
    await hosts.startSite(there);
    await settled();
  });

  it('stands still when it is alone and nobody can renew its right, and goes on as the same VM afterwards', async () => {
    const { here, there } = await settled();
    await leaveAlone(there);
    hosts.signalEtcd('SIGSTOP');
    await hosts.until(here, 'right-ended');
    expect((await hosts.status(here)).lease).toMatchObject({ store: 'away' });
    const released = async () => (await hosts.status(here)).links.map((link) => link.releasedItems);
    const before = await released();
    const asked = hosts.load.command('INCR', 'while-still');
    await clock.sleep(1000);
    expect(await released()).toEqual(before);
    hosts.signalEtcd('SIGCONT');
    await hosts.until(here, 'right-regained');
    expect(Number(await asked)).toBe(1);
    const kinds = (await hosts.events(here)).map(({ kind }) => kind);
    expect(kinds).toEqual(expect.arrayContaining(['lease-store-away', 'lease-store-back']));
    await hosts.startSite(there);
    expect(await settled()).toEqual({ here, there });
  });

  it('has lost nothing in all of this, and no connection', async () => {
    const { connections } = await hosts.load.end();
    expect(connections.survived).toBe(connections.total);
    expect(await hosts.load.verify()).toMatchObject({ lostWrites: 0 });
    expect(await hosts.isSameGuest()).toBe(true);
  });

  it('leaves nothing on either host when it is stopped, and may be started on the other one', async () => {
    const { here, there } = await settled();
    await hosts.cli(here, 'stop', hosts.vm, '--force');
    expect(await hosts.record()).toMatchObject({ mode: 'ended' });
    for (const name of [here, there]) {
      await hosts.eventually(`nothing on ${name}`, () =>
        existsSync(join(hosts.runDirectory(name), hosts.vm)) ? undefined : true,
      );
      expect(hosts.qemuPids(name)).toEqual([]);
      await hosts.eventually(`no memory on ${name}`, () =>
        readdirSync(hosts.memoryOf(name)).length === 0 ? true : undefined,
      );
    }
    await hosts.startKept(there);
    expect(await hosts.record()).toMatchObject({ holder: there });
  });

  it('is suspended where it acts, started nowhere else, and goes on there', async () => {
    const { here, there } = await settled();
    // It may be booting yet.
    const guest = await hosts.eventually('a guest that answers', () =>
      hosts.guestId().catch(() => undefined),
    );
    await hosts.cli(here, 'stop', hosts.vm, '--then', 'suspend');
    const record = await hosts.record();
    expect(record).toMatchObject({ mode: 'ended', holder: here, suspended: expect.any(Number) });
    await hosts.eventually('the end of its shadow', () =>
      hosts.qemuPids(there).length === 0 ? true : undefined,
    );
    await expect(hosts.start(there)).rejects.toThrow('KEEPER_SUSPENDED_ELSEWHERE');
    expect(await hosts.record()).toEqual(record);
    // What keeps no states has not seen whether it is there.
    await expect(hosts.start(here)).rejects.toThrow(/KEEPER_SUSPENDED\b/);
    expect((await hosts.record())?.suspended).toBe(record?.suspended);
    await hosts.startKept(here);
    await settled();
    expect(await hosts.guestId()).toBe(guest);
    // It is used up, and nothing is on record of it any more.
    expect((await hosts.record())?.suspended).toBe(undefined);
  });

  it('is begun anew on another host when the right of who acted alone has ended, and lets nothing out where it was', async () => {
    const { here, there } = await settled();
    await leaveAlone(there);
    process.kill(hosts.keeperPid(here), 'SIGSTOP');
    await hosts.start(there);
    expect(await hosts.record()).toMatchObject({ holder: there });
    expect(hosts.qemuPids(here)).toHaveLength(1);
    process.kill(hosts.keeperPid(here), 'SIGCONT');
    await hosts.eventually('the end of the one that came back', () =>
      hosts.qemuPids(here).length === 0 ? true : undefined,
    );
    await hosts.startSite(there);
    expect(await settled()).toEqual({ here: there, there: here });
  });
});

/** Nobody on this host keeps a shadow, and the VM is on record as alone. */
async function leaveAlone(host: HostName): Promise<void> {
  await hosts.endSite(host);
  hosts.killHost(host);
  await hosts.eventually('a VM that is alone', async () =>
    (await hosts.record())?.mode === 'alone' ? true : undefined,
  );
}

/** VMGenIDs of QEMUs, by their command lines. */
function generations(pids: readonly number[]): (string | undefined)[] {
  return pids.map((pid) => /guid=([0-9a-f-]{36})/.exec(readFileSync(`/proc/${pid}/cmdline`, 'utf8'))?.[1]);
}

/** Whoever asks may. */
const NOBODY_LOOKS = `
  const { RecordedRight } = await import(${JSON.stringify(new URL('../../src/keeper/recorded-right.ts', import.meta.url).href)});
  const right = Object.create(RecordedRight.prototype, {
    ...Object.fromEntries(['watch', 'dismissed', 'forgetState'].map((name) => [name, { value: () => {} }])),
    ...Object.fromEntries(['arm', 'release', 'regained'].map((name) => [name, { value: async () => {} }])),
    token: { value: 99 },
    hasEnded: { value: false },
    mayRelease: { value: () => true },
    status: { value: () => ({ token: 99, mode: 'alone', storeAwayMs: null, endsInMs: null }) },
    [Symbol.asyncDispose]: { value: async () => {} },
  });
  RecordedRight.takeOver = async () => ({ right, how: 'promote' });
  RecordedRight.prototype.goAlone = async () => 'granted';
  RecordedRight.prototype.watch = () => {};
  RecordedRight.prototype.mayRelease = () => true;`;

describe('a VM whose hosts lose each other', () => {
  it('acts on both when nobody looks at the record (control)', async () => {
    await using pair = await TwoHosts.withVm({ clients: 1, plants: { a: NOBODY_LOOKS, b: NOBODY_LOOKS } });
    await using oracle = new TwoHostOracle(pair);
    await oracle.begun();
    await pair.load.begin();
    expect(oracle.judgeActing()).toEqual([]);
    await pair.cutPeers();
    await pair.until('b', 'promoted');
    await pair.until('a', 'shadow-lost');
    expect(pair.qemuPids('a')).toHaveLength(1);
    expect(pair.qemuPids('b')).toHaveLength(1);
    const seen = await pair.eventually('frames of both', () => oracle.judgeActing()[0]);
    expect(seen).toMatch(/^on record were a, and frames came .* from b/);
  });
});
