import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { RunDirectory } from '../src/control/run-directory.ts';

const MAIN = fileURLToPath(new URL('main.ts', import.meta.url));

interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function start(...args: string[]): ChildProcessByStdio<null, Readable, Readable> {
  return spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
}

async function end(child: ReturnType<typeof start>): Promise<Ended> {
  const closed = once(child, 'close');
  const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)]);
  const [code] = await closed;
  return { code, stdout, stderr };
}

function lastLine({ stdout }: Ended) {
  return JSON.parse(stdout.trim().split('\n').at(-1) ?? '');
}

function ourVms(pid: number | undefined): string[] {
  return RunDirectory.list()
    .map(({ name }) => name)
    .filter((name) => name.startsWith(`bench-${pid}-`));
}

describe('npm run bench', () => {
  it('lists the benchmarks without a name', async () => {
    const ended = await end(start());
    expect(ended.code).toBe(0);
    expect(ended.stdout).toMatch(
      /^checkpoint .*\nfailover .*\noverhead .*\napi .*\nadoption .*\nwire .*\nrestore .*\nnbd .*\ndisk .*\nwarming .*\nreplication .*\nfailover2 .*\nforecast .*\npolicy .*\nanomaly .*\nseries .*\nsampling .*\n$/,
    );
  });

  it('explains every figure and ratio with --help', async () => {
    const ended = await end(start('--help'));
    expect(ended.code).toBe(0);
    expect(ended.stdout).toContain('fullSnapshotPauseP50Ms / pauseP50Ms');
    expect(ended.stdout).toContain('coldRestartMs / killToReplyP50Ms');
    expect(ended.stdout).toContain('setPerSecondProtected50 / setPerSecondUnprotected50');
  });

  it.each([
    [
      ['nonsense'],
      'checkpoint, failover, overhead, api, adoption, wire, restore, nbd, disk, warming, replication, failover2, forecast, policy, anomaly, series, sampling',
    ],
    [['failover', '--kills', '0'], '--help'],
    [['failover', 'overhead'], '--help'],
    [['failover', '--fast'], '--help'],
  ])('refuses %j with exit code 2 and says what there is', async (args, advice) => {
    const ended = await end(start(...args, '--json'));
    expect(ended.code).toBe(2);
    expect(lastLine(ended).error).toMatchObject({
      code: 'BENCH_USAGE',
      hint: expect.stringContaining(advice),
    });
  });

  it('measures the API of a real daemon, and every reader of its events gets all of them once', async () => {
    const ended = await end(start('api', '--quick', '--json'));
    expect(ended, ended.stderr).toMatchObject({ code: 0 });
    const { figures, samples, notes } = lastLine(ended);
    expect(figures).toMatchObject({ sseClients: 2000, sseLost: 0, sseDoubled: 0, virshListP50Ms: null });
    expect(notes).toContainEqual(expect.stringMatching(/^virshListP50Ms: /));
    for (const figure of ['readP99Ms', 'daemonRssAnonMiB', 'keeperRssAnonMiB'])
      expect(figures[figure], figure).toBeGreaterThan(0);
    expect(samples.readMs.n).toBe(samples.bareMs.n);
  });

  it('measures how a host that was killed has its VMs back, and none was lost', async () => {
    const ended = await end(start('adoption', '--quick', '--json'));
    expect(ended, ended.stderr).toMatchObject({ code: 0 });
    const { figures } = lastLine(ended);
    expect(figures).toMatchObject({ vms: 5, lostVms: 0 });
    expect(figures.adoptAllMs).toBeGreaterThan(0);
  });

  it('compares forecasts of generated machines with simple ones, and says why R is not among them', async () => {
    const ended = await end(start('forecast', '--quick', '--json'));
    expect(ended, ended.stderr).toMatchObject({ code: 0 });
    const { figures, notes } = lastLine(ended);
    expect(figures).toMatchObject({ seriesCount: 8, wqlBestR4h: null });
    for (const horizon of ['5m', '1h', '4h', '24h']) {
      expect(figures[`wql${horizon}`]).toBeGreaterThan(0);
      expect(figures[`wql${horizon}`]).toBeLessThan(figures[`wqlSeasonalNaive${horizon}`]);
    }
    expect(notes).toContainEqual(expect.stringMatching(/^wqlBestR4h: /));
  });

  it('measures failovers next to a cold restart and prints one JSON object as its last line', async () => {
    const ended = await end(start('failover', '--quick', '--kills', '2', '--json'));
    expect(ended, ended.stderr).toMatchObject({ code: 0 });
    const { bench, machine, versions, figures, samples, notes } = lastLine(ended);
    expect(bench).toBe('failover');
    expect(machine).toMatchObject({ cores: expect.any(Number), accel: expect.stringMatching(/kvm|tcg/) });
    expect(versions).toMatchObject({ node: process.versions.node, redis: expect.stringMatching(/^7/) });
    expect(figures).toMatchObject({ kills: 2, lostWrites: 0, brokenConnections: 0 });
    expect(samples.promoteMs).toMatchObject({ n: 2, min: expect.any(Number), max: expect.any(Number) });
    expect(figures.promoteP50Ms).toBe(samples.promoteMs.p50);
    expect(samples.coldRestartMs.n).toBe(1);
    expect(notes).toContainEqual(expect.stringContaining('--quick'));
  });

  it('measures samplers of a thousand VMs, none of which misses its time', async () => {
    const ended = await end(start('sampling', '--quick', '--json'));
    expect(ended, ended.stderr).toMatchObject({ code: 0 });
    const { figures, notes } = lastLine(ended);
    expect(figures).toMatchObject({ vms: 1000, tickP99Ms: expect.any(Number) });
    expect(figures.coreShare).toBeGreaterThan(0);
    expect(notes.filter((note: string) => note.includes('failed'))).toEqual([]);
  });

  it.each(['checkpoint', 'overhead'])('leaves nothing behind when %s is interrupted', async (name) => {
    const child = start(name, '--quick', '--json');
    const ending = end(child);
    while (ourVms(child.pid).length === 0) await new Promise((resolve) => setTimeout(resolve, 20));
    child.kill('SIGINT');
    const ended = await ending;
    expect(ended.code, ended.stderr).toBe(130);
    expect(lastLine(ended).error.code).toBe('CLI_INTERRUPTED');
    expect(ourVms(child.pid)).toEqual([]);
  });
});
