import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { HostEvent } from '../api/resources.ts';
import { systemClock as clock } from '../base/clock.ts';
import { silentLogger as log } from '../base/logger.ts';
import { writeEnd } from '../control/keeper-end.ts';
import { bootId } from '../control/process-identity.ts';
import { Host } from './host.ts';
import { StateDatabase } from './state-database.ts';
import { VmInventory } from './vm-inventory.ts';

const KERNEL = import.meta.filename;
const withCode = (code: string) => expect.objectContaining({ code, hint: expect.stringMatching(/\S/) });

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-host-'));
  for (const name of ['specs', 'ends']) mkdirSync(join(folder, name));
  vi.stubEnv('UNDERSTUDY_RUN_DIR', join(folder, 'run'));
  vi.stubEnv('UNDERSTUDY_MEMORY_DIR', join(folder, 'memory'));
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true });
});

function open(): Host {
  return new Host({
    databasePath: join(folder, 'host.db'),
    startKeeper: async () => expect.unreachable('nothing is to be started here'),
    settings: { retention: { retentionDays: 365, retentionMax: 100_000 }, lookIntervalMs: 5000 },
    endDirectory: join(folder, 'ends'),
    stateDirectory: folder,
    ...{ version: '0', clock, log },
  });
}

const declaration = (name: string) => ({
  spec: `name: ${name}\nmemory: 64MiB\nboot: {kernel: ${KERNEL}}\n`,
  directory: '/',
  desired: 'stopped' as const,
});
const nameOf = (index: number) => `vm-${String(index).padStart(4, '0')}`;

describe('a host with a thousand declared VMs', () => {
  it('lists each once and in order, whatever the size of a page', async () => {
    await using host = open();
    const names = Array.from({ length: 1000 }, (_, index) => nameOf(index));
    host.transaction(() => {
      for (const name of names.toReversed()) host.declareVm(declaration(name));
    });
    for (const limit of [1000, 999, 334, 100, 7]) {
      const listed: string[] = [];
      for (let after: string | undefined; ; ) {
        const page = host.listVms({ after, limit });
        expect(page.vms.length).toBeLessThanOrEqual(limit);
        listed.push(...page.vms.map(({ name }) => name));
        if (page.next === null) break;
        after = page.next;
      }
      expect(listed).toEqual(names);
    }
    expect(host.describe()).toMatchObject({ vms: { declared: 1000, running: 0, protected: 0 } });
    expect(host.health()).toEqual({ status: 'ok' });
  });
});

describe('a host', () => {
  it('describes itself under its own name only', async () => {
    await using host = open();
    const { hosts, next } = host.listHosts({ after: undefined });
    expect([hosts.map(({ name }) => name), next]).toEqual([[hostname()], null]);
    expect(host.getHost(hostname())).toMatchObject({ pid: process.pid, cpus: expect.any(Number) });
    expect(hosts[0]?.memory.totalBytes).toBeGreaterThan(hosts[0]?.memory.freeBytes ?? Infinity);
    expect(() => host.getHost('elsewhere')).toThrow(withCode('HOST_UNKNOWN'));
    expect(host.listHosts({ after: hostname() }).hosts).toEqual([]);
  });

  it('gives no version of a specification out twice, also over deletion and restart', async () => {
    const versions: number[] = [];
    for (let start = 0; start < 2; start += 1) {
      await using host = open();
      for (let life = 0; life < 2; life += 1) {
        const { version } = host.declareVm(declaration('a'));
        versions.push(version, host.changeVm('a', declaration('a'), { ifVersion: version }).version);
        await host.deleteVm('a', { ifVersion: undefined });
      }
      // The tag of the life before hits nothing.
      const { version } = host.declareVm(declaration('a'));
      versions.push(version);
      expect(() => host.changeVm('a', declaration('a'), { ifVersion: versions.at(-2) ?? 0 })).toThrow(
        withCode('HOST_VM_CHANGED'),
      );
      await host.deleteVm('a', { ifVersion: version });
    }
    expect(versions).toEqual(versions.toSorted((a, b) => a - b));
    expect(new Set(versions).size).toBe(versions.length);
  });

  it('tells nobody of what is undone in the end', async () => {
    await using host = open();
    const heard: HostEvent[] = [];
    host.onEvent((event) => heard.push(event));
    const newest = host.newestEvent();
    expect(() =>
      host.transaction(() => {
        host.declareVm(declaration('a'));
        expect(heard).toEqual([]);
        throw new Error('in the middle');
      }),
    ).toThrow('in the middle');
    expect(heard).toEqual([]);
    expect(host.newestEvent()).toBe(newest);
    expect(host.describe().vms.declared).toBe(0);
    host.transaction(() => host.declareVm(declaration('a')));
    expect(heard.map(({ kind, vm }) => [kind, vm])).toEqual([['declared', 'a']]);
  });

  it.each([
    ['powered off', 'powered-off', bootId(), ['ended']],
    ['was stopped by somebody', 'requested', bootId(), ['ended']],
    ['failed', 'failed', bootId(), ['start-failed']],
    ['ended before the machine was rebooted', 'powered-off', 'another boot', ['start-failed']],
  ] as const)(
    'that did not look knows of a VM that %s whether to start it',
    async (_, reason, boot, kinds) => {
      {
        await using host = open();
        host.declareVm(declaration('a'));
      }
      {
        // As if a keeper had been started in this boot, and had run on when the host ended.
        using database = StateDatabase.open(join(folder, 'host.db'));
        const inventory = new VmInventory(database, { clock });
        inventory.desire('a', 'running');
        inventory.noteStarted('a', { version: 1, bootId: bootId() });
      }
      // What is started fails, before it is a process.
      rmSync(join(folder, 'specs'), { recursive: true });
      writeEnd(join(folder, 'ends/a.json'), { bootId: boot, reason, token: 4 });
      await using host = open();
      const heard = () => host.listEvents({ after: 0, limit: 100, vm: 'a' }).events.map(({ kind }) => kind);
      await expect.poll(() => heard().slice(1, 2), { timeout: 20_000 }).toEqual(kinds);
      expect(host.getVm('a').desired).toBe(kinds[0] === 'ended' ? 'stopped' : 'running');
    },
  );
});
