import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { parseSchedstat, parseTaskStat, TaskClock, timesOfStat } from './task-times.ts';

/** As read of a QEMU 7.2 with TCG, Linux 6.18. */
const VCPU =
  '20101 (CPU 0/TCG) R 20071 20071 12361 0 -1 4194368 9234 0 17 0 1834 211 0 0 20 0 5 0 5755022 1238450176 30112 18446744073709551615 94397355847680 94397355867561 140732195438640 0 0 0 268444224 4096 16963 0 0 0 -1 1 0 0 0 0 0 94397355883568 94397355885184 94397815771136 140732195441183 140732195441203 140732195441203 140732195442667 0\n';

describe('the statistics of a thread', () => {
  it('are read behind its name, whatever the name is', () => {
    const expected = { majorFaults: 17, usedSeconds: 20.45 };
    expect(parseTaskStat(VCPU)).toEqual(expected);
    for (const name of ['a b', ') R 1 2 3', 'x) S 0 0 0 0 0 0 0 0 0 99 (', '((((', '\n', '', '1) (2) '])
      expect(parseTaskStat(VCPU.replace('CPU 0/TCG', name)), name).toEqual(expected);
    expect(timesOfStat(VCPU)).toEqual({ usedSeconds: 20.45, waitedSeconds: undefined });
  });

  it.each(['', '1', '1 (a)', '1 (a) R 1 2', '1 (a) R x x x x x x x x x x x x x x x', ') '])(
    'are nothing where there is %j',
    (text) => expect(parseTaskStat(text)).toBeUndefined(),
  );

  it('are never anything but numbers from 0, whatever the text', () => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string(),
          fc.string().map((name) => VCPU.replace('CPU 0/TCG', () => name)),
        ),
        (text) => {
          for (const value of Object.values(parseTaskStat(text) ?? {}))
            expect(value).toBeGreaterThanOrEqual(0);
          const { usedSeconds = 0, waitedSeconds = 0 } = parseSchedstat(text) ?? {};
          expect(usedSeconds >= 0 && waitedSeconds >= 0).toBe(true);
        },
      ),
    );
  });

  it('say in nanoseconds how long it ran and waited', () => {
    expect(parseSchedstat('2500000000 125000000 871\n')).toEqual({ usedSeconds: 2.5, waitedSeconds: 0.125 });
    for (const text of ['', '12', 'a b c', '-1 5 6', '1 -5 6']) expect(parseSchedstat(text)).toBeUndefined();
  });
});

describe('the clock of a thread', () => {
  it('goes on with the thread, and says nothing any more when that has ended', async () => {
    // A name with all that could be mistaken.
    const child = spawn(process.execPath, ['-e', 'process.title = ") R 1 (x"; for (;;);'], {
      stdio: 'ignore',
    });
    onTestFinished(() => void child.kill('SIGKILL'));
    const pid = child.pid ?? 0;
    using clock = TaskClock.open(pid, pid);
    const used = () => clock.read()?.usedSeconds ?? Number.NaN;
    const before = used();
    await expect.poll(used, { timeout: 60_000 }).toBeGreaterThan(before + 0.1);
    expect(clock.read()?.waitedSeconds).toBeGreaterThanOrEqual(0);
    const ended = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    await ended;
    expect(clock.read()).toBeUndefined();
  });

  it('is not opened of a thread that there is not', () => {
    const own = Number(readdirSync('/proc/self/task')[0]);
    TaskClock.open(process.pid, own)[Symbol.dispose]();
    expect(() => TaskClock.open(process.pid, 2 ** 22 + 1)).toThrow(
      expect.objectContaining({ errnoName: 'ENOENT' }),
    );
  });
});
