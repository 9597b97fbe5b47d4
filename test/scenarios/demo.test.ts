import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ensureDemoGuest } from '../../guest/build.ts';
import { cacheDirectory } from '../../src/base/cache-directory.ts';
import { memoryRoot, runRoot } from '../../src/control/run-paths.ts';

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
/** nobody and nogroup on Debian. */
const NOBODY = { uid: 65534, gid: 65534 };

let open: AsyncDisposableStack;
beforeAll(async () => {
  await ensureDemoGuest();
});
beforeEach(() => {
  open = new AsyncDisposableStack();
});
afterEach(() => open.disposeAsync());

interface Running {
  readonly child: ChildProcess;
  readonly ended: Promise<{ code: number | null; stdout: string; stderr: string }>;
}

function startDemo(
  words: readonly string[],
  options: { uid?: number; gid?: number; env?: NodeJS.ProcessEnv } = {},
): Running {
  const child = spawn(process.execPath, [MAIN, 'demo', ...words], {
    ...options,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  open.defer(async () => {
    if (child.exitCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGTERM');
    await exited;
  });
  const exited = once(child, 'exit');
  const ended = Promise.all([exited, text(child.stdout), text(child.stderr)]).then(
    ([[code], stdout, stderr]) => ({
      code,
      stdout,
      stderr,
    }),
  );
  return { child, ended };
}

/** Everything on this machine that carries the name of the demo of this process. */
function leftOf({ child }: Running, run = runRoot()): string[] {
  const name = `demo-${child.pid}`;
  const places = [run, memoryRoot(), '/run/netns', '/sys/fs/cgroup'].flatMap((place) => entriesOf(place));
  const processes = entriesOf('/proc').filter((entry) => commandLineOf(entry).includes(name));
  return [...places, ...processes].filter((entry) => entry.includes(name) || processes.includes(entry));
}

function entriesOf(place: string): string[] {
  try {
    return readdirSync(place).map((entry) => join(place, entry));
  } catch {
    return [];
  }
}

function commandLineOf(folder: string): string {
  try {
    return /\/\d+$/.test(folder) ? readFileSync(join(folder, 'cmdline'), 'utf8') : '';
  } catch {
    return '';
  }
}

const positive = expect.toSatisfy((value) => typeof value === 'number' && value > 0);

function flawlessReport({ kills, clients }: { kills: number; clients: number }): unknown {
  return {
    accel: expect.stringMatching(/^(?:tcg|kvm)$/),
    qemu: expect.stringMatching(/^\d+\.\d+/),
    // More when none of them met a request whose reply had to wait for the shadow.
    kills: expect.toSatisfy((value) => value >= kills && value <= kills + 5),
    epochs: positive,
    pauseMs: { p50: positive, p99: positive, max: positive },
    pauseShare: positive,
    roundTripMs: {
      unprotected: { p50: positive, p99: positive },
      protected: { p50: positive, p99: positive },
    },
    promoteMs: { p50: positive, max: positive },
    killToReplyMs: { p50: positive, max: positive },
    ackedWrites: positive,
    lostWrites: 0,
    connectionsSurvived: clients,
    connectionsTotal: clients,
    guestRebooted: false,
    guestClockErrorMs: expect.any(Number),
  };
}

describe('the demo', () => {
  it('kills QEMU, loses nothing, and prints the one object as its last line', async () => {
    const demo = startDemo(['--kills', '2', '--clients', '3', '--json']);
    const { code, stdout, stderr } = await demo.ended;
    const [line, ...more] = stdout.trimEnd().split('\n').toReversed();
    expect(JSON.parse(line ?? ''), `${stderr}${line}`).toEqual(flawlessReport({ kills: 2, clients: 3 }));
    expect(more).toEqual([]);
    expect(stderr).toContain('Killing QEMU under load, 2 of 2');
    expect(code).toBe(0);
    expect(leftOf(demo)).toEqual([]);
  });

  it('needs no root: with passt it runs as another user', async () => {
    const { env, run, user } = surroundingsOfNobody();
    const demo = startDemo(['--kills', '1', '--clients', '2', '--network', 'passt', '--json'], {
      env,
      ...user,
    });
    const { code, stdout, stderr } = await demo.ended;
    expect(JSON.parse(stdout), `${stderr}${stdout}`).toEqual(flawlessReport({ kills: 1, clients: 2 }));
    expect(code).toBe(0);
    expect(leftOf(demo, run)).toEqual([]);
  });

  it.each([
    ['the guest boots', 'Starting the guest without a shadow'],
    ['QEMU is killed under load', 'Killing QEMU under load, 1'],
  ])('leaves nothing behind when Ctrl-C comes while %s', async (_, step) => {
    const demo = startDemo(['--json']);
    const lines = createInterface({ input: demo.child.stderr as NodeJS.ReadableStream });
    for await (const line of lines) if (line.startsWith(step)) break;
    demo.child.kill('SIGINT');
    const { code, stdout } = await demo.ended;
    expect(JSON.parse(stdout)).toMatchObject({ error: { code: 'CLI_INTERRUPTED' } });
    expect(code).toBe(130);
    expect(leftOf(demo)).toEqual([]);
  });
});

/** A cache and a run directory for a user who may do nothing, as far as that user can read this clone at all. */
function surroundingsOfNobody(): {
  env: NodeJS.ProcessEnv;
  run: string;
  user: { uid?: number; gid?: number };
} {
  const folder = mkdtempSync(join(tmpdir(), 'us-nobody-'));
  open.defer(() => rmSync(folder, { recursive: true }));
  const [cache, run] = [join(folder, 'cache'), join(folder, 'run')];
  cpSync(cacheDirectory(), cache, { recursive: true });
  mkdirSync(run);
  const env = {
    ...process.env,
    HOME: folder,
    TMPDIR: folder,
    UNDERSTUDY_CACHE: cache,
    UNDERSTUDY_RUN_DIR: run,
  };
  const readable = spawnSync(process.execPath, ['--check', MAIN], { ...NOBODY, env }).status === 0;
  // Below /root nobody can read the clone. We stay who we are then, and so does the owner of the folder.
  if (!readable) return { env, run, user: {} };
  execFileSync('chown', ['-R', `${NOBODY.uid}:${NOBODY.gid}`, folder]);
  return { env, run, user: NOBODY };
}
