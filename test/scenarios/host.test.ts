import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Duplex } from 'node:stream';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { ensureDemoGuest } from '../../guest/build.ts';
import { ApiClient } from '../../src/api/api-client.ts';
import type { HostEvent, Vm } from '../../src/api/resources.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { ControlClient } from '../../src/control/control-client.ts';
import { endProcess, identityOf } from '../../src/control/process-identity.ts';
import { controlSocketOf, RunDirectory } from '../../src/control/run-directory.ts';
import type { VmStatus } from '../../src/control/vm-status.ts';
import { marked } from '../kit/run-mark.ts';

const DAEMON = fileURLToPath(new URL('../../src/host/main.ts', import.meta.url));
const CLI = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const DEADLINE_MS = 60_000;

let folder: string;
let spec: string;
let daemon: ChildProcess;
let client: ApiClient;

beforeAll(async () => {
  const { kernel, initrd, cmdline } = await ensureDemoGuest();
  spec = `name: kept\nmemory: 128MiB\naccel: tcg\nboot: {kernel: ${kernel}, initrd: ${initrd}, cmdline: ${cmdline}}\n`;
});
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'us-host-'));
  vi.stubEnv('UNDERSTUDY_RUN_DIR', join(folder, 'run'));
  vi.stubEnv('UNDERSTUDY_MEMORY_DIR', mkdtempSync(`/dev/shm/${marked('host')}-`));
  vi.stubEnv('UNDERSTUDY_STATE_DIR', join(folder, 'state'));
  client = new ApiClient({ socketPath: join(folder, 'run/host.sock'), clock });
  await startDaemon();
});
afterEach(async () => {
  await endDaemon('SIGKILL');
  for (const { name, record } of RunDirectory.list()) {
    if (record !== undefined) await endProcess(record.keeper, { deadlineMs: DEADLINE_MS, clock });
    await RunDirectory.sweep(name, { clock });
  }
  rmSync(process.env.UNDERSTUDY_MEMORY_DIR ?? '', { recursive: true, force: true });
  rmSync(folder, { recursive: true, force: true });
  vi.unstubAllEnvs();
});

async function startDaemon(): Promise<void> {
  daemon = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', DAEMON], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const said: string[] = [];
  const listens = Promise.withResolvers<void>();
  const lines = createInterface({ input: daemon.stderr ?? process.stdin });
  lines.on('line', (line) => {
    said.push(line);
    if (line.includes('host listens')) listens.resolve();
  });
  lines.on('close', () => listens.reject(new Error(`the daemon ended:\n${said.join('\n')}`)));
  await listens.promise;
}

async function endDaemon(signal: NodeJS.Signals): Promise<number | null> {
  if (daemon.exitCode !== null || daemon.signalCode !== null) return daemon.exitCode;
  const exited = once(daemon, 'exit');
  daemon.kill(signal);
  return (await exited)[0];
}

/** The VM once it is in one of these states. */
async function until(...states: Vm['observed']['state'][]): Promise<Vm> {
  const signal = AbortSignal.timeout(DEADLINE_MS);
  for (;;) {
    const vm = await client.call('getVm', { params: { name: 'kept' } }, signal);
    if (states.includes(vm.observed.state)) return vm;
    await clock.sleep(20, signal);
  }
}

async function nextEvent(kind: string, after: number): Promise<HostEvent> {
  for await (const event of client.events({ after, vm: 'kept', signal: AbortSignal.timeout(DEADLINE_MS) }))
    if (event.kind === kind) return event;
  throw new Error('events never end');
}

async function allEvents(): Promise<readonly HostEvent[]> {
  return (await client.call('listEvents', { query: { limit: 1000 } })).events;
}

async function lastEventId(): Promise<number> {
  return (await allEvents()).at(-1)?.id ?? 0;
}

async function keeperStatus(): Promise<VmStatus> {
  using control = await ControlClient.connect(controlSocketOf('kept'), { vm: 'kept', clock });
  return await control.status();
}

function declare(): Promise<Vm> {
  return client.call('declareVm', { body: { spec, directory: '/' } });
}

