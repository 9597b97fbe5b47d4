import { describe, expect, it } from 'vitest';
import { type Clock, systemClock } from '../base/clock.ts';
import { type Hindrance, startAnswerDeadline } from './answer-deadline.ts';

/** Time passes only as a test says, and timers may be late. */
class HandClock implements Clock {
  #nowMs = 0;
  #timers: { readonly atMs: number; readonly task: () => void }[] = [];

  nowMs(): number {
    return this.#nowMs;
  }
  wallMs = systemClock.wallMs;
  sleep = systemClock.sleep;

  after(ms: number, task: () => void): () => void {
    const timer = { atMs: this.#nowMs + ms, task };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((other) => other !== timer);
    };
  }

  /** Whoever is due is called once, at the end: a process that did not run meanwhile. */
  jump(ms: number): void {
    this.#nowMs += ms;
    const due = this.#timers.filter(({ atMs }) => atMs <= this.#nowMs);
    this.#timers = this.#timers.filter(({ atMs }) => atMs > this.#nowMs);
    for (const { task } of due) task();
  }

  /** A process that runs all the time. */
  pass(ms: number): void {
    for (let passed = 0; passed < ms; passed += 1) this.jump(1);
  }
}

function begin(hindrance?: () => Hindrance) {
  const clock = new HandClock();
  let passed = false;
  const watch = hindrance && (() => hindrance);
  const cancel = startAnswerDeadline({ clock, deadlineMs: 800, watch }, () => {
    passed = true;
  });
  return { clock, cancel, hasPassed: () => passed };
}

describe('the deadline of an answer', () => {
  it('passes in its time where nothing is in the way, and not when it was taken back', () => {
    const present = begin();
    present.clock.pass(799);
    expect(present.hasPassed()).toBe(false);
    present.clock.pass(3);
    expect(present.hasPassed()).toBe(true);
    const takenBack = begin();
    takenBack.clock.pass(500);
    takenBack.cancel();
    takenBack.clock.pass(5000);
    expect(takenBack.hasPassed()).toBe(false);
  });

  it('does not count what its own process slept through', () => {
    const { clock, hasPassed } = begin();
    clock.jump(60_000);
    clock.pass(600);
    expect(hasPassed()).toBe(false);
    clock.pass(103);
    expect(hasPassed()).toBe(true);
  });

  it('leaves room to read an answer that has come while its own process slept', () => {
    const { clock, cancel, hasPassed } = begin();
    clock.pass(750);
    clock.jump(60_000);
    // The same turn of the event loop gets to the socket now.
    cancel();
    clock.pass(10);
    expect(hasPassed()).toBe(false);
  });

  it('does not count a QEMU that is kept from answering, up to five times as long', () => {
    const { clock, hasPassed } = begin(() => ({ share: 1, isGettingOn: false }));
    clock.pass(3000);
    expect(hasPassed()).toBe(false);
    clock.pass(1000);
    expect(hasPassed()).toBe(true);
  });

  it('counts in part what QEMU was kept from answering in part', () => {
    const { clock, hasPassed } = begin(() => ({ share: 0.5, isGettingOn: false }));
    clock.pass(1400);
    expect(hasPassed()).toBe(false);
    clock.pass(102);
    expect(hasPassed()).toBe(true);
  });

  it('has no end as long as what QEMU waits for is on its way', () => {
    let isGettingOn = true;
    const { clock, hasPassed } = begin(() => ({ share: 1, isGettingOn }));
    clock.pass(60_000);
    expect(hasPassed()).toBe(false);
    isGettingOn = false;
    clock.pass(4000);
    expect(hasPassed()).toBe(true);
  });
});
