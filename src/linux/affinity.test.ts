import { spawn } from 'node:child_process';
import { expect, onTestFinished, test } from 'vitest';
import { cpuAffinity, setCpuAffinity } from './affinity.ts';

test('a process runs only on the CPUs that it is bound to', () => {
  const child = spawn('sleep', ['1000'], { stdio: 'ignore' });
  onTestFinished(() => void child.kill('SIGKILL'));
  const pid = child.pid ?? 0;
  const allowed = cpuAffinity(0);
  expect(allowed.length).toBeGreaterThan(0);
  const last = allowed.slice(-1);
  setCpuAffinity(pid, last);
  expect(cpuAffinity(pid)).toEqual(last);
  setCpuAffinity(pid, allowed);
  expect(cpuAffinity(pid)).toEqual(allowed);
});

test('a CPU that does not exist, and a process that does not exist, are refused', () => {
  expect(() => setCpuAffinity(0, [1023])).toThrow(expect.objectContaining({ errnoName: 'EINVAL' }));
  expect(() => cpuAffinity(2 ** 22 + 1)).toThrow(expect.objectContaining({ errnoName: 'ESRCH' }));
});