describe('a VM that a host owns', () => {
  it('is started, lives on when the host is killed, and is taken back with nothing told twice', async () => {
    expect((await declare()).observed.state).toMatch(/absent|starting/);
    const before = (await until('protected')).observed;
    const { primary, shadow } = await keeperStatus();

    await endDaemon('SIGKILL');
    expect(await keeperStatus()).toMatchObject({ phase: 'protected', primary, shadow });
    process.kill(primary?.pid ?? 0, 'SIGKILL');
    await startDaemon();

    const after = (await until('protected')).observed;
    expect(after.keeperPid).toBe(before.keeperPid);
    await nextEvent('promoted', 0);
    await vi.waitFor(async () => {
      const kinds = (await allEvents()).filter(({ vm }) => vm === 'kept').map(({ kind }) => kind);
      const once = ['declared', 'primary-lost', 'promoted'];
      expect(kinds.filter((kind) => once.includes(kind))).toEqual(once);
      expect(kinds.filter((kind) => kind === 'protected')).toHaveLength(2);
    });
    expect(await client.call('getHealth', {})).toEqual({ status: 'ok' });
  });

  it('is given another keeper when its own is killed, which goes on from the shadow', async () => {
    await declare();
    const { keeperPid } = (await until('protected')).observed;
    const { primary } = await keeperStatus();
    process.kill(keeperPid ?? 0, 'SIGKILL');
    await vi.waitFor(
      async () => {
        const { observed } = await until('protected');
        expect(observed.keeperPid).not.toBe(keeperPid);
      },
      { timeout: DEADLINE_MS, interval: 50 },
    );
    expect(identityOf(primary?.pid ?? 0)).toBeUndefined();
    const kinds = (await allEvents()).map(({ kind }) => kind);
    expect(kinds.filter((kind) => kind === 'inherited')).toHaveLength(1);
    expect(kinds).not.toContain('inherit-failed');
  });

  it('goes on as it was when its keeper is killed after another specification was declared, which waits', async () => {
    const { version } = await declare();
    const { keeperPid } = (await until('protected')).observed;
    const params = { name: 'kept' };
    const headers = { 'if-match': `"${version}"` };
    const body = { spec: spec.replace('128MiB', '160MiB'), directory: '/' };
    await client.call('changeVm', { params, headers, body });
    process.kill(keeperPid ?? 0, 'SIGKILL');
    await nextEvent('inherited', 0);
    expect(await until('protected')).toMatchObject({ version: 2, observed: { version: 1 } });
    expect((await keeperStatus()).memoryBytes).toBe(128 * 2 ** 20);

    await client.call('stopVm', { params, body: { graceful: false } });
    await until('absent');
    await client.call('startVm', { params });
    expect(await until('protected')).toMatchObject({ version: 2, observed: { version: 2 } });
    expect((await keeperStatus()).memoryBytes).toBe(160 * 2 ** 20);
  });

  it('is stopped, started and deleted as it is told, and nothing is left of it then', async () => {
    await declare();
    await until('protected');
    const params = { name: 'kept' };
    expect(await client.call('stopVm', { params, body: { graceful: true } })).toMatchObject({
      desired: 'stopped',
    });
    await until('absent');
    expect(readdirSync(process.env.UNDERSTUDY_MEMORY_DIR ?? '')).toEqual([]);

    await client.call('startVm', { params });
    await until('protected');
    await client.call('promoteVm', { params });
    await client.call('deleteVm', { params });
    await expect(client.call('getVm', { params })).rejects.toMatchObject({ code: 'HOST_VM_UNKNOWN' });
    expect(RunDirectory.list()).toEqual([]);
    expect(readdirSync(process.env.UNDERSTUDY_MEMORY_DIR ?? '')).toEqual([]);
  });

  it('stays off when it was ended in good order, also while no host looked', async () => {
    await declare();
    await until('protected');
    await endDaemon('SIGTERM');
    {
      using control = await ControlClient.connect(controlSocketOf('kept'), { vm: 'kept', clock });
      await control.stop({ graceful: false });
    }
    await vi.waitFor(() => expect(RunDirectory.list()).toEqual([]), { timeout: DEADLINE_MS });
    await startDaemon();
    await nextEvent('ended', 0);
    expect(await until('absent')).toMatchObject({ desired: 'stopped' });
  });

  it('says what keeps it from starting, is tried again, and starts once that is mended', async () => {
    const bad = spec.replace(/kernel: [^,]+/, `kernel: ${folder}/none`);
    const declared = await client.call('declareVm', { body: { spec: bad, directory: '/' } });
    await nextEvent('start-failed', 0);
    const { observed } = await client.call('getVm', { params: { name: 'kept' } });
    expect(observed.problem).toMatchObject({
      code: 'QEMU_START_FAILED',
      message: expect.stringContaining('none'),
    });
    expect(await client.call('getHealth', {})).toEqual({ status: 'degraded' });
    const headers = { 'if-match': `"${declared.version}"` };
    await client.call('changeVm', { params: { name: 'kept' }, headers, body: { spec, directory: '/' } });
    expect(await until('protected')).toMatchObject({ version: 2, observed: { version: 2, problem: null } });
  });

  it('is never doubled or lost when the host is killed again and again at random moments', async () => {
    await declare();
    const pids = new Set<number>();
    for (let round = 0; round < 6; round++) {
      await clock.sleep(Math.random() * 1500);
      await endDaemon('SIGKILL');
      await startDaemon();
    }
    const vm = await until('protected');
    for (const { record } of RunDirectory.list()) pids.add(record?.keeper.pid ?? 0);
    expect([...pids]).toEqual([vm.observed.keeperPid]);
    const started = (await allEvents()).filter(({ kind }) => kind === 'qemu-started');
    expect(new Set(started.map(({ facts }) => facts.pid)).size).toBe(started.length);
    expect(await lastEventId()).toBeGreaterThan(6);
  });
});

