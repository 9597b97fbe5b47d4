import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import { monotonicMs } from './monotonic-time.ts';
import { type RedisServer, startRedis } from './redis-fixture.ts';
import { RedisLoad } from './redis-load.ts';

let open: AsyncDisposableStack;
let redis: RedisServer;
let load: RedisLoad;
beforeEach(async () => {
  open = new AsyncDisposableStack();
  redis = open.use(await startRedis());
  load = open.use(await RedisLoad.start({ ...redis, clock }));
});
afterEach(() => open.disposeAsync());

/** Processes of this process that drive Redis. */
function loadProcesses(): number[] {
  const children = readFileSync(`/proc/${process.pid}/task/${process.pid}/children`, 'utf8');
  return children
    .split(' ')
    .filter(
      (pid) => pid !== '' && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('redis-load-process'),
    )
    .map(Number);
}

function processGroupOf(pid: number): string | undefined {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // Behind the name, which may hold anything: state, parent, process group.
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[2];
}

async function someWrites(): Promise<void> {
  await load.begin();
  while ((await load.openAt(monotonicMs() - 5)).length === 0) await load.command('PING');
}

describe('the load on Redis', () => {
  it('finds every acknowledged write by its value', async () => {
    await load.connect(3);
    await someWrites();
    const report = await load.end();
    expect(report).toMatchObject({ connections: { total: 3, survived: 3 }, errors: [] });
    expect(report.ackedWrites).toBeGreaterThan(3);
    expect(report.timings).toHaveLength(report.ackedWrites);
    expect(await load.verify()).toEqual({ ackedWrites: report.ackedWrites, lostWrites: 0, examples: [] });
    expect(await load.command('DBSIZE')).toBe(report.ackedWrites);
  });

  it('notices a key that is gone and a value that is another', async () => {
    await load.connect(2);
    await someWrites();
    const { ackedWrites } = await load.end();
    const gone = String(await load.command('RANDOMKEY'));
    await load.command('DEL', gone);
    const changed = String(await load.command('RANDOMKEY'));
    await load.command('SET', changed, 'of another life');
    const { examples, ...counts } = await load.verify();
    expect(counts).toEqual({ ackedWrites, lostWrites: 2 });
    expect(examples.map(({ key, found }) => [key, found])).toEqual(
      expect.arrayContaining([
        [gone, null],
        [changed, 'of another life'],
      ]),
    );
  });

  it('counts a lost connection and never opens it again', async () => {
    await load.connect(2);
    await someWrites();
    const clients = String(await load.command('CLIENT', 'LIST', 'TYPE', 'normal')).split('\n');
    const victim = clients.find((line) => line.includes('cmd=set'));
    await load.command('CLIENT', 'KILL', 'ID', /\bid=(\d+)/.exec(victim ?? '')?.[1] ?? '');
    const { connections, errors } = await load.end();
    expect(connections).toEqual({ total: 2, survived: 1 });
    expect(errors).toHaveLength(1);
    // What was under way on it may be there or not; what was acknowledged is.
    expect(await load.verify()).toMatchObject({ lostWrites: 0 });
  });

  it('names the requests that were open at a moment', async () => {
    await load.connect(2);
    await load.begin();
    const beforeMs = monotonicMs();
    let spanning = await load.openAt(beforeMs);
    while (spanning.length === 0) spanning = await load.openAt(monotonicMs() - 5);
    await load.end();
    const [first] = spanning;
    if (first === undefined) throw new Error('there is one');
    expect(first.sentMs).toBeLessThan(first.repliedMs);
    expect(await load.openAt((first.sentMs + first.repliedMs) / 2)).toContainEqual(first);
    expect(await load.openAt(first.repliedMs)).not.toContainEqual(first);
  });

  it('waits between the requests of a paced client', async () => {
    await load.connect(1);
    const timings = await load.paced({ requests: 5, gapMs: 10 });
    expect(timings).toHaveLength(5);
    for (const [index, { sentMs }] of timings.entries()) {
      // A timer may fire up to a millisecond early.
      expect(sentMs - (timings[index - 1]?.repliedMs ?? 0)).toBeGreaterThan(8.9);
    }
    expect(await load.verify()).toMatchObject({ ackedWrites: 5, lostWrites: 0 });
  });

  it('reads the clock of Redis, which here is our own', async () => {
    expect(Math.abs(await load.guestClockErrorMs())).toBeLessThan(1000);
  });

  it('reports what Redis refuses', async () => {
    await expect(load.command('NONSENSE')).rejects.toThrow(/unknown command/);
    await load.connect(1);
    await load.command('CONFIG', 'SET', 'maxmemory', '1');
    await load.begin();
    while (!String(await load.command('INFO', 'errorstats')).includes('OOM'));
    const { ackedWrites, errors, connections } = await load.end();
    expect(ackedWrites).toBe(0);
    expect(errors[0]).toContain('OOM');
    expect(connections.survived).toBe(1);
  });

  it('fails every call when its process dies', async () => {
    await load[Symbol.asyncDispose]();
    await expect(load.command('PING')).rejects.toMatchObject({ code: 'DEMO_LOAD_FAILED' });
  });

  it('is no member of our process group, to which a terminal sends Ctrl-C', async () => {
    const [ours, ...theirs] = [process.pid, ...loadProcesses()].map(processGroupOf);
    expect(theirs).toHaveLength(1);
    expect(theirs).not.toContain(ours);
  });

  it('is given up when Redis does not answer in time', async () => {
    await expect(
      RedisLoad.start({ host: '127.0.0.1', port: 1, clock, startDeadlineMs: 100 }),
    ).rejects.toMatchObject({ code: 'DEMO_REDIS_CLOSED' });
  });

  it('can stand in another network namespace', async () => {
    const netns = `${marked('load')}-${process.pid}`;
    execFileSync('ip', ['netns', 'add', netns]);
    open.defer(() => {
      execFileSync('ip', ['netns', 'del', netns]);
    });
    // Its loopback is down: Redis, which is up, cannot be reached from there.
    await expect(RedisLoad.start({ ...redis, netns, clock, startDeadlineMs: 100 })).rejects.toThrow(
      /ENETUNREACH/,
    );
  });
});
