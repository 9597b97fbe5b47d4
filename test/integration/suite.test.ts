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
