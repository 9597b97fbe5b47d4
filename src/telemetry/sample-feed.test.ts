import { describe, expect, it } from 'vitest';
import type { Sample } from './sample.ts';
import { SampleFeed } from './sample-feed.ts';

const sample = (wallMs: number): Sample => ({
  ...{ vm: 'a', instanceId: 'one', wallMs, monotonicMs: wallMs, intervalMs: 1000, values: {} },
});

describe('a subscriber', () => {
  it('is told of each sample from when it subscribed, and of none when it has left', () => {
    const feed = new SampleFeed();
    const seen: number[] = [];
    feed.publish(sample(1));
    const subscription = feed.subscribe({
      samplesMax: 4,
      onSample: () => {
        for (let fed = subscription.take(); fed !== undefined; fed = subscription.take())
          seen.push(fed.sample.wallMs);
      },
    });
    feed.publish(sample(2));
    feed.publish(sample(3));
    subscription[Symbol.dispose]();
    feed.publish(sample(4));
    expect(seen).toEqual([2, 3]);
    expect(feed.subscribers).toBe(0);
    expect(feed.last?.wallMs).toBe(4);
  });

  it('that is slow loses the oldest samples and is told how many; another one loses nothing', () => {
    const feed = new SampleFeed();
    using slow = feed.subscribe({ samplesMax: 3, onSample: () => {} });
    let taken = 0;
    using quick = feed.subscribe({
      samplesMax: 3,
      onSample: () => {
        expect(quick.take()?.lost).toBe(0);
        taken += 1;
      },
    });
    for (let wallMs = 1; wallMs <= 10; wallMs += 1) feed.publish(sample(wallMs));
    expect(taken).toBe(10);
    expect(slow.take()).toMatchObject({ sample: { wallMs: 8 }, lost: 7 });
    expect(slow.take()).toMatchObject({ sample: { wallMs: 9 }, lost: 0 });
    feed.publish(sample(11));
    expect(slow.take()).toMatchObject({ sample: { wallMs: 10 }, lost: 0 });
    expect(slow.take()).toMatchObject({ sample: { wallMs: 11 }, lost: 0 });
    expect(slow.take()).toBeUndefined();
  });
});
