import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';

/** Kills this process, if there is one, and resolves when it has ended. */
export async function endChild(child: ChildProcess | undefined): Promise<void> {
  if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill('SIGKILL');
  await exited;
}
