import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ensureDemoGuest } from '../../guest/build.ts';
import { systemClock as clock } from '../base/clock.ts';
import { endProcess, identityOf, isAlive } from '../control/process-identity.ts';
import { RunDirectory } from '../control/run-directory.ts';
import type { VmStatus } from '../control/vm-status.ts';

const MAIN = fileURLToPath(new URL('./main.ts', import.meta.url));
const DEADLINE_MS = 5000;

let guestSpec: string;
let folder: string;
let children: ChildProcess[];

beforeAll(async () => {
  const { kernel, initrd, cmdline } = await ensureDemoGuest();
  // TCG by name: to find out that KVM does not work here takes a while.
  guestSpec = `vcpus: 1\nmemory: 128MiB\naccel: tcg\nboot: {kernel: ${kernel}, initrd: ${initrd}, cmdline: ${cmdline}}\n`;
});
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-cli-'));
  children = [];
  process.env.UNDERSTUDY_RUN_DIR = join(folder, 'run');
  process.env.UNDERSTUDY_MEMORY_DIR = join(folder, 'memory');
});
afterEach(async () => {
  for (const child of children) child.kill('SIGKILL');
  for (const { name, record } of RunDirectory.list()) {
    if (record !== undefined) await endProcess(record.keeper, { deadlineMs: DEADLINE_MS, clock });
    await RunDirectory.sweep(name, { clock });
  }
  delete process.env.UNDERSTUDY_RUN_DIR;
  delete process.env.UNDERSTUDY_MEMORY_DIR;
  rmSync(folder, { recursive: true, force: true });
});

function begin(args: readonly string[], nodeOptions: readonly string[] = [], env = process.env) {
  const child = spawn(process.execPath, [...nodeOptions, MAIN, ...args], { stdio: 'pipe', env });
  children.push(child);
  return child;
}

interface Ended {
  readonly exitCode: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

async function understudy(args: readonly string[], input = ''): Promise<Ended> {
  const child = begin(args);
  const exited = once(child, 'exit');
  child.stdin.end(input);
  const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)]);
  return { exitCode: (await exited)[0], stdout, stderr };
}

function writeSpec(name: string, body: string): string {
  const path = join(folder, `${name}.yaml`);
  writeFileSync(path, `name: ${name}\n${body}`);
  return path;
}

async function startVm(name: string, more = ''): Promise<VmStatus> {
  const path = writeSpec(name, guestSpec + more);
  const { exitCode, stdout, stderr } = await understudy(['run', path, '--json']);
  expect(stderr + (exitCode === 0 ? '' : stdout)).toBe('');
  return JSON.parse(stdout);
}

function nothingIsLeft(): void {
  for (const path of ['run', 'memory']) {
    if (existsSync(join(folder, path))) expect(readdirSync(join(folder, path))).toEqual([]);
  }
}

/** Resolves with the first line that matches; whatever follows is read and dropped. */
async function lineOf(stream: Readable, pattern: RegExp): Promise<string> {
  const lines = createInterface({ input: stream });
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  lines.on('line', (line) => pattern.test(line) && resolve(line));
  lines.on('close', () => reject(new Error(`it ended without ${pattern}`)));
  return promise;
}

