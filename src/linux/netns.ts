import { closeSync, openSync } from 'node:fs';
import { assert } from '../base/assert.ts';
import { checked, libc } from './libc.ts';
import { fromNodeError } from './linux-error.ts';

const CLONE_NEWNET = 0x40000000;

/**
 * Runs `task` with the calling thread inside the network namespace `name` (of `ip netns`), and always comes
 * back. Synchronous, so nothing else of this thread can run in there; other threads are not moved.
 */
export function inNetns<Result>(name: string, task: () => Result): Result {
  const home = openNamespace('/proc/thread-self/ns/net');
  try {
    const target = openNamespace(`/run/netns/${name}`);
    try {
      checked('setns', libc.setns(target, CLONE_NEWNET));
    } finally {
      closeSync(target);
    }
    try {
      return task();
    } finally {
      // Nothing may go on in a foreign namespace: every later socket would be opened there.
      assert(libc.setns(home, CLONE_NEWNET) === 0, 'a thread returns to its network namespace');
    }
  } finally {
    closeSync(home);
  }
}

function openNamespace(path: string): number {
  try {
    return openSync(path, 'r');
  } catch (thrown) {
    throw fromNodeError('open network namespace', thrown, {
      facts: { path },
      hint: 'Look at `ip netns list` for the namespaces that there are.',
    });
  }
}
