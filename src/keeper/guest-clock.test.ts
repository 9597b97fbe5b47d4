import { describe, expect, it, vi } from 'vitest';
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
  const channel = { hasUnreadInput: false };
  const guestClock = new GuestClock({
    clock,
    syncIntervalMs: 1000,
    errorMaxMs: 40,
    send: (bytes) => sent.push(Buffer.from(bytes).toString()),
    hasUnreadInput: () => channel.hasUnreadInput,
  });
  const pass = (ms: number) => {
    nowMs += ms;
    const due = timers.filter((timer) => timer.atMs <= nowMs);
    timers = timers.filter((timer) => timer.atMs > nowMs);
    for (const { task } of due) task();
  };
  const answer = (text: string) => guestClock.receive(Buffer.from(text, 'latin1'));
  /** An agent that reads its channel: answers what was asked last. */
  const answerAll = () => {
    const id = /"id":(\d+)/.exec(sent.findLast((message) => message.includes('guest-sync')) ?? '')?.[1];
    answer(`{"return": ${id}}\n{"return": ${clock.wallMs()}000000}\n{"return": {}}\n`);
  };
  const timesSet = () => sent.filter((message) => message.includes('guest-set-time'));
  return { guestClock, sent, channel, pass, answer, answerAll, timesSet };
}

describe('the guest clock', () => {
  it('sets the guest to the time of the host, in nanoseconds, at least every interval', () => {
    const { guestClock, pass, answerAll, timesSet } = host();
    guestClock.start();
    answerAll();
    pass(1000);
    answerAll();
    expect(timesSet()).toHaveLength(2);
    expect(timesSet()[1]).toContain('"guest-set-time","arguments":{"time":1700000001000000000}');
  });

  it('sets it sooner when the pauses add up', () => {
    const { guestClock, answerAll, timesSet } = host();
    guestClock.start();
    answerAll();
    for (let pauses = 0; pauses < 20; pauses += 1) guestClock.notePause(2);
    answerAll();
    expect(timesSet()).toHaveLength(2);
  });

  it('sends no time and next to nothing to an agent that does not read, and the right time once it does', () => {
    const { guestClock, sent, channel, pass, answerAll, timesSet } = host();
    guestClock.start();
    channel.hasUnreadInput = true;
    for (let second = 0; second < 3600; second += 1) {
      pass(1000);
      guestClock.notePause(50);
    }
    expect(sent).toHaveLength(1);
    expect(timesSet()).toEqual([]);
    channel.hasUnreadInput = false;
    answerAll();
    expect(timesSet()).toHaveLength(1);
    expect(timesSet()[0]).toContain('"time":1700003600000000000');
    // What it says about an hour ago is no error of its clock.
    expect(guestClock.status().errorMs).toBeNull();
  });

  it('asks anew an agent that has read and does not answer, as after a reboot, and sends it no time', () => {
    const { guestClock, sent, pass, timesSet } = host();
    guestClock.start();
    for (let second = 0; second < 60; second += 1) pass(1000);
    expect(sent.length).toBeGreaterThan(1);
    expect(sent.length).toBeLessThan(12);
    expect(timesSet()).toEqual([]);
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
    answer('{"return": 1}\n'); // the end of the long line
    answer('{"return": 1}\n{"return": 1700000000000000000}\n');
    expect(guestClock.status().errorMs).toBeCloseTo(0, 1);
  });

  it('takes a flood of any lines without work for each of them', () => {
    const { guestClock, answer, answerAll, timesSet } = host();
    guestClock.start();
    const parse = vi.spyOn(JSON, 'parse');
    for (const line of ['\n', '"return"\n', '{"return": {}}\n', '{"return": 9}\n', 'x'])
      answer(line.repeat(50_000));
    expect(parse).not.toHaveBeenCalled();
    parse.mockRestore();
    answer('\n');
    answerAll();
    expect(timesSet()).toHaveLength(1);
  });

  it('asks at once after a promotion, and sets the time when the answer comes', () => {
    const { guestClock, sent, answerAll, timesSet } = host();
    guestClock.start();
    guestClock.notePromotion();
    expect(sent[1]).toContain('"id":2');
    answerAll();
    expect(timesSet()).toHaveLength(1);
  });
});