describe('understudy with wrong input', () => {
  it.each<[string[], string, number]>([
    [['frob'], 'CLI_USAGE', 2],
    [['status'], 'CLI_USAGE', 2],
    [['guest'], 'CLI_USAGE', 2],
    [['events', '--since', '-1'], 'CLI_USAGE', 2],
    [['run', 'x.yaml', '--wait', 'ever'], 'CLI_USAGE', 2],
    [['help', 'frob'], 'CLI_USAGE', 2],
    [['run', '/nowhere.yaml'], 'CONFIG_NOT_FOUND', 2],
    [['status', 'nobody'], 'KEEPER_NOT_RUNNING', 3],
    [['stop', 'nobody'], 'KEEPER_NOT_RUNNING', 3],
    [['events', 'nobody'], 'KEEPER_NOT_RUNNING', 3],
    [['console', '../../etc'], 'KEEPER_NOT_RUNNING', 3],
    [['guest', 'build', '--spec', '/nowhere/x.yaml'], 'CLI_USAGE', 2],
    [['pki', 'host', '/nowhere', 'a/b'], 'PKI_NAME_REFUSED', 2],
  ])('%j says %s with a hint and ends with %i', async (args, code, exitCode) => {
    const ended = await understudy(args);
    expect(ended).toMatchObject({ exitCode, stdout: '' });
    expect(ended.stderr).toMatch(new RegExp(`^error ${code}: .+\nhint: .+\n$`));
  });

  it.each([
    [['frob'], /`understudy help` lists/],
    [['snapshot', 'frob'], /`understudy help snapshot` shows/],
    [['snapshot', 'create'], /`understudy help snapshot create` shows/],
    [['migrate', 'a', '--wait', 'ever'], /`understudy help migrate` shows/],
  ])('names with %j the help that is of use', async (args, hint) => {
    expect((await understudy(args)).stderr).toMatch(hint);
  });

  it('says on standard error what is wrong with the configuration of a site', async () => {
    const path = writeSpec('site', 'host: a\nlisten: nowhere\n');
    const { exitCode, stdout, stderr } = await understudy(['site', '--config', path]);
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: '' });
    expect(stderr).toMatch(/^error CONFIG_INVALID: [\s\S]+:3: listen: expected address and port/);
  });

  it('tells the error as the last line of standard output with --json', async () => {
    const { exitCode, stdout, stderr } = await understudy(['promote', 'nobody', '--json']);
    expect({ exitCode, stderr }).toEqual({ exitCode: 3, stderr: '' });
    expect(JSON.parse(stdout)).toMatchObject({
      error: { code: 'KEEPER_NOT_RUNNING', hint: expect.any(String) },
    });
  });

  it('names the line and the field of a wrong specification before anything is started', async () => {
    const { exitCode, stderr } = await understudy(['run', writeSpec('a', 'memory: 128MiB\nvcpu: 2\n')]);
    expect(exitCode).toBe(2);
    expect(stderr).toContain('a.yaml:3: vcpu: unknown field (did you mean vcpus?)');
    nothingIsLeft();
  });

  it('says what keeps a VM from starting here, in the words and with the exit code of the cause', async () => {
    const path = writeSpec('a', `${guestSpec}qemu: {binary: /nowhere/qemu}\n`);
    const { exitCode, stderr } = await understudy(['run', path]);
    expect(stderr).toContain('error QEMU_MISSING: ');
    expect(exitCode).toBe(4);
    nothingIsLeft();
  });

  it.each([
    ['QEMU_ARGUMENT_REFUSED', '[-name, x]'],
    ['QEMU_UNPROTECTABLE', '[-device, vfio-pci]'],
  ])('counts extra arguments that are refused (%s) as a wrong specification', async (code, words) => {
    const path = writeSpec('a', `${guestSpec}qemu: {extraArgs: ${words}}\n`);
    const { exitCode, stderr } = await understudy(['run', path]);
    expect(stderr).toContain(`error ${code}: `);
    expect(exitCode).toBe(2);
    nothingIsLeft();
  });

  it('says before the demo guest is built that a user has no run directory', async () => {
    const { UNDERSTUDY_RUN_DIR, XDG_RUNTIME_DIR, ...rest } = process.env;
    const cache = join(folder, 'cache');
    const nobody = 'data:text/javascript,process.geteuid = () => 65534';
    const child = begin(['demo'], ['--import', nobody], { ...rest, UNDERSTUDY_CACHE: cache });
    const exited = once(child, 'exit');
    expect(await text(child.stderr)).toMatch(/error KEEPER_DIRECTORY_REFUSED: .*XDG_RUNTIME_DIR.*\nhint: /);
    expect((await exited)[0]).toBe(4);
    expect(existsSync(cache)).toBe(false);
  });

  it('explains itself to an old Node', async () => {
    const old = 'data:text/javascript,Object.defineProperty(process, "versions", {value: {node: "22.18.0"}})';
    const child = begin(['ls'], ['--import', old]);
    const exited = once(child, 'exit');
    expect(await text(child.stderr)).toMatch(/^error CLI_NODE_TOO_OLD: .*24.*\nhint: /);
    expect((await exited)[0]).toBe(4);
  });
});

