import { execFile, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { marked } from '../kit/run-mark.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const DEADLINE_MS = 150_000;
/** In place of the names of the tour, which may be somebody's here. */
const PREFIX = `${marked('tour')}-${process.pid}`;
const PLACES = ['a', 'b', 'lan'].map((place) => `${PREFIX}-${place}`);

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-tour-'));
  mkdirSync(join(folder, 'bin'));
  symlinkSync(join(ROOT, 'bin/understudy'), join(folder, 'bin/understudy'));
});
afterEach(() => {
  // Of a tour that did not come to its end.
  for (const netns of PLACES) {
    const { stdout } = spawnSync('ip', ['netns', 'pids', netns], { encoding: 'utf8' });
    for (const pid of stdout.split('\n').filter(Boolean)) process.kill(Number(pid), 'SIGKILL');
    spawnSync('ip', ['netns', 'delete', netns]);
    rmSync(`/dev/shm/${netns}`, { recursive: true, force: true });
  }
  rmSync(folder, { recursive: true, force: true });
});

/** The lines of the tour, with names of this test in place of its own. */
function tour(): string {
  const document = readFileSync(join(ROOT, 'docs/two-hosts.md'), 'utf8');
  const [, script] = /## Try it on one machine\n[\s\S]*?```sh\n([\s\S]*?)```/.exec(document) ?? [];
  if (script === undefined) throw new Error('docs/two-hosts.md has no tour');
  return script.replaceAll('us-', `${PREFIX}-`);
}

describe('the tour of two hosts', () => {
  it('leads where it says, line by line, and leaves nothing behind', async () => {
    const lines = `exec 2>&1\nset -v\n${tour()}`;
    const path = [join(folder, 'bin'), process.env.PATH].join(delimiter);
    const walked = promisify(execFile)('bash', ['-e', '-o', 'pipefail', '-c', lines], {
      ...{ cwd: folder, timeout: DEADLINE_MS, maxBuffer: 1 << 24, env: { ...process.env, PATH: path } },
    });
    const { stdout } = await walked.catch((error: Error & { stdout?: string }) => {
      throw new Error(`the tour ended early:\n${error.stdout}`);
    });
    const order = [
      /host a answers at port 7946/,
      ...[/redis-demo[\s\S]*protected/, /\bOK\n/, /\nhello\n/, /promoted .*from=a .*detectMs=/, /shadowing/],
      ...[/would come up/, /redis-demo moved from b to a/, /\.usnap/, /redis-demo moved to b/],
      ...[/state +alone/, /\nhello\n/, /redis-demo stopped/],
    ];
    let rest = stdout;
    for (const [step, expected] of order.entries()) {
      const at = rest.search(expected);
      expect([step, at >= 0], stdout).toEqual([step, true]);
      rest = rest.slice(at + 1);
    }
    expect(
      PLACES.filter((netns) => existsSync(`/run/netns/${netns}`) || existsSync(`/dev/shm/${netns}`)),
    ).toEqual([]);
  });
});
