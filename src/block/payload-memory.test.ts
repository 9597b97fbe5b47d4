import { describe, expect, test } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { MIB } from '../base/units.ts';
import { PayloadMemory } from './payload-memory.ts';

describe('the memory of payloads', () => {
  function memoryWithClock() {
    const due: (() => void)[] = [];
    const after = (_: number, task: () => void) => {
      due.push(task);
      return () => void due.splice(due.indexOf(task), 1);
    };
    const memory = new PayloadMemory({ ...systemClock, after });
    return { memory, due, pass: () => due.splice(0).map((task) => task()) };
  }

  test('is used again for what is about as large, and only after it was given back', () => {
    const { memory } = memoryWithClock();
    const [first, second] = [memory.take(MIB), memory.take(MIB)];
    expect(second.buffer).not.toBe(first.buffer);
    memory.give(first);
    expect(memory.take(64 * 1024).buffer).not.toBe(first.buffer);
    const again = memory.take(MIB - 4096);
    expect([again.buffer === first.buffer, again.length]).toEqual([true, MIB - 4096]);
    expect(memory.take(MIB).buffer).not.toBe(first.buffer);
  });

  test('is no more than a quarter larger than what it holds, and bounded while nobody uses it', () => {
    const { memory } = memoryWithClock();
    for (let lengthBytes = 16 * 1024 + 1; lengthBytes < 2 * MIB; lengthBytes += 4095) {
      expect(memory.take(lengthBytes).buffer.byteLength).toBeLessThanOrEqual(lengthBytes * 1.25);
    }
    const lent = Array.from({ length: 100 }, () => memory.take(MIB));
    for (const payload of lent) {
      memory.give(payload);
      expect(memory.freeBytes).toBeLessThanOrEqual(64 * MIB);
    }
    const before = memory.freeBytes;
    memory.give(memory.take(32 * MIB));
    expect(memory.freeBytes).toBe(before);
  });

  test('is given up when nothing was asked for in some time, and when it is disposed of', () => {
    const { memory, due, pass } = memoryWithClock();
    memory.give(memory.take(MIB));
    pass();
    expect([memory.freeBytes, due.length]).toEqual([MIB, 1]);
    pass();
    expect([memory.freeBytes, due.length]).toEqual([0, 0]);
    memory.give(memory.take(MIB));
    memory[Symbol.dispose]();
    expect([memory.freeBytes, due.length]).toEqual([0, 0]);
  });
});