describe('a VM on the command line', () => {
  it('whose cache directory cannot be made is told so at once, and does not try for ever', async () => {
    const child = begin(['run', writeSpec('a', guestSpec)], [], {
      ...process.env,
      UNDERSTUDY_CACHE: '/proc/us-none',
    });
    const exited = once(child, 'exit');
    expect(await text(child.stderr)).toContain('error MEMORY_CACHE_REFUSED');
    expect((await exited)[0]).not.toBe(0);
    nothingIsLeft();
  });

  it('is refused in the words of QEMU when QEMU does not start', async () => {
    const kernel = join(folder, 'kernel');
    writeFileSync(kernel, 'no kernel');
    const yaml = `memory: 128MiB\naccel: tcg\nboot: {kernel: ${kernel}}\n`;
    const { exitCode, stderr } = await understudy(['run', writeSpec('a', yaml)]);
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(/error QEMU_START_FAILED: .+kernel.*\nhint: .+\n$/);
    nothingIsLeft();
  });

  it('is started protected, looked at, promoted and stopped, and leaves nothing behind', async () => {
    const started = await startVm('a');
    expect(started).toMatchObject({ name: 'a', phase: 'protected', promotions: 0 });

    const again = await understudy(['run', join(folder, 'a.yaml')]);
    expect(again.stderr).toContain('error KEEPER_NAME_TAKEN');
    expect(again.exitCode).toBe(1);

    const list = await understudy(['ls']);
    expect(list.stdout).toMatch(/^NAME .*\na +protected +128 MiB +tcg/);
    expect((await understudy(['status', 'a'])).stdout).toContain(`process ${started.primary?.pid}`);

    const promoted = JSON.parse((await understudy(['promote', 'a', '--json'])).stdout);
    expect(promoted.primary.pid).toBe(started.shadow?.pid);

    const events = (await understudy(['events', 'a', '--json'])).stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(events.map(({ seq }) => seq)).toEqual(events.map((_, index) => index + 1));
    expect(events.map(({ kind }) => kind)).toEqual(
      expect.arrayContaining(['qemu-started', 'protected', 'promoted']),
    );

    const stopped = await understudy(['stop', 'a', '--force', '--json']);
    expect(JSON.parse(stopped.stdout)).toEqual({ name: 'a', outcome: 'stopped', endedPids: [] });
    expect(identityOf(started.keeperPid)).toBeUndefined();
    nothingIsLeft();
  });

  it('shows what it uses, and is measured as often as a person says', async () => {
    await startVm('a');
    const shown = async () => JSON.parse((await understudy(['telemetry', 'a', '--json'])).stdout);
    await expect.poll(shown, { timeout: 60_000 }).toMatchObject({
      ...{
        intervalMs: 1000,
        failing: [],
        last: { vm: 'a', values: { 'cpu.usedCores': expect.any(Number) } },
      },
      profile: { vm: 'a', metrics: { 'telemetry.sampleMicroseconds': { count: expect.any(Number) } } },
    });
    const following = begin(['telemetry', 'a', '--interval', '100ms', '--follow', '--json']);
    const ended = once(following, 'exit');
    expect(JSON.parse(await lineOf(following.stdout, /"intervalMs":\d\d\d?\./))).toMatchObject({
      vm: 'a',
      lost: 0,
    });
    const text = (await understudy(['telemetry', 'a'])).stdout;
    expect(text).toMatch(/^a, measured every 100 ms, the last time \d+ ms ago; \d+ samples of .+ s\n/);
    expect(text).toMatch(/\ncpu\.usedCores +[\d.]+ /);
    expect((await understudy(['telemetry', 'a', '--interval', '99ms'])).exitCode).toBe(2);
    expect((await understudy(['stop', 'a', '--force'])).exitCode).toBe(0);
    expect((await ended)[0]).toBe(0);
  });

  it('is started from a pipe, which can be read only once', async () => {
    const shell = [
      '-c',
      '"$0" "$1" run <(cat "$2") --json',
      process.execPath,
      MAIN,
      writeSpec('a', guestSpec),
    ];
    const { stdout } = await promisify(execFile)('bash', shell);
    expect(JSON.parse(stdout)).toMatchObject({ name: 'a', phase: 'protected' });
  });

  it('tells of each promotion its own figures', async () => {
    await startVm('a');
    const told: unknown[] = [];
    for (const round of [1, 2, 3]) {
      const { promoteMs, outageMs } = JSON.parse((await understudy(['promote', 'a', '--json'])).stdout);
      told.push({ promoteMs, outageMs });
      await expect
        .poll(() => understudy(['status', 'a', '--json']).then(({ stdout }) => JSON.parse(stdout)), {
          timeout: 60_000,
        })
        .toMatchObject({ phase: 'protected', promotions: round });
    }
    const events = (await understudy(['events', 'a', '--json'])).stdout.trim().split('\n');
    const promoted = events.map((line) => JSON.parse(line)).filter(({ kind }) => kind === 'promoted');
    expect(told).toEqual(promoted.map(({ facts: { promoteMs, outageMs } }) => ({ promoteMs, outageMs })));
  });

  it('is spoken to through its console, also with piped input', async () => {
    await startVm('a');
    const watching = begin(['console', 'a']);
    await lineOf(watching.stdout, /understudy-guest: ready/);
    watching.kill('SIGKILL');
    const piped = await understudy(['console', 'a', '--linger', '5'], '\necho $((6 * 7)) is it\n');
    expect(piped.stdout).toContain('42 is it');
    expect(piped.exitCode).toBe(0);
    // The guest powers off by itself, which is no failure: the follower sees it and ends.
    const following = begin(['events', 'a', '--follow', '--json']);
    const ended = once(following, 'exit');
    const poweredOff = lineOf(following.stdout, /guest-powered-off/);
    await understudy(['console', 'a'], '\npoweroff -f\n');
    await poweredOff;
    expect((await ended)[0]).toBe(0);
    await expect.poll(() => RunDirectory.list(), { timeout: DEADLINE_MS }).toEqual([]);
    nothingIsLeft();
  });

  it('whose keeper was killed is listed as lost and cleared away by stop', async () => {
    const { keeperPid, primary, shadow } = await startVm('a');
    process.kill(keeperPid, 'SIGKILL');
    await expect.poll(() => identityOf(keeperPid)).toBeUndefined();
    expect((await understudy(['ls'])).stdout).toMatch(/\na +lost/);
    const status = await understudy(['status', 'a']);
    expect(status.stderr).toContain('error KEEPER_LOST');
    expect(status.exitCode).toBe(3);
    expect((await understudy(['events', 'a'])).stdout).toContain('protected');
    const { endedPids } = JSON.parse((await understudy(['stop', 'a', '--json'])).stdout);
    // They stand still with their keeper.
    const pids = [primary?.pid, shadow?.pid];
    expect(endedPids).toEqual(expect.arrayContaining(pids));
    for (const pid of pids) expect(pid && identityOf(pid)).toBeUndefined();
    nothingIsLeft();
  });

  it('without a shadow whose keeper was killed stands still, says so, and is taken back by run', async () => {
    const spec = 'shadow: {enabled: false}\n';
    const { keeperPid, primary } = await startVm('a', spec);
    process.kill(keeperPid, 'SIGKILL');
    await expect.poll(() => RunDirectory.find('a')?.orphan).toBeDefined();
    expect((await understudy(['ls'])).stdout).toMatch(/\na +lost, stands still/);
    expect(JSON.parse((await understudy(['ls', '--json'])).stdout)).toMatchObject({
      vms: [{ name: 'a', state: 'lost', qemuPid: primary?.pid }],
    });
    const { stderr } = await understudy(['status', 'a']);
    expect(stderr).toContain(`its QEMU (process ${primary?.pid}) stands still`);
    expect(stderr).toContain('`understudy run` with the same specification');
    await startVm('a', spec);
    expect((await understudy(['events', 'a'])).stdout).toContain('taken-back');
    await understudy(['stop', 'a', '--force']);
    nothingIsLeft();
  });

  it('whose keeper hangs is ended by stop --force, as stop says', async () => {
    const { keeperPid } = await startVm('a');
    process.kill(keeperPid, 'SIGSTOP');
    const waiting = begin(['stop', 'a']);
    const ended = once(waiting, 'exit');
    await lineOf(waiting.stderr, /^no answer; --force ends it$/);
    expect(waiting.exitCode, 'it goes on waiting').toBeNull();
    waiting.kill('SIGKILL');
    await ended;
    const stopped = await understudy(['stop', 'a', '--force', '--json']);
    expect(JSON.parse(stopped.stdout)).toMatchObject({ outcome: 'cleared away' });
    expect(identityOf(keeperPid)).toBeUndefined();
    nothingIsLeft();
  });
});

