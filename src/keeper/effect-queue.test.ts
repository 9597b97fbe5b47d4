import { expect, it } from 'vitest';
import type { ProtectionEffect } from '../shadow/protection.ts';
import { EffectQueue } from './effect-queue.ts';

function queueThat(fails: readonly ProtectionEffect['kind'][]) {
  const done: string[] = [];
  const ended = Promise.withResolvers<void>();
  const queue = new EffectQueue({
    carryOut: async ({ kind }) => {
      await Promise.resolve();
      if (fails.includes(kind)) throw new Error(`${kind} fails`);
      done.push(kind);
      if (kind === 'stop') ended.resolve();
    },
    onFailed: ({ kind }) => {
      done.push(`${kind} failed`);
      if (kind === 'stop') ended.resolve();
      else queue.push({ kind: 'stop' });
    },
  });
  return { queue, done, ended: ended.promise };
}

it('effects are carried out one after the other, in their order', async () => {
  const { queue, done, ended } = queueThat([]);
  for (const kind of ['fence', 'promote', 'pass-output', 'stop'] as const) queue.push({ kind });
  await ended;
  expect(done).toEqual(['fence', 'promote', 'pass-output', 'stop']);
});

it('after one that failed, none of those that were decided before is carried out, but the stop is', async () => {
  const { queue, done, ended } = queueThat(['drop-shadow']);
  for (const kind of ['fence', 'drop-shadow', 'restart', 'pass-output'] as const) queue.push({ kind });
  await ended;
  expect(done).toEqual(['fence', 'drop-shadow failed', 'stop']);
});

it('a frozen queue begins nothing more, not even a stop', async () => {
  const { queue, done } = queueThat([]);
  queue.push({ kind: 'fence' });
  queue.freeze();
  queue.push({ kind: 'stop' });
  await new Promise((resolve) => setImmediate(resolve));
  expect(done).toEqual([]);
});