describe('the console of a VM that a host owns', () => {
  /** What a console says, and waiting for a piece of it. */
  async function take(console: Duplex, pattern: RegExp): Promise<string> {
    let seen = '';
    const cancel = clock.after(DEADLINE_MS, () =>
      console.destroy(new Error(`no ${pattern} in: ${seen.slice(-2000)}`)),
    );
    for await (const bytes of console.iterator({ destroyOnReturn: false })) {
      seen += bytes;
      if (!pattern.test(seen)) continue;
      cancel();
      return seen;
    }
    throw new Error(`the console ended: ${seen.slice(-2000)}`);
  }

  it('is spoken to through the host, also over a takeover, and ends with the VM', async () => {
    await declare();
    await until('protected');
    const console = await client.console('kept');
    await take(console, /understudy-guest: ready[\s\S]*\/ # /);
    console.write('n=1; echo sum""-$((n+1));\n');
    await take(console, /sum-2\r/);
    const { primary } = await keeperStatus();
    process.kill(primary?.pid ?? 0, 'SIGKILL');
    // The same shell, with what it knew.
    console.write('echo sum""-$((n+2));\n');
    await take(console, /sum-3\r/);
    const later = await client.console('kept');
    expect(await take(later, /sum-3\r/)).toContain('sum-2\r');
    // A user whose own VMs are elsewhere reaches it through the host alone.
    const elsewhere = {
      UNDERSTUDY_RUN_DIR: join(folder, 'other'),
      UNDERSTUDY_HOST_SOCKET: join(folder, 'run/host.sock'),
    };
    const command = spawn(process.execPath, [CLI, 'console', 'kept', '--linger', '5'], {
      env: { ...process.env, ...elsewhere },
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    command.stdin.end('echo typed""-$((n+3));\n');
    expect(await text(command.stdout)).toContain('typed-4\r');
    const ended = [console, later].map((each) => once(each.resume(), 'close'));
    await client.call('deleteVm', { params: { name: 'kept' } });
    await Promise.all(ended);
    await expect(client.console('kept')).rejects.toMatchObject({ code: 'HOST_VM_UNKNOWN' });
  });
});

describe('a second host', () => {
  it('is kept away by the first', async () => {
    const first = daemon;
    await expect(startDaemon()).rejects.toThrow('HOST_ALREADY_RUNS');
    daemon = first;
  });
});