describe('Ctrl-C', () => {
  it('while a VM starts takes the start back', async () => {
    const child = begin(['run', writeSpec('a', guestSpec)]);
    const ended = once(child, 'exit');
    await expect.poll(() => RunDirectory.find('a'), { timeout: DEADLINE_MS }).toBeDefined();
    const keeper = RunDirectory.find('a')?.record?.keeper;
    child.kill('SIGINT');
    expect((await ended)[0]).toBe(130);
    expect(keeper && isAlive(keeper)).toBe(false);
    nothingIsLeft();
  });

  it('on a VM in the foreground stops it, the second one at once', async () => {
    const child = begin(['run', writeSpec('a', guestSpec), '--foreground']);
    const ended = once(child, 'exit');
    await lineOf(child.stdout, /protected/);
    child.kill('SIGINT');
    await expect
      .poll(() => readFileSync(join(folder, 'run', 'a', 'keeper.log'), 'utf8'))
      .toContain('protected');
    child.kill('SIGINT');
    expect((await ended)[0]).toBe(0);
    nothingIsLeft();
  });

  it('on a console or a follower leaves the VM alone', async () => {
    await startVm('a');
    for (const args of [
      ['console', 'a'],
      ['events', 'a', '--follow'],
    ]) {
      const child = begin(args);
      const ended = once(child, 'exit');
      await once(child.stdout, 'data');
      child.kill('SIGINT');
      expect((await ended)[0]).toBe(130);
    }
    expect((await understudy(['ls'])).stdout).toMatch(/\na +protected/);
  });
});

