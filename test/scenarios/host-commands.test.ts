import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { ensureDemoGuest } from '../../guest/build.ts';
import type { HostEvent } from '../../src/api/resources.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { MIB } from '../../src/base/units.ts';
import { ControlClient } from '../../src/control/control-client.ts';
import { endProcess } from '../../src/control/process-identity.ts';
import { controlSocketOf, RunDirectory } from '../../src/control/run-directory.ts';
import type { VmStatus } from '../../src/control/vm-status.ts';
import { HostDaemon, hostEnvironment } from '../kit/host-daemon.ts';
import { marked } from '../kit/run-mark.ts';

const CLI = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const DEADLINE_MS = 60_000;

let boot: string;
let folder: string;
let memoryFolder: string;
let daemon: HostDaemon;

beforeAll(async () => {
  const { kernel, initrd, cmdline } = await ensureDemoGuest();
  boot = `accel: tcg\nboot: {kernel: ${kernel}, initrd: ${initrd}, cmdline: ${cmdline}}\n`;
});
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'us-commands-'));
  memoryFolder = mkdtempSync(`/dev/shm/${marked('commands')}-`);
  for (const [name, value] of Object.entries(hostEnvironment(folder, memoryFolder))) vi.stubEnv(name, value);
  daemon = await HostDaemon.start({ folder, memoryFolder });
});
afterEach(async () => {
  await daemon.end('SIGKILL');
  for (const { name, record } of RunDirectory.list()) {
    if (record !== undefined) await endProcess(record.keeper, { deadlineMs: DEADLINE_MS, clock });
    await RunDirectory.sweep(name, { clock });
  }
  for (const path of [folder, memoryFolder]) rmSync(path, { recursive: true, force: true });
  vi.unstubAllEnvs();
});

async function understudy(...args: string[]) {
  const child = spawn(process.execPath, [CLI, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const closed = once(child, 'close');
  const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)]);
  const [exitCode] = await closed;
  return { exitCode, stdout, stderr, json: () => JSON.parse(stdout.trim().split('\n').at(-1) ?? '') };
}

function writeSpec(memory: string): string {
  const path = join(folder, 'kept.yaml');
  writeFileSync(path, `name: kept\nmemory: ${memory}\n${boot}`);
  return path;
}

async function create(): Promise<number> {
  const created = await understudy('create', writeSpec('128MiB'), '--json');
  expect(created.exitCode, created.stdout + created.stderr).toBe(0);
  return created.json().observed.keeperPid;
}

async function keeperStatus(): Promise<VmStatus> {
  using control = await ControlClient.connect(controlSocketOf('kept'), { vm: 'kept', clock });
  return await control.status();
}

async function events(): Promise<readonly HostEvent[]> {
  return (await daemon.client.call('listEvents', { query: { limit: 1000, vm: 'kept' } })).events;
}

async function untilEvent(kind: string, count: number): Promise<void> {
  const seen = async () => (await events()).filter((event) => event.kind === kind).length;
  await vi.waitFor(async () => expect(await seen(), kind).toBe(count), {
    timeout: DEADLINE_MS,
    interval: 50,
  });
}

describe('the token of a VM', () => {
  it('grows each time that another QEMU acts, and never goes back, whoever is killed meanwhile', async () => {
    const keeperPid = await create();
    process.kill((await keeperStatus()).primary?.pid ?? 0, 'SIGKILL');
    await untilEvent('promoted', 1);
    await untilEvent('protected', 2);
    expect((await keeperStatus()).token).toBe(2);

    process.kill(keeperPid, 'SIGKILL');
    await untilEvent('inherited', 1);
    await untilEvent('protected', 3);
    expect((await keeperStatus()).token).toBe(3);

    await daemon.end('SIGKILL');
    using control = await ControlClient.connect(controlSocketOf('kept'), { vm: 'kept', clock });
    await control.promote();
    await control.stop({ graceful: false });
    await vi.waitFor(() => expect(RunDirectory.list()).toEqual([]), { timeout: DEADLINE_MS });
    daemon = await HostDaemon.start({ folder, memoryFolder });
    // Of the promotion and the stop this daemon has only what the keeper left.
    await untilEvent('ended', 1);
    expect((await events()).at(-1)?.facts).toEqual({ reason: 'requested' });

    await understudy('start', 'kept', '--json');
    expect((await keeperStatus()).token).toBe(5);
    const tokens = (await events()).flatMap(({ token }) => token ?? []);
    expect(tokens).toEqual(tokens.toSorted((a, b) => a - b));
    expect([...new Set(tokens)]).toEqual([0, 1, 2, 3, 4, 5]);
  });
});

