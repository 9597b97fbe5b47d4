import { beforeEach, describe, expect, it } from 'vitest';
import { GIB, KIB, MIB } from '../base/units.ts';
import { HINT_BYTES_MAX, ReadHints } from './read-hints.ts';

const DISK_BYTES = 2 * GIB + 512;
const MANY = 100_000;

let nowMs: number;
let hints: ReadHints;

beforeEach(() => {
  nowMs = 0;
  hints = new ReadHints({ diskBytes: DISK_BYTES, nowMs: () => nowMs });
  hints.listen();
});

describe('hints about what a guest reads', () => {
  it('are whole regions, put together as far as one hint goes', () => {
    hints.noteRead(70 * KIB, 4 * KIB);
    hints.noteRead(500 * KIB, 1);
    hints.noteRead(130 * KIB, 100 * KIB);
    hints.noteRead(4 * MIB, 3 * MIB);
    expect(hints.take(MANY)).toEqual([
      { offset: 64 * KIB, lengthBytes: 192 * KIB },
      { offset: 448 * KIB, lengthBytes: 64 * KIB },
      ...[4, 5, 6].map((at) => ({ offset: at * MIB, lengthBytes: HINT_BYTES_MAX })),
    ]);
    expect(hints.take(MANY)).toEqual([]);
    hints.noteRead(DISK_BYTES - 512, 512);
    expect(hints.take(MANY)).toEqual([{ offset: DISK_BYTES - 512, lengthBytes: 512 }]);
  });

  it('run ahead of reads that go on where another one ended, the longer these have done so the farther', () => {
    hints.noteRead(0, 64 * KIB);
    hints.noteRead(GIB, 64 * KIB);
    hints.take(MANY);
    hints.noteRead(64 * KIB, 64 * KIB);
    expect(hints.take(MANY)).toEqual([{ offset: 64 * KIB, lengthBytes: 192 * KIB }]);
    for (let at = 2; at < 160; at += 1) hints.noteRead(at * 64 * KIB, 64 * KIB);
    const last = hints.take(MANY).at(-1);
    expect((last?.offset ?? 0) + (last?.lengthBytes ?? 0)).toBe(10 * MIB + 4 * MIB);
    // The other one is not forgotten meanwhile.
    hints.noteRead(GIB + 64 * KIB, 64 * KIB);
    expect(hints.take(MANY)).toEqual([{ offset: GIB + 64 * KIB, lengthBytes: 192 * KIB }]);
  });

  it('are told once, and again after a while', () => {
    hints.noteRead(0, 4096);
    hints.take(MANY);
    hints.noteRead(0, 4096);
    expect(hints.take(MANY)).toEqual([]);
    nowMs = 60_000;
    hints.noteRead(0, 4096);
    expect(hints.take(MANY)).toHaveLength(1);
  });

  it('are as many as somebody is told of in time, the latest', () => {
    for (let at = 0; at < 20_000; at += 1) hints.noteRead(at * 64 * KIB, 4096);
    expect(hints.pendingBytes).toBe(64 * MIB);
    const [first] = hints.take(MANY);
    expect(first?.offset).toBe((20_000 - 1024) * 64 * KIB);
    hints.noteRead(0, 4096);
    expect(hints.take(MANY)).toHaveLength(1);
  });

  it('are none while nobody listens', () => {
    hints.ignore();
    hints.noteRead(0, 4096);
    expect(hints.take(MANY)).toEqual([]);
    hints.listen();
    hints.noteRead(0, 4096);
    expect(hints.take(MANY)).toHaveLength(1);
  });
});
