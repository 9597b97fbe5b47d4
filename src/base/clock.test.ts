import { describe, expect, it } from 'vitest';
import { systemClock } from './clock.ts';

const FOREVER_MS = 1_000_000;

describe('a sleep', () => {
  it('ends with the reason of the signal that is aborted meanwhile', async () => {
    const abort = new AbortController();
    const sleep = systemClock.sleep(FOREVER_MS, abort.signal);
    const reason = new Error('enough');
    abort.abort(reason);
    await expect(sleep).rejects.toBe(reason);
  });

  it('does not begin when the signal was aborted before', async () => {
    const reason = new Error('enough');
    await expect(systemClock.sleep(FOREVER_MS, AbortSignal.abort(reason))).rejects.toBe(reason);
  });
});