describe('understudy change', () => {
  it('says what differs, and that it takes effect later or, with --restart, now', async () => {
    const keeperPid = await create();
    const same = (await understudy('change', 'kept', writeSpec('128MiB'), '--restart', '--json')).json();
    expect(same).toMatchObject({
      differences: [],
      effect: 'now',
      vm: { version: 1, observed: { keeperPid } },
    });

    const spec = writeSpec('160MiB');
    const later = (await understudy('change', 'kept', spec, '--json')).json();
    const differences = [{ field: 'memoryBytes', before: 128 * MIB, after: 160 * MIB }];
    expect(later).toMatchObject({ differences, effect: 'at the next start' });
    expect(later.vm).toMatchObject({ version: 2, observed: { version: 1, keeperPid } });
    expect((await keeperStatus()).memoryBytes).toBe(128 * MIB);

    const now = (await understudy('change', 'kept', spec, '--restart', '--json')).json();
    expect(now).toMatchObject({
      differences: [],
      effect: 'now',
      vm: { observed: { version: 2, state: 'protected' } },
    });
    expect((await keeperStatus()).memoryBytes).toBe(160 * MIB);
  });

  it('is refused for another name and for a VM that nobody declared, and changes nothing', async () => {
    await create();
    const other = join(folder, 'other.yaml');
    writeFileSync(other, `name: other\nmemory: 128MiB\n${boot}`);
    for (const [name, code, exitCode] of [
      ['kept', 'HOST_NAME_FIXED', 2],
      ['other', 'HOST_VM_UNKNOWN', 3],
    ] as const) {
      const refused = await understudy('change', name, other, '--json');
      expect([refused.exitCode, refused.json().error.code]).toEqual([exitCode, code]);
    }
    expect(await daemon.client.call('getVm', { params: { name: 'kept' } })).toMatchObject({ version: 1 });
  });
});

describe('understudy backup and restore', () => {
  it('bring the declared VMs back, and a VM that runs is taken back as it is', async () => {
    const keeperPid = await create();
    const file = join(folder, 'backup.db');
    expect((await understudy('backup', file, '--json')).json()).toMatchObject({ path: file, vms: 1 });
    const again = await understudy('backup', file, '--json');
    expect([again.exitCode, again.json().error.code]).toEqual([2, 'HOST_BACKUP_EXISTS']);

    const early = await understudy('restore', file, '--json');
    expect([early.exitCode, early.json().error.code]).toEqual([1, 'HOST_ALREADY_RUNS']);
    await daemon.end('SIGKILL');
    rmSync(join(folder, 'state'), { recursive: true });
    expect((await understudy('restore', file, '--json')).json()).toMatchObject({ vms: 1, aside: null });
    daemon = await HostDaemon.start({ folder, memoryFolder });
    await vi.waitFor(
      async () =>
        expect(await daemon.client.call('getVm', { params: { name: 'kept' } })).toMatchObject({
          observed: { state: 'protected', keeperPid },
        }),
      { timeout: DEADLINE_MS },
    );
    expect(readdirSync(folder).filter((name) => name.endsWith('.part'))).toEqual([]);
  });

  it('leaves nothing but a whole backup when it is interrupted', async () => {
    const file = join(folder, 'backup.db');
    const child = spawn(process.execPath, [CLI, 'backup', file], { stdio: ['ignore', 'ignore', 'pipe'] });
    await once(child.stderr, 'data');
    child.kill('SIGINT');
    const [exitCode] = await once(child, 'close');
    expect([0, 130]).toContain(exitCode);
    // The interruption may come when the backup has its name already.
    if (exitCode === 0) expect(existsSync(file)).toBe(true);
    if (existsSync(file)) {
      using backup = disposable(new DatabaseSync(file, { readOnly: true }));
      expect(backup.prepare('PRAGMA integrity_check').all()).toEqual([{ integrity_check: 'ok' }]);
    }
    expect(readdirSync(folder).filter((name) => name.includes('.part'))).toEqual([]);
  });
});

function disposable(sql: DatabaseSync): DatabaseSync & Disposable {
  return Object.assign(sql, { [Symbol.dispose]: () => sql.close() });
}

describe('understudy events --host', () => {
  it('shows what the host knows, and with --follow what is to come, over a restart of the daemon', async () => {
    await daemon.client.call('declareVm', {
      body: { spec: `name: kept\nmemory: 128MiB\n${boot}`, directory: '/', desired: 'stopped' },
    });
    const past = (await understudy('events', '--host')).stdout;
    expect(past).toMatch(
      / {2}1 {2}host {2}host-started {2}pid=\d+ .*\n.* {2}2 {2}kept {2}declared {2}desired=stopped trace=[0-9a-f-]{36}\n.* {2}3 {2}host {2}audit {2}.*action=declareVm target=kept status=201 .*\n$/,
    );
    const since = await understudy('events', 'kept', '--host', '--since', '1', '--json');
    expect(since.json()).toMatchObject({ id: 2, vm: 'kept', kind: 'declared', token: null });

    const child = spawn(process.execPath, [CLI, 'events', '--host', '--follow', '--since', '3', '--json'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const closed = once(child, 'close');
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    /** Who asked for it is told too, before it is done and after. */
    const nextKind = async (): Promise<string> => {
      const { kind } = JSON.parse((await lines.next()).value ?? '');
      return kind === 'audit' ? await nextKind() : kind;
    };
    await daemon.client.call('deleteVm', { params: { name: 'kept' } });
    expect([await nextKind(), await nextKind()]).toEqual(['deleting', 'deleted']);
    await daemon.end('SIGKILL');
    daemon = await HostDaemon.start({ folder, memoryFolder });
    expect(await nextKind()).toBe('host-started');
    child.kill('SIGINT');
    expect((await closed)[0]).toBe(130);
  });
});

describe('understudy hosts', () => {
  it('shows the daemon, its machine and its VMs', async () => {
    const { hosts } = (await understudy('hosts', '--json')).json();
    expect(hosts).toMatchObject([{ name: hostname(), pid: daemon.pid, vms: { declared: 0, running: 0 } }]);
    expect((await understudy('hosts')).stdout).toMatch(
      /^NAME +VERSION .*\n.*0 declared, 0 running, 0 protected\n$/,
    );
  });
});
