import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { expect, onTestFinished, test } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { PidFd } from './pidfd.ts';

const clock = systemClock;

function sleeper(): ChildProcess & { pid: number } {
  const child = spawn('sleep', ['1000'], { stdio: 'ignore' });
  onTestFinished(() => void child.kill('SIGKILL'));
  if (child.pid === undefined) throw new Error('sleep did not start');
  return Object.assign(child, { pid: child.pid });
}

test('a signalled process is seen to exit, by everyone who waits', async () => {
  using pidfd = PidFd.open(sleeper().pid);
  expect(pidfd.hasExited()).toBe(false);
  const waits = [1, 2].map(() => pidfd.waitForExit({ deadlineMs: 20_000, clock }));
  expect(pidfd.signal('SIGKILL')).toBe(true);
  expect(await Promise.all(waits)).toEqual([true, true]);
  expect(pidfd.hasExited()).toBe(true);
});

test('a stopped process has not exited, and the wait for it ends at its deadline', async () => {
  using pidfd = PidFd.open(sleeper().pid);
  pidfd.signal('SIGSTOP');
  expect(await pidfd.waitForExit({ deadlineMs: 1, clock })).toBe(false);
  expect(pidfd.hasExited()).toBe(false);
});

test('a listener that was taken back is not called', async () => {
  using pidfd = PidFd.open(sleeper().pid);
  const called: string[] = [];
  const takeBack = pidfd.onExit(() => called.push('taken back'));
  const exited = new Promise<void>((resolve) => {
    pidfd.onExit(() => {
      called.push('kept');
      resolve();
    });
  });
  takeBack();
  pidfd.signal('SIGKILL');
  await exited;
  expect(called).toEqual(['kept']);
});

test('a signal after the end reaches nobody and is no error', async () => {
  const child = sleeper();
  using pidfd = PidFd.open(child.pid);
  const exited = once(child, 'exit');
  pidfd.signal('SIGKILL');
  await exited;
  expect(pidfd.signal('SIGKILL')).toBe(false);
  expect(await pidfd.waitForExit({ deadlineMs: 20_000, clock })).toBe(true);
});

test('a process that does not exist cannot be held', () => {
  expect(() => PidFd.open(2 ** 22 + 1)).toThrow(expect.objectContaining({ call: 'pidfd_open' }));
});
