import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ManualClock } from '../api/api-fixture.ts';
import { watch } from './top-command.ts';
import type { TopSample } from './top-sample.ts';

const MAIN = fileURLToPath(new URL('./main.ts', import.meta.url));
const ENTER = '\x1b[?1049h';
const LEAVE = '\x1b[?1049l';

const sampleOf = (...names: string[]): TopSample => ({
  wallMs: 0,
  host: null,
  vms: names.map((name) => ({ name, state: 'protected', desired: null, figures: null })),
});

/** A terminal's two ends without a terminal: its size can be changed, and how it was left can be seen. */
class FakeTerminal {
  readonly input = Object.assign(new PassThrough(), {
    raw: false,
    setRawMode(raw: boolean) {
      this.raw = raw;
    },
  });
  readonly output = Object.assign(new PassThrough(), { columns: 80, rows: 10 });
  #shown = '';

  constructor() {
    this.output.on('data', (bytes: Buffer) => {
      this.#shown += bytes.toString();
    });
  }

  /** What was written since the last time. */
  take(): string {
    const shown = this.#shown;
    this.#shown = '';
    return shown;
  }

  async shows(piece: string): Promise<void> {
    await expect.poll(() => this.#shown).toContain(piece);
  }
}

function begin(take: () => Promise<TopSample>) {
  const terminal = new FakeTerminal();
  const clock = new ManualClock();
  const interrupted = new AbortController();
  const watching = watch({
    ...{ take, signal: interrupted.signal, intervalMs: 1000, ends: terminal, coloured: false },
    clock: withAbort(clock),
  });
  watching.catch(() => {});
  return { terminal, clock, interrupted, watching };
}

/** A manual clock whose sleep ends with the signal, as that of the system does. */
function withAbort(clock: ManualClock) {
  return Object.assign(Object.create(clock) as ManualClock, {
    sleep: (ms: number, signal?: AbortSignal) =>
      new Promise<void>((resolve, reject) => {
        clock.after(ms, resolve);
        signal?.addEventListener('abort', () => reject(signal.reason), { once: true });
      }),
    nowMs: () => clock.nowMs(),
    after: (ms: number, task: () => void) => clock.after(ms, task),
  });
}

describe('top on a terminal', () => {
  it('looks again and again, reacts to keys and size, and gives the terminal back', async () => {
    let names = ['alpha'];
    const { terminal, clock, watching } = begin(async () => sampleOf(...names));
    await terminal.shows('alpha');
    expect(terminal.take()).toContain(ENTER);
    expect(terminal.input.raw).toBe(true);

    names = ['alpha', 'beta'];
    clock.advance(1000);
    await terminal.shows('beta');

    terminal.take();
    terminal.input.write('s');
    await terminal.shows('STATE↓');
    terminal.input.write('r');
    await terminal.shows('STATE↑');

    terminal.take();
    terminal.output.rows = 5;
    terminal.output.emit('resize');
    await terminal.shows('1 more below');
    terminal.input.write('\x1b[B');
    await terminal.shows('1 more above');

    terminal.input.write('q');
    await watching;
    expect(terminal.take().endsWith(LEAVE)).toBe(true);
    expect(terminal.input.raw).toBe(false);
    expect(terminal.input.listenerCount('keypress')).toBe(0);
  });

  it('goes on after a look that failed, and says so meanwhile', async () => {
    let fails = false;
    const { terminal, clock, watching } = begin(async () => {
      if (fails) throw new Error('the host hangs');
      return sampleOf('alpha');
    });
    await terminal.shows('alpha');
    fails = true;
    clock.advance(1000);
    await terminal.shows('the host hangs');
    fails = false;
    terminal.take();
    await expect
      .poll(() => {
        clock.advance(1000);
        const shown = terminal.take();
        return shown.includes('alpha') && !shown.includes('hangs');
      })
      .toBe(true);
    terminal.input.write('\x03');
    await watching;
    expect(terminal.input.raw).toBe(false);
  });

  it('can be left while a look hangs', async () => {
    let hangs = false;
    const { terminal, clock, watching } = begin(() =>
      hangs ? new Promise(() => {}) : Promise.resolve(sampleOf('alpha')),
    );
    await terminal.shows('alpha');
    hangs = true;
    clock.advance(1000);
    terminal.input.write('q');
    await watching;
    expect(terminal.take().endsWith(LEAVE)).toBe(true);
  });

  it('gives the terminal back when it is interrupted', async () => {
    const { terminal, interrupted, watching } = begin(async () => sampleOf('alpha'));
    await terminal.shows('alpha');
    interrupted.abort(new Error('interrupted'));
    await expect(watching).rejects.toThrow('interrupted');
    expect(terminal.take().endsWith(LEAVE)).toBe(true);
    expect(terminal.input.raw).toBe(false);
  });

  it('does not touch the terminal when the first look fails', async () => {
    const { terminal, watching } = begin(async () => {
      throw new Error('the host hangs');
    });
    await expect(watching).rejects.toThrow('the host hangs');
    expect(terminal.take()).toBe('');
  });
});

describe('understudy top', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'us-top-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));
  const env = () => ({ ...process.env, UNDERSTUDY_RUN_DIR: join(folder, 'run') });

  /** On a pseudo-terminal that `script` makes. */
  function onTerminal(crash = false) {
    const words = [
      process.execPath,
      ...(crash ? ['--import', crashing] : []),
      MAIN,
      'top',
      '--interval',
      '0.1',
    ];
    const command = `stty rows 12 cols 90; ${words.map((word) => `'${word}'`).join(' ')}; echo "ended $?"; stty -a`;
    const child = spawn('script', ['-qfec', command, '/dev/null'], { stdio: 'pipe', env: env() });
    let shown = '';
    child.stdout.on('data', (bytes: Buffer) => {
      shown += bytes.toString();
    });
    return { child, shown: () => shown };
  }
  /** Throws in the middle of everything once the screen was taken. */
  const crashing = `data:text/javascript,${encodeURIComponent(
    "setTimeout(() => { throw new Error('crash'); }, 1500)",
  )}`;

  it('is left with q, and the terminal is as it was before', async () => {
    const { child, shown } = onTerminal();
    const exited = once(child, 'exit');
    await expect.poll(shown, { timeout: 10_000 }).toContain('no host answers; 0 VMs of this user');
    child.stdin.write('q');
    await exited;
    const after = shown().slice(shown().indexOf(LEAVE));
    expect(after).toContain('ended 0');
    expect(after).toMatch(/ icanon /);
    expect(after).toMatch(/ echo /);
  });

  it('gives the terminal back when it crashes', async () => {
    const { child, shown } = onTerminal(true);
    await once(child, 'exit');
    expect(shown()).toContain(ENTER);
    const after = shown().slice(shown().indexOf(LEAVE));
    expect(after).toMatch(/ended [1-9]/);
    expect(after).toMatch(/ icanon /);
  });

  it('prints a plain table once when the output is no terminal', async () => {
    const child = spawn(process.execPath, [MAIN, 'top', '--interval', '0.1'], { stdio: 'pipe', env: env() });
    const exited = once(child, 'exit');
    const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)]);
    expect({ code: (await exited)[0], stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^no host answers; 0 VMs of this user\n\nNAME .*\nno VMs\n$/);
  });

  it('prints a line of JSON for each look, one with --once', async () => {
    const args = [MAIN, 'top', '--json', '--once', '--interval', '0.1'];
    const child = spawn(process.execPath, args, { stdio: 'pipe', env: env() });
    const lines = (await text(child.stdout)).trim().split('\n');
    expect(lines.map((line) => JSON.parse(line))).toEqual([
      { time: expect.any(String), host: null, vms: [] },
    ]);

    const stream = spawn(process.execPath, [MAIN, 'top', '--json', '--interval', '0.05'], {
      stdio: 'pipe',
      env: env(),
    });
    let shown = '';
    stream.stdout.on('data', (bytes: Buffer) => {
      shown += bytes.toString();
    });
    await expect.poll(() => shown.split('\n').length, { timeout: 10_000 }).toBeGreaterThan(3);
    const exited = once(stream, 'exit');
    stream.kill('SIGINT');
    expect((await exited)[0]).toBe(130);
  });
});
