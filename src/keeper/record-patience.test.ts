import { describe, expect, it } from 'vitest';
import type { Clock } from '../base/clock.ts';
import { RecordPatience } from './record-patience.ts';

/** Timers that run out when the test says so. */
class HandClock implements Pick<Clock, 'after'> {
  #nowMs = 0;
  readonly #timers = new Map<symbol, { atMs: number; task: () => void }>();

  after(ms: number, task: () => void): () => void {
    const key = Symbol('timer');
    this.#timers.set(key, { atMs: this.#nowMs + ms, task });
    return () => void this.#timers.delete(key);
  }

  pass(ms: number): void {
    this.#nowMs += ms;
    for (const [key, { atMs, task }] of this.#timers) {
      if (atMs > this.#nowMs) continue;
      this.#timers.delete(key);
      task();
    }
  }

  get waiting(): number {
    return this.#timers.size;
  }
}

/** A question that nobody answers. */
function unanswered(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason));
  });
}

function begun() {
  const clock = new HandClock();
  const patience = new RecordPatience(clock);
  const outcomes: unknown[] = [];
  const wait = () => void patience.wait(unanswered).then((outcome) => outcomes.push(outcome ?? 'given up'));
  return { clock, patience, outcomes, wait };
}

describe('who waits for the record of who acts', () => {
  it('waits for ever while the VM runs, and for ten seconds when it is being ended', async () => {
    const { clock, patience, outcomes, wait } = begun();
    wait();
    clock.pass(1e9);
    expect(clock.waiting).toBe(0);
    patience.begin();
    clock.pass(9999);
    await Promise.resolve();
    expect(outcomes).toEqual([]);
    clock.pass(1);
    await expect.poll(() => outcomes).toEqual(['given up']);
    // Who asks after that does not wait for as long again.
    wait();
    clock.pass(500);
    await expect.poll(() => outcomes).toEqual(['given up', 'given up']);
  });

  it('waits for no longer than whoever is in the greatest hurry', async () => {
    const { clock, patience, outcomes, wait } = begun();
    patience.begin();
    wait();
    patience.begin({ isForced: true });
    patience.begin();
    clock.pass(1000);
    await expect.poll(() => outcomes).toEqual(['given up']);
  });

  it('has the answer, or what went wrong, as it comes', async () => {
    const { clock, patience } = begun();
    patience.begin();
    expect(await patience.wait(async () => 'granted')).toBe('granted');
    const wrong = new Error('wrong');
    await expect(patience.wait(() => Promise.reject(wrong))).rejects.toBe(wrong);
    expect(clock.waiting).toBe(0);
  });
});
