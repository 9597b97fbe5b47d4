import { execFileSync, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { findLeftovers, type Leftover, survey, type TestRun } from './leftovers.ts';
import { markOf, RUN_ID_VARIABLE } from './run-mark.ts';

const CGROUP_PARENT = ['/sys/fs/cgroup/cpu', '/sys/fs/cgroup'].find(existsSync) as string;

/** Runs beside other tests, so its own things carry a name that nobody else uses. */
let run: TestRun;
let name: string;
let before: Leftover[];
let removals: (() => void)[];

beforeEach(() => {
  const id = randomUUID();
  run = { id, folder: mkdtempSync(join(tmpdir(), 'understudy-leftovers-')) };
  name = `us-${id.slice(0, 8)}`;
  before = survey(run);
  removals = [];
});

afterEach(() => {
  for (const remove of removals.reverse()) remove();
  rmSync(run.folder, { recursive: true, force: true });
});

async function found(): Promise<Leftover[]> {
  const left = await findLeftovers(run, { before, deadlineMs: 0 });
  // Others on this machine may begin or end something of theirs meanwhile.
  return left.filter((item) => item.name.includes(name) || item.name.includes(run.folder) || item.pid);
}

describe('the search for leftovers', () => {
  it('finds nothing where nothing was left', async () => {
    expect(await found()).toEqual([]);
  });

  it('finds a process that carries the run in its environment, even when its parent is gone', async () => {
    const pid = Number(
      execFileSync('sh', ['-c', 'sleep 300 >/dev/null 2>&1 & echo $!'], {
        env: { ...process.env, [RUN_ID_VARIABLE]: run.id },
        encoding: 'utf8',
      }),
    );
    removals.push(() => process.kill(pid, 'SIGKILL'));
    expect(await found()).toEqual([{ kind: 'process', pid, name: `${pid}: sleep 300` }]);
  });

  it('finds a process that was given a bare environment by the folder on its command line', async () => {
    const path = join(run.folder, 'followed');
    writeFileSync(path, '');
    const child = spawn('tail', ['-f', path], { env: {}, stdio: 'ignore' });
    removals.push(() => child.kill('SIGKILL'));
    await once(child, 'spawn');
    expect(await found()).toEqual([
      { kind: 'process', pid: child.pid, name: expect.stringContaining('tail -f') },
    ]);
  });

  it('finds a network namespace and a network device', async () => {
    execFileSync('ip', ['netns', 'add', name]);
    removals.push(() => execFileSync('ip', ['netns', 'delete', name]));
    execFileSync('ip', ['tuntap', 'add', 'dev', name, 'mode', 'tap']);
    removals.push(() => execFileSync('ip', ['link', 'delete', name]));
    expect(await found()).toEqual([
      { kind: 'network device', name: `/sys/class/net/${name}` },
      { kind: 'network namespace', name: `/run/netns/${name}` },
    ]);
  });

  it('finds a cgroup below another one', async () => {
    const parent = join(CGROUP_PARENT, `understudy-${name}`);
    mkdirSync(join(parent, name), { recursive: true });
    removals.push(() => [join(parent, name), parent].forEach((path) => void rmdirSync(path)));
    expect(await found()).toEqual([
      { kind: 'cgroup', name: parent },
      { kind: 'cgroup', name: join(parent, name) },
    ]);
  });

  it('finds a file in shared memory and a socket in the folder of the run', async () => {
    const memory = `/dev/shm/${name}.ram`;
    writeFileSync(memory, '');
    removals.push(() => rmSync(memory));
    const server = createServer().listen(join(run.folder, 'qmp.sock'));
    removals.push(() => server.close());
    await once(server, 'listening');
    expect(await found()).toEqual([
      { kind: 'shared memory', name: memory },
      { kind: 'temporary file', name: join(run.folder, 'qmp.sock') },
    ]);
  });

  it('finds what a keeper left in the runtime folder', async () => {
    const folder = `/run/understudy-${name}`;
    mkdirSync(folder);
    removals.push(() => rmSync(folder, { recursive: true }));
    writeFileSync(join(folder, 'lock'), '');
    expect(await found()).toEqual([{ kind: 'runtime file', name: join(folder, 'lock') }]);
  });

  it('does not count what was there before, nor what carries no mark of ours', async () => {
    const known = `/dev/shm/${name}.known`;
    writeFileSync(known, '');
    removals.push(() => rmSync(known));
    before = survey(run);
    const foreign = `/dev/shm/foreign-${name}`;
    writeFileSync(foreign, '');
    removals.push(() => rmSync(foreign));
    const child = spawn('sleep', ['300'], { stdio: 'ignore' });
    removals.push(() => child.kill('SIGKILL'));
    await once(child, 'spawn');
    expect(await found()).toEqual([]);
  });

  it('does not count what another run has made, which may go on beside this one', async () => {
    const [own, others] = [run.id, randomUUID()].map((id) => `/dev/shm/us-${markOf(id)}-${name}`);
    for (const path of [own, others]) {
      writeFileSync(String(path), '');
      removals.push(() => rmSync(String(path)));
    }
    expect(await found()).toEqual([{ kind: 'shared memory', name: own }]);
  });

  it('waits for what is about to end', async () => {
    const child = spawn('sleep', ['300'], {
      env: { ...process.env, [RUN_ID_VARIABLE]: run.id },
      stdio: 'ignore',
    });
    removals.push(() => child.kill('SIGKILL'));
    await once(child, 'spawn');
    expect(survey(run)).toContainEqual(expect.objectContaining({ pid: child.pid }));
    const left = findLeftovers(run, { before, deadlineMs: 20_000 });
    child.kill('SIGKILL');
    expect((await left).filter(({ pid }) => pid === child.pid)).toEqual([]);
  });
});
