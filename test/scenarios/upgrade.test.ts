import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ensureDemoGuest } from '../../guest/build.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { endProcess } from '../../src/control/process-identity.ts';
import { RunDirectory } from '../../src/control/run-directory.ts';
import { DemoNetwork } from '../../src/demo/demo-network.ts';
import { RedisLoad } from '../../src/demo/redis-load.ts';
import { type PreviousRelease, previousRelease } from '../kit/previous-release.ts';
import { marked } from '../kit/run-mark.ts';
import { REPOSITORY } from '../kit/static-checks.ts';

const DEADLINE_MS = 60_000;
const CLIENTS = 3;
const NAME = `upgraded-${process.pid}`;

let folder: string;
let open: AsyncDisposableStack;
let previous: PreviousRelease;
let daemon: ChildProcess | undefined;

beforeEach(() => {
  open = new AsyncDisposableStack();
  folder = mkdtempSync(join(tmpdir(), 'us-upgrade-'));
  const memory = mkdtempSync(`/dev/shm/${marked('upgrade')}-`);
  open.defer(() => {
    for (const path of [folder, memory]) rmSync(path, { recursive: true });
    vi.unstubAllEnvs();
  });
  vi.stubEnv('UNDERSTUDY_RUN_DIR', join(folder, 'run'));
  vi.stubEnv('UNDERSTUDY_MEMORY_DIR', memory);
  vi.stubEnv('UNDERSTUDY_STATE_DIR', join(folder, 'state'));
  previous = previousRelease(join(folder, 'previous'));
  console.log(`upgraded from: ${previous.name}`);
  open.defer(async () => {
    await endDaemon('SIGKILL');
    for (const { name, record } of RunDirectory.list()) {
      if (record !== undefined) await endProcess(record.keeper, { deadlineMs: DEADLINE_MS, clock });
      await RunDirectory.sweep(name, { clock });
    }
  });
});
afterEach(() => open.disposeAsync());

async function startDaemon(release: string): Promise<void> {
  daemon = spawn(
    process.execPath,
    ['--disable-warning=ExperimentalWarning', join(release, 'src/host/main.ts')],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  );
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

async function endDaemon(signal: NodeJS.Signals): Promise<void> {
  if (daemon === undefined || daemon.exitCode !== null || daemon.signalCode !== null) return;
  const exited = once(daemon, 'exit');
  daemon.kill(signal);
  await exited;
}

/** What the command of a release answers; all lines where it prints several. */
async function understudy(release: string, ...words: string[]) {
  const command = [join(release, 'src/cli/main.ts'), ...words, '--json'];
  const { stdout } = await promisify(execFile)(process.execPath, command, { timeout: DEADLINE_MS });
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

async function status() {
  const [{ vms }] = await understudy(REPOSITORY, 'ls');
  return vms[0];
}

/** Everything that has the events of the VM has each of them once. */
async function expectEventsToldOnce(kinds: readonly string[]): Promise<void> {
  using database = new DatabaseSync(join(folder, 'state/host.db'), { readOnly: true });
  const rows = database.prepare('SELECT kind, facts FROM events WHERE vm = ? ORDER BY id').all(NAME);
  for (const kind of kinds)
    expect(
      rows.filter((row) => row.kind === kind),
      kind,
    ).toHaveLength(1);
  const started = rows.filter(({ kind }) => kind === 'qemu-started').map(({ facts }) => String(facts));
  expect(started.length).toBeGreaterThanOrEqual(2);
  expect(new Set(started).size).toBe(started.length);
}

function stateVersion(): number {
  using database = new DatabaseSync(join(folder, 'state/host.db'), { readOnly: true });
  return Number(database.prepare('PRAGMA user_version').get()?.user_version);
}

describe.each(['SIGTERM', 'SIGKILL'] as const)(
  'a host that ends by %s and is followed by its next release',
  (signal) => {
    it('hands its VM over under load: same processes, nothing lost, and the new command works on the old keeper', async () => {
      const guest = await ensureDemoGuest();
      const network = open.use(await DemoNetwork.open({ name: NAME, kind: 'tap' }));
      const specPath = join(folder, 'spec.yaml');
      const boot = {
        kernel: guest.kernel,
        initrd: guest.initrd,
        cmdline: `${guest.cmdline} ${network.cmdline}`,
      };
      const nics = [{ uplink: network.uplink }];
      writeFileSync(specPath, JSON.stringify({ name: NAME, memory: '128MiB', accel: 'tcg', boot, nics }));

      await startDaemon(previous.path);
      await understudy(previous.path, 'create', specPath);
      const load = open.use(await RedisLoad.start({ ...network.redis, clock }));
      await load.connect(CLIENTS);
      await load.begin();
      const versionBefore = stateVersion();
      const [before] = RunDirectory.list();
      await endDaemon(signal);
      await startDaemon(REPOSITORY);

      await vi.waitFor(async () => expect((await status()).state).toBe('protected'), {
        timeout: DEADLINE_MS,
      });
      const [after] = RunDirectory.list();
      expect(after?.record?.keeper).toEqual(before?.record?.keeper);
      expect(after?.record?.processes).toEqual(before?.record?.processes);
      expect(stateVersion()).toBeGreaterThanOrEqual(versionBefore);
      expect(await status()).toMatchObject({ name: NAME, desired: 'running' });
      await expectEventsToldOnce(['declared', 'alone', 'protected']);

      // The keeper is still of the previous release.
      const [shown] = await understudy(REPOSITORY, 'status', NAME);
      expect(shown).toMatchObject({ name: NAME, phase: 'protected' });
      expect((await understudy(REPOSITORY, 'events', NAME)).map(({ kind }) => kind)).toContain('protected');
      await understudy(REPOSITORY, 'promote', NAME);
      await vi.waitFor(async () => expect((await status()).state).toBe('protected'), {
        timeout: DEADLINE_MS,
      });
      expect((await load.end()).connections).toMatchObject({ survived: CLIENTS, total: CLIENTS });
      expect(await load.verify()).toMatchObject({ lostWrites: 0 });
      await vi.waitFor(() => expectEventsToldOnce(['declared', 'promoted']));
      await understudy(REPOSITORY, 'delete', NAME);
      expect(RunDirectory.list()).toEqual([]);
    });
  },
);
