import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { ensureDemoGuest } from '../../guest/build.ts';
import { ApiClient } from '../../src/api/api-client.ts';
import { ask, type RawAnswer } from '../../src/api/api-fixture.ts';
import type { Vm } from '../../src/api/resources.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { ControlClient } from '../../src/control/control-client.ts';
import { endProcess } from '../../src/control/process-identity.ts';
import { controlSocketOf, RunDirectory } from '../../src/control/run-directory.ts';
import type { VmStatus } from '../../src/control/vm-status.ts';
import { PHASES } from '../../src/shadow/protection.ts';
import { parseExposition, sampleOf } from '../kit/exposition.ts';
import { marked } from '../kit/run-mark.ts';

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const DAEMON = fileURLToPath(new URL('../../src/host/main.ts', import.meta.url));
const DEADLINE_MS = 60_000;
const NAME = 'seen';

let folder: string;
let socketPath: string;
let client: ApiClient;
let daemon: ChildProcess;
const hostLog: string[] = [];

/** One VM for all tests here: they look at it, and what they do to it is undone, or the last thing that is done. */
beforeAll(async () => {
  const { kernel, initrd, cmdline } = await ensureDemoGuest();
  folder = mkdtempSync(join(tmpdir(), 'us-seen-'));
  vi.stubEnv('UNDERSTUDY_RUN_DIR', join(folder, 'run'));
  vi.stubEnv('UNDERSTUDY_MEMORY_DIR', mkdtempSync(`/dev/shm/${marked('seen')}-`));
  vi.stubEnv('UNDERSTUDY_STATE_DIR', join(folder, 'state'));
  socketPath = join(folder, 'run/host.sock');
  client = new ApiClient({ socketPath, clock });
  await startDaemon();
  const boot = `{kernel: ${kernel}, initrd: ${initrd}, cmdline: ${cmdline}}`;
  const spec = `name: ${NAME}\nmemory: 128MiB\naccel: tcg\nboot: ${boot}\n`;
  const declared = await post('/v1/vms', 'declare-1', JSON.stringify({ spec, directory: '/' }));
  expect(declared.status).toBe(201);
  await until('protected');
});
afterAll(async () => {
  if (daemon.exitCode === null && daemon.signalCode === null) {
    const exited = once(daemon, 'exit');
    daemon.kill('SIGKILL');
    await exited;
  }
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
  const listens = Promise.withResolvers<void>();
  const lines = createInterface({ input: daemon.stderr ?? process.stdin });
  lines.on('line', (line) => {
    hostLog.push(line);
    if (line.includes('host listens')) listens.resolve();
  });
  lines.on('close', () => listens.reject(new Error(`the daemon ended:\n${hostLog.join('\n')}`)));
  await listens.promise;
}

function post(path: string, requestId: string, body?: string): Promise<RawAnswer> {
  const headers = {
    'x-request-id': requestId,
    ...(body !== undefined && {
      'content-type': 'application/json',
      'content-length': String(Buffer.byteLength(body)),
    }),
  };
  return ask(socketPath, { method: 'POST', path, headers, ...(body !== undefined && { body }) });
}

async function until(...states: Vm['observed']['state'][]): Promise<Vm> {
  const signal = AbortSignal.timeout(DEADLINE_MS);
  for (;;) {
    const vm = await client.call('getVm', { params: { name: NAME } }, signal);
    if (states.includes(vm.observed.state)) return vm;
    await clock.sleep(20, signal);
  }
}

async function status(): Promise<VmStatus> {
  using control = await ControlClient.connect(controlSocketOf(NAME), { vm: NAME, clock });
  return await control.status();
}

async function scrape() {
  const families = parseExposition(await client.call('getMetrics', {}));
  const value = (name: string, labels: Record<string, string> = {}) =>
    sampleOf(families, `understudy_vm_${name}`, { vm: NAME, ...labels });
  return { families, value };
}

const logged = (path: string): Record<string, unknown>[] =>
  readFileSync(join(folder, 'run', NAME, path), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));

