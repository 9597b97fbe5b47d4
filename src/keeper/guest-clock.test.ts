import { describe, expect, it } from 'vitest';
import type { Clock } from '../base/clock.ts';
import { GuestClock } from './guest-clock.ts';

/** A host whose time the test moves, and the commands that reach the guest agent. */
function host() {
  let nowMs = 0;
  let timers: { atMs: number; task: () => void }[] = [];
  const clock: Clock = {
    nowMs: () => nowMs,
    wallMs: () => 1_700_000_000_000 + nowMs,
    sleep: () => Promise.resolve(),
    after: (ms, task) => {
      const timer = { atMs: nowMs + ms, task };
      timers.push(timer);
      return () => {
        timers = timers.filter((other) => other !== timer);
      };
    },
  };
  const sent: string[] = [];
  const guestClock = new GuestClock({
    clock,
    syncIntervalMs: 1000,
    errorMaxMs: 40,
    send: (bytes) => sent.push(Buffer.from(bytes).toString()),
  });
  const pass = (ms: number) => {
    nowMs += ms;
    const due = timers.filter((timer) => timer.atMs <= nowMs);
    timers = timers.filter((timer) => timer.atMs > nowMs);
    for (const { task } of due) task();
  };
  const answer = (text: string) => guestClock.receive(Buffer.from(text, 'latin1'));
  return { guestClock, sent, pass, answer };
}

describe('the guest clock', () => {
  it('sets the guest to the time of the host, in nanoseconds, at least every interval', () => {
    const { guestClock, sent, pass } = host();
    guestClock.start();
    pass(1000);
    expect(sent).toHaveLength(2);
    expect(sent[1]).toContain('"guest-set-time","arguments":{"time":1700000001000000000}');
  });

  it('sets it sooner when the pauses add up', () => {
    const { guestClock, sent } = host();
    guestClock.start();
    for (let pauses = 0; pauses < 20; pauses += 1) guestClock.notePause(2);
    expect(sent).toHaveLength(2);
  });

  it('shows the error that it corrects, whatever way the answer is cut', () => {
    const { guestClock, answer } = host();
    guestClock.start();
    for (const byte of '{"return": 1}\n{"return": 1699999999950000000}\n{"return": {}}\n') answer(byte);
    expect(guestClock.status().errorMs).toBeCloseTo(-50, 1);
  });

  it('passes over answers to somebody else, errors and garbage', () => {
    const { guestClock, answer } = host();
    guestClock.start();
    answer('{"return": 7}\n\xff{"error": {"class": "x"}}\nnull\n[]\n{"return"\n');
    answer('\x00'.repeat(200_000));
    expect(guestClock.status().errorMs).toBeNull();
    answer('\n{"return": 1}\n{"return": 1700000000000000000}\n');
    expect(guestClock.status().errorMs).toBeCloseTo(0, 1);
  });

  it('sets the time at once after a promotion and asks anew', () => {
    const { guestClock, sent } = host();
    guestClock.start();
    guestClock.notePromotion();
    expect(sent[1]).toContain('"id":2');
  });
});
