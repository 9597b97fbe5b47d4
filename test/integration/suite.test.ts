import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { REPOSITORY, runTool } from '../kit/static-checks.ts';
import { until } from '../kit/test-vm.ts';

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'understudy-suite-'));
  symlinkSync(join(REPOSITORY, 'node_modules'), join(folder, 'node_modules'));
  mkdirSync(join(folder, 'test'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** Runs the suite on a project that holds this one test file. */
async function suiteOn(testFile: string) {
  writeFileSync(join(folder, 'test', 'planted.test.ts'), `import { expect, it } from 'vitest';\n${testFile}`);
  const { exitCode, output } = await runTool(['node', join(REPOSITORY, 'test/kit/suite.ts')], {
    workingFolder: folder,
  });
  return { exitCode, output, lastLine: output.trimEnd().split('\n').at(-1) };
}

/** A process that has ended but was not waited for yet has no command line any more. */
function isAlive(pid: number): boolean {
  return existsSync(`/proc/${pid}`) && readFileSync(`/proc/${pid}/cmdline`, 'utf8') !== '';
}

// Each count holds one more than the tests below: that nothing is left behind counts as a test.
describe('the suite', () => {
  it('ends with the counts, and with 0 when everything passed', async () => {
    const { exitCode, lastLine } = await suiteOn("it('a', () => {});\nit('b', () => {});\n");
    expect({ exitCode, lastLine }).toEqual({ exitCode: 0, lastLine: '3 passed, 0 failed' });
  });

  it('fails when a test fails, and names how many were skipped', async () => {
    const { exitCode, output, lastLine } = await suiteOn(
      "it('a', () => expect(1).toBe(2));\nit.skipIf(true)('b', () => {});\n",
    );
    expect({ exitCode, lastLine }).toEqual({ exitCode: 1, lastLine: '1 passed, 1 failed, 1 skipped' });
    // Near the end, where who reads a log looks first.
    expect(output.split('\n').slice(-5).join('\n')).toMatch(
      /planted\.test\.ts > a \(\d+\.\d s\): expected 1 to be 2/,
    );
  });

  it.each([
    ['a file that cannot be loaded', "import './gone.ts';\n"],
    ['a run without any test', '\n'],
  ])('counts %s as a failure', async (_, testFile) => {
    const { exitCode, lastLine } = await suiteOn(testFile);
    expect({ exitCode, lastLine }).toEqual({ exitCode: 1, lastLine: '1 passed, 1 failed' });
  });

  it('counts an error outside of every test as a failure', async () => {
    const { exitCode, lastLine } = await suiteOn(
      "it('a', async () => {\n  void Promise.reject(new Error('nobody waits'));\n  await new Promise(setImmediate);\n});\n",
    );
    expect({ exitCode, lastLine }).toEqual({ exitCode: 1, lastLine: '2 passed, 1 failed' });
  });

  it('fails, names and ends a process that the tests left behind', async () => {
    const { exitCode, output, lastLine } = await suiteOn(
      [
        "import { spawn } from 'node:child_process';",
        "it('a', () => {",
        "  const child = spawn('sleep', ['600'], { detached: true, stdio: 'ignore' });",
        '  child.unref();',
        '  console.log("planted " + child.pid);',
        '});\n',
      ].join('\n'),
    );
    const pid = Number(/planted (\d+)/.exec(output)?.[1]);
    expect({ exitCode, lastLine }).toEqual({ exitCode: 1, lastLine: '1 passed, 1 failed' });
    expect(output).toContain(`process ${pid}: sleep 600`);
    expect(isAlive(pid)).toBe(false);
  });
});

interface Held {
  readonly pids: readonly number[];
  readonly netns: string;
  readonly shared: string;
}

describe('a run of the suite that is ended while a test holds a VM', () => {
  const kit = (name: string) => JSON.stringify(join(REPOSITORY, 'test/kit', name));
  const holding = `
    import { renameSync, writeFileSync } from 'node:fs';
    import { marked } from ${kit('run-mark.ts')};
    import { TestVm } from ${kit('test-vm.ts')};
    it('holds a VM', { timeout: 600_000 }, async () => {
      const vm = await TestVm.start({ clients: 0, boots: true });
      const shared = '/dev/shm/' + marked('planted');
      writeFileSync(shared, 'memory');
      const { netns, primaryPid, standbyPid } = vm;
      writeFileSync('held', JSON.stringify({ pids: [primaryPid, standbyPid], netns, shared }));
      renameSync('held', 'held.json');
      await new Promise(() => setInterval(() => {}, 1000));
    });
  `;
  let runner: ChildProcess;
  let output = '';

  /** In a process group of its own, as from a terminal. */
  async function begin(): Promise<Held> {
    writeFileSync(join(folder, 'test', 'holding.test.ts'), `import { it } from 'vitest';\n${holding}`);
    output = '';
    runner = spawn(process.execPath, [join(REPOSITORY, 'test/kit/suite.ts')], {
      ...{ cwd: folder, detached: true, stdio: ['ignore', 'pipe', 'pipe'] },
    });
    for (const stream of [runner.stdout, runner.stderr])
      stream?.on('data', (chunk: Buffer) => {
        output += chunk.toString();
      });
    const path = join(folder, 'held.json');
    await until(() => existsSync(path) || runner.exitCode !== null);
    expect(existsSync(path), output).toBe(true);
    return JSON.parse(readFileSync(path, 'utf8')) as Held;
  }

  const left = ({ pids, netns, shared }: Held) => [
    ...pids.filter(isAlive),
    ...[`/run/netns/${netns}`, shared].filter(existsSync),
  ];

  it('removes that and says so: Ctrl-C, which everybody in front of the terminal gets', async () => {
    const held = await begin();
    const exited = once(runner, 'exit');
    process.kill(-Number(runner.pid), 'SIGINT');
    expect((await exited)[0], output).toBe(130);
    expect(left(held)).toEqual([]);
    expect(output).toContain('Ended by SIGINT; removed what was left of the run:');
    expect(output).toContain(`network namespace /run/netns/${held.netns}`);
    expect(output).toContain(`shared memory ${held.shared}`);
    expect(output).toMatch(new RegExp(`process ${held.pids[0]}: .*qemu`));
  });

  it('does the same for itself alone, and without patience when it is told twice', async () => {
    const held = await begin();
    const exited = once(runner, 'exit');
    runner.kill('SIGTERM');
    await until(() => output.includes('once more ends them now'));
    runner.kill('SIGTERM');
    expect((await exited)[0], output).toBe(143);
    expect(left(held)).toEqual([]);
  });

  it('and killed with all of its processes leaves that to the next run', async () => {
    const held = await begin();
    const exited = once(runner, 'exit');
    process.kill(-Number(runner.pid), 'SIGKILL');
    await exited;
    // The control: nobody else tidies up.
    expect(left(held)).toEqual([...held.pids, `/run/netns/${held.netns}`, held.shared]);
    rmSync(join(folder, 'test', 'holding.test.ts'));
    const next = await suiteOn("it('a', () => {});\n");
    expect(next.lastLine).toBe('2 passed, 0 failed');
    expect(next.output).toContain('A run of the suite was killed; removed what it left in');
    expect(left(held)).toEqual([]);
  });
});