describe('the metrics of a VM that runs', () => {
  it('are those that its keeper shows: epochs, pauses, commits', async () => {
    const before = await status();
    const { value } = await scrape();
    const after = await status();
    const between = (found: number | undefined, counted: (vm: VmStatus) => number) => {
      expect(found).toBeGreaterThanOrEqual(counted(before));
      expect(found).toBeLessThanOrEqual(counted(after));
    };
    expect(value('up')).toBe(1);
    between(value('epochs_committed_total'), ({ epochs }) => epochs.commits);
    between(value('commit_seconds_count'), ({ epochs }) => epochs.commits);
    between(value('pause_seconds_count'), ({ epochs }) => epochs.pauseMs.count);
    between(value('epoch_dirty_pages_count'), ({ epochs }) => epochs.dirtyPages.count);
    between(value('epoch_committed'), ({ epochs }) => epochs.committed);
    expect(value('epochs_committed_total')).toBeGreaterThan(0);
    expect(value('pause_seconds_sum')).toBeGreaterThan(0);
    expect(value('memory_bytes')).toBe(after.memoryBytes);
    expect(value('shadow_lag_seconds')).toBeGreaterThanOrEqual(0);
    expect(PHASES.filter((phase) => value('phase', { phase }) === 1)).toEqual(['protected']);
    // They go on: the counts are not those of some moment in the past.
    const commits = async () => (await scrape()).value('epochs_committed_total');
    await expect.poll(commits, { timeout: DEADLINE_MS }).toBeGreaterThan(after.epochs.commits);
  });

  it('say that its keeper does not answer while it does not, and the host answers all the same', async () => {
    const { keeperPid } = (await until('protected')).observed;
    process.kill(keeperPid ?? 0, 'SIGSTOP');
    try {
      const { families, value } = await scrape();
      expect(value('up')).toBe(0);
      expect(value('epochs_committed_total')).toBeUndefined();
      expect(families.get('understudy_build_info')?.samples).toHaveLength(1);
      expect((await client.call('getStats', {})).vms).toEqual([
        expect.objectContaining({ name: NAME, figures: null }),
      ]);
    } finally {
      process.kill(keeperPid ?? 0, 'SIGCONT');
    }
    await until('protected');
    expect((await scrape()).value('up')).toBe(1);
  });

  it('are in short what the host tells those who watch', async () => {
    const { host, vms } = await client.call('getStats', {});
    expect(host.vms).toEqual({ declared: 1, running: 1, protected: 1 });
    expect(vms).toEqual([
      expect.objectContaining({
        ...{ name: NAME, state: 'protected', desired: 'running' },
        figures: expect.objectContaining({ memoryBytes: 134_217_728, lagMs: expect.any(Number) }),
      }),
    ]);
    expect(vms[0]?.figures?.commits).toBeGreaterThan(0);
  });
});

describe('understudy top', () => {
  const look = async () => {
    const args = [MAIN, 'top', '--json', '--once', '--interval', '0.5'];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    return JSON.parse(await text(child.stdout));
  };
  const seen = {
    ...{ name: NAME, state: 'protected', epochsPerSecond: expect.any(Number) },
    figures: expect.objectContaining({ memoryBytes: 134_217_728 }),
  };

  it('asks the host, and the keepers themselves where none answers', async () => {
    const { host, vms } = await look();
    expect(host.vms).toEqual({ declared: 1, running: 1, protected: 1 });
    expect(vms).toEqual([{ ...seen, desired: 'running' }]);
    // An idle guest is cut when its epoch is old.
    expect(vms[0].epochsPerSecond).toBeGreaterThan(0);
    vi.stubEnv('UNDERSTUDY_HOST_SOCKET', join(folder, 'nobody.sock'));
    try {
      expect(await look()).toMatchObject({ host: null, vms: [{ ...seen, desired: null }] });
    } finally {
      vi.stubEnv('UNDERSTUDY_HOST_SOCKET', undefined);
    }
  });
});

