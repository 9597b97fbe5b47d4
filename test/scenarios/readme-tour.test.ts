import { execFile, execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../../src/base/clock.ts';
import { endProcess } from '../../src/control/process-identity.ts';
import { RunDirectory } from '../../src/control/run-directory.ts';
import { marked } from '../kit/run-mark.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const DEADLINE_MS = 150_000;
const NETNS = `${marked('tour')}-${process.pid}`;

let folder: string;
let memory: string;
let before: NodeJS.ProcessEnv;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-tour-'));
  memory = mkdtempSync(`/dev/shm/${marked('tour')}-`);
  before = { ...process.env };
  const bin = join(folder, 'bin');
  mkdirSync(bin);
  symlinkSync(join(ROOT, 'bin/understudy'), join(bin, 'understudy'));
  // The tour's network is one of its own: 10.77.0.1 may be somebody's here.
  execFileSync('ip', ['netns', 'add', NETNS]);
  execFileSync('ip', ['-n', NETNS, 'link', 'set', 'lo', 'up']);
  Object.assign(process.env, {
    PATH: [bin, process.env.PATH].join(delimiter),
    UNDERSTUDY_RUN_DIR: join(folder, 'run'),
    UNDERSTUDY_STATE_DIR: join(folder, 'state'),
    UNDERSTUDY_MEMORY_DIR: memory,
  });
});
afterEach(async () => {
  for (const { name, record } of RunDirectory.list()) {
    if (record !== undefined) await endProcess(record.keeper, { deadlineMs: DEADLINE_MS, clock });
    await RunDirectory.sweep(name, { clock });
  }
  // A host that the tour did not come to the end of.
  const left = spawnSync('ip', ['netns', 'pids', NETNS], { encoding: 'utf8' })
    .stdout.split('\n')
    .filter(Boolean);
  for (const pid of left) process.kill(Number(pid), 'SIGKILL');
  spawnSync('ip', ['netns', 'delete', NETNS]);
  process.env = before;
  for (const path of [folder, memory]) rmSync(path, { recursive: true, force: true });
});

/** The lines of the tour, with the paths of this test in place of the system's. */
function tour(): string {
  const [, script] =
    /## A tour\n[\s\S]*?```sh\n([\s\S]*?)```/.exec(readFileSync(join(ROOT, 'README.md'), 'utf8')) ?? [];
  if (script === undefined) throw new Error('README.md has no tour');
  return script.replaceAll('/run/understudy/', `${join(folder, 'run')}/`);
}

/** As a person would, line by line, ending at the first that fails; what each printed is under its words. */
async function walk(script: string): Promise<string> {
  const shell = ['netns', 'exec', NETNS, 'bash', '-m', '-e', '-o', 'pipefail', '-c'];
  // A host that is left behind would keep the pipe open.
  const lines = `exec 2>&1\ntrap 'kill $(jobs -p) 2>/dev/null || :' EXIT\nset -v\n${script}\nwait`;
  const run = promisify(execFile)('ip', [...shell, lines], {
    cwd: folder,
    timeout: DEADLINE_MS,
    maxBuffer: 1 << 24,
  });
  return (await run).stdout;
}

const has = (program: string) => spawnSync('which', [program]).status === 0;

describe('the tour of the README', () => {
  it('leads where it says, line by line', async () => {
    expect(['redis-cli', 'jq', 'curl'].filter((program) => !has(program))).toEqual([]);
    const said = await walk(tour()).catch((error: Error & { stdout?: string }) => {
      throw new Error(`the tour ended early:\n${error.stdout}`);
    });
    const order = [
      /redis-demo: protected|protected/,
      /\bOK\b/,
      /hello/,
      /primary-lost[\s\S]*promoted/,
      /redis-demo/,
      /understudy_vm_promotions_total\{vm="redis-demo"\} 1\b/,
      /saving the state of redis-demo[\s\S]*redis-demo stopped/,
      /hello/,
      /redis-demo is deleted/,
    ];
    let rest = said;
    for (const [step, expected] of order.entries()) {
      const at = rest.search(expected);
      expect([step, at >= 0], said).toEqual([step, true]);
      rest = rest.slice(at + 1);
    }
    expect(RunDirectory.list()).toEqual([]);
  });

  it('ends at a line that does not work (control of the test above)', async () => {
    await expect(walk('understudy hosts\necho went on')).rejects.toMatchObject({
      stdout: expect.not.stringContaining('went on\nwent on'),
    });
  });
});
