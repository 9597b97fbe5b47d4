import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../../src/base/clock.ts';
import { marked } from '../kit/run-mark.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
/** Of one line of the tour; some wait for a guest to boot, on a machine that is busy. */
const LINE_DEADLINE_MS = 90_000;
const TOUR_DEADLINE_MS = 600_000;
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

interface Walk {
  readonly script: string;
  readonly deadlineMs?: number;
}

/**
 * Returns what it printed, with each line before it is carried out. Its programs hold its output open when it is killed, so that
 * goes to a file. @throws with the line that takes longer than it may, or fails
 */
async function walk({ script, deadlineMs = LINE_DEADLINE_MS }: Walk): Promise<string> {
  const [output, place] = [join(folder, 'output'), join(folder, 'place')];
  const lines = `trap 'echo $LINENO >${place}' DEBUG\nset -v\n${script}`;
  const path = [join(folder, 'bin'), process.env.PATH].join(delimiter);
  const fd = openSync(output, 'w');
  const bash = spawn('bash', ['-e', '-o', 'pipefail', '-c', lines], {
    ...{ cwd: folder, stdio: ['ignore', fd, fd], env: { ...process.env, PATH: path } },
  });
  closeSync(fd);
  const ended = new AbortController();
  const exited = once(bash, 'exit').finally(() => ended.abort());
  let sinceMs = clock.nowMs();
  let before = '';
  while (!ended.signal.aborted) {
    const now = existsSync(place) ? readFileSync(place, 'utf8') : '';
    if (now !== before) sinceMs = clock.nowMs();
    else if (clock.nowMs() - sinceMs > deadlineMs) break;
    before = now;
    await clock.sleep(50, ended.signal).catch(() => {});
  }
  const isLate = !ended.signal.aborted;
  bash.kill('SIGKILL');
  const [code] = await exited;
  // bash shows the trap with each of its lines as well.
  const printed = readFileSync(output, 'utf8').replaceAll(/^echo \$LINENO .*\n/gm, '');
  if (code === 0) return printed;
  const line = lines.split('\n')[Number(before) - 1];
  const what = isLate ? `has not ended after ${deadlineMs} ms` : `failed with ${code}`;
  throw new Error(`a line of the tour ${what}: ${line}\n${printed}`);
}

describe('the tour of two hosts', { timeout: TOUR_DEADLINE_MS }, () => {
  it('leads where it says, line by line, and leaves nothing behind', async () => {
    const stdout = await walk({ script: tour() });
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

  it('is told by its line where it does not go on, whoever holds its output open (control)', async () => {
    const script = 'true\nsleep 600 &\necho $! >pid\nuntil false; do sleep 0.1; done\n';
    try {
      await expect(walk({ script, deadlineMs: 1000 })).rejects.toThrow(
        /has not ended after 1000 ms: until false; do/,
      );
    } finally {
      process.kill(Number(readFileSync(join(folder, 'pid'), 'utf8')), 'SIGKILL');
    }
  });
});
