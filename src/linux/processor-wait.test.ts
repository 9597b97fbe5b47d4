import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { describe, expect, it } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock } from '../base/clock.ts';
import { CgroupTree } from './cgroup.ts';
import { ProcessorWait } from './processor-wait.ts';

const detected = CgroupTree.detect();

async function withBusyProcess(use: (pid: number) => Promise<void>): Promise<void> {
  const busy = spawn('sh', ['-c', 'while :; do :; done'], { stdio: 'ignore' });
  const ended = once(busy, 'exit');
  try {
    await use(Number(busy.pid));
  } finally {
    busy.kill('SIGKILL');
    await ended;
  }
}

/** The most that any of some looks saw. */
async function mostOf(wait: ProcessorWait, looks: number): Promise<number> {
  let most = 0;
  for (let look = 0; look < looks; look += 1) {
    await systemClock.sleep(100);
    most = Math.max(most, wait.look());
  }
  return most;
}

describe('a process that wants to run', () => {
  it.runIf(detected.kind === 'usable')(
    'is seen to wait where its cgroup gives it next to nothing',
    async () => {
      await withBusyProcess(async (pid) => {
        if (detected.kind !== 'usable') return;
        const group = detected.tree.create(`${marked('wait')}-${process.pid}`);
        try {
          group.setCpuShare(0.01);
          await group.addProcess(pid);
          expect(await mostOf(new ProcessorWait(pid, systemClock), 10)).toBeGreaterThan(0.8);
        } finally {
          process.kill(pid, 'SIGKILL');
          await group.remove({ clock: systemClock });
        }
      });
    },
  );

  it('and is stopped waits for no processor (control)', async () => {
    await withBusyProcess(async (pid) => {
      process.kill(pid, 'SIGSTOP');
      const wait = new ProcessorWait(pid, systemClock);
      // The signal may have come in the middle of a wait, which is counted once.
      await mostOf(wait, 1);
      expect(await mostOf(wait, 5)).toBe(0);
    });
  });

  it('and has ended waits for nothing', async () => {
    let wait: ProcessorWait | undefined;
    await withBusyProcess(async (pid) => {
      wait = new ProcessorWait(pid, systemClock);
    });
    expect(wait?.look()).toBe(0);
  });
});