describe('the id of an API call', () => {
  it('is in the log of the host, the log of the keeper, the events, and the QMP log of the new primary', async () => {
    const trace = 'follow-me:1';
    const { promotions, shadow } = await status();
    const { families } = await scrape();
    const events = sampleOf(families, 'understudy_host_events_total') ?? 0;
    expect((await post(`/v1/vms/${NAME}/promote`, trace)).status).toBe(200);
    await until('protected');
    const { value, families: now } = await scrape();
    expect(value('promotions_total')).toBe(promotions + 1);
    expect(value('outage_seconds_count')).toBe(promotions + 1);
    expect(sampleOf(now, 'understudy_host_events_total')).toBeGreaterThan(events);

    const inHost = hostLog.map((line) => JSON.parse(line)).filter(({ requestId }) => requestId === trace);
    expect(inHost).toEqual([expect.objectContaining({ message: 'API', method: 'POST', status: 200 })]);

    const inKeeper = logged('keeper.log').filter((line) => line.trace === trace);
    const ways = ['promote is asked for', 'primary-lost', 'fencing', 'promoting', 'promoted', 'alone'];
    expect(inKeeper.map(({ message }) => message)).toEqual(ways);

    const { events: told } = await client.call('listEvents', { query: { vm: NAME, limit: 1000 } });
    expect(told.filter(({ facts }) => facts.trace === trace).map(({ kind }) => kind)).toEqual(ways.slice(1));

    const qmp = logged(`${shadow?.instance}/qmp.log`).filter(({ id }) => String(id).endsWith(`/${trace}`));
    const asked = qmp.filter(({ direction }) => direction === '>');
    expect(asked.map(({ execute }) => execute)).toEqual(['query-status', 'cont', 'announce-self']);
    // QEMU gives the id back with its answer.
    const answered = qmp.filter((line) => line.direction === '<' && 'return' in line);
    expect(new Set(answered.map(({ id }) => id))).toEqual(new Set(asked.map(({ id }) => id)));
  });

  it('is not on what nobody asked for', async () => {
    const { primary, shadow } = await status();
    process.kill(primary?.pid ?? 0, 'SIGKILL');
    const acts = async () => expect((await status()).primary?.instance).toBe(shadow?.instance);
    await vi.waitFor(acts, { timeout: DEADLINE_MS, interval: 20 });
    const isProtected = async () => expect((await status()).phase).toBe('protected');
    await vi.waitFor(isProtected, { timeout: DEADLINE_MS, interval: 20 });
    const lines = logged('keeper.log');
    const crash = lines.findLastIndex(({ message }) => message === 'primary-lost');
    expect(lines.slice(crash).map(({ message }) => message)).toContain('promoted');
    expect(lines.slice(crash).filter((line) => 'trace' in line)).toEqual([]);
    const qmp = logged(`${shadow?.instance}/qmp.log`);
    expect(qmp.filter(({ execute }) => execute === 'announce-self')).toHaveLength(1);
    expect(qmp.filter(({ id }) => typeof id === 'string')).toEqual([]);
  });

  it('is on what the host did because of it', async () => {
    const told = () => hostLog.map((line) => JSON.parse(line));
    expect(told()).toContainEqual(
      expect.objectContaining({ message: 'start done', vm: NAME, trace: 'declare-1' }),
    );
    expect(logged('keeper.log')[0]).toMatchObject({ message: 'keeper started', trace: 'declare-1' });
    expect((await post(`/v1/vms/${NAME}/stop`, 'stop-1', '{"graceful":false}')).status).toBe(200);
    await until('absent');
    const { events } = await client.call('listEvents', { query: { vm: NAME, limit: 1000 } });
    const traced = events.filter(({ facts }) => facts.trace === 'stop-1').map(({ kind }) => kind);
    expect(traced.slice(0, 2)).toEqual(['desired', 'stopping']);
    await expect
      .poll(told, { timeout: DEADLINE_MS })
      .toContainEqual(expect.objectContaining({ message: 'stop done', trace: 'stop-1' }));
  });
});

describe('the metrics of a VM that was stopped or deleted', () => {
  it('are gone', async () => {
    expect((await scrape()).value('up')).toBeUndefined();
    const headers = { 'x-request-id': 'delete-1' };
    expect((await ask(socketPath, { method: 'DELETE', path: `/v1/vms/${NAME}`, headers })).status).toBe(204);
    const { events } = await client.call('listEvents', { query: { vm: NAME, limit: 1000 } });
    const traced = events.filter(({ facts }) => facts.trace === 'delete-1').map(({ kind }) => kind);
    expect(traced).toEqual(['deleting', 'deleted']);
    const { families } = await scrape();
    const ofVms = [...families.values()].flatMap(({ samples }) =>
      samples.filter(({ labels }) => labels.has('vm')),
    );
    expect(ofVms).toEqual([]);
    const stopped = { kind: 'stop', outcome: 'done' };
    expect(sampleOf(families, 'understudy_host_actions_total', stopped)).toBe(1);
  });
});