describe('understudy doctor', () => {
  it('finds this machine fit for protection and says how it found out', async () => {
    const { exitCode, stdout } = await understudy(['doctor', '--json']);
    const { canProtect, findings } = JSON.parse(stdout);
    expect({ exitCode, canProtect }).toEqual({ exitCode: 0, canProtect: true });
    for (const { title, mark, found, advice } of findings) {
      expect([title, found]).not.toContain('');
      expect(advice === undefined).toBe(mark === 'ok');
    }
  });

  it('does not promise network namespaces that can be made but not used', async () => {
    const calls = join(folder, 'calls');
    const refusing = `#!/bin/sh\necho "$*" >>${calls}\ncase $1 in -n) echo 'RTNETLINK: not permitted' >&2; exit 2 ;; esac\n`;
    writeFileSync(join(folder, 'ip'), refusing, { mode: 0o755 });
    const path = process.env.PATH;
    try {
      process.env.PATH = `${folder}:${path}`;
      const { findings } = JSON.parse((await understudy(['doctor', '--json'])).stdout);
      expect(findings).toContainEqual(
        expect.objectContaining({
          id: 'netns',
          mark: 'warn',
          found: expect.stringMatching(/link set lo up: RTNETLINK: not permitted$/),
        }),
      );
      expect(readFileSync(calls, 'utf8').trim().split('\n').at(-1)).toMatch(/^netns delete us-doctor-/);
    } finally {
      process.env.PATH = path;
    }
  });

  it('ends with 4 where QEMU is missing', async () => {
    const path = process.env.PATH;
    try {
      process.env.PATH = folder;
      const { exitCode, stdout } = await understudy(['doctor']);
      expect(exitCode).toBe(4);
      expect(stdout).toMatch(/✗ QEMU .*\n.*apt-get install/);
    } finally {
      process.env.PATH = path;
    }
  });
});

describe('understudy guest build', () => {
  it('writes a specification that is valid as it stands, and no second one over it', async () => {
    const spec = join(folder, 'redis.yaml');
    expect((await understudy(['guest', 'build', '--spec', spec])).exitCode).toBe(0);
    const { loadVmSpec } = await import('../config/vm-spec.ts');
    expect(loadVmSpec(spec)).toMatchObject({
      name: 'redis-demo',
      boot: { cmdline: expect.stringContaining('us.ip=') },
    });
    expect(readFileSync(spec, 'utf8')).toContain('# made at the start, gone at the end');
    expect(await understudy(['guest', 'build', '--spec', spec])).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining('error CLI_FILE_EXISTS'),
    });
  });
});
