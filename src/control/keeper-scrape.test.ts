import { describe, expect, it } from 'vitest';
import { ManualClock } from '../api/api-fixture.ts';
import { InvariantViolation } from '../base/assert.ts';
import { KeeperScrape } from './keeper-scrape.ts';
import type { VmMetrics } from './vm-metrics.ts';

const answer = { phase: 'protected' } as VmMetrics;
const names = (count: number) => Array.from({ length: count }, (_, index) => `vm-${index}`);

describe('asking keepers for what they measure', () => {
  it('loses nobody else to one that fails', async () => {
    const scrape = new KeeperScrape({
      clock: new ManualClock(),
      ask: async (vm) => {
        if (vm === 'vm-1') throw new Error('gone');
        return answer;
      },
    });
    const found = await scrape.take(names(3));
    expect([...found]).toEqual([
      ['vm-0', answer],
      ['vm-1', undefined],
      ['vm-2', answer],
    ]);
  });

  it('asks no more than 32 at once, and all of them in the end', async () => {
    let asking = 0;
    let most = 0;
    const ask = async () => {
      asking += 1;
      most = Math.max(most, asking);
      await new Promise((resolve) => setImmediate(resolve));
      asking -= 1;
      return answer;
    };
    const found = await new KeeperScrape({ clock: new ManualClock(), ask }).take(names(200));
    expect(most).toBe(32);
    expect([...found.values()].filter((each) => each === answer)).toHaveLength(200);
  });

  it('is made once for all who ask at the same time, and anew for who comes later', async () => {
    const asked: string[] = [];
    const gate = Promise.withResolvers<VmMetrics>();
    const ask = (vm: string) => {
      asked.push(vm);
      return gate.promise;
    };
    const scrape = new KeeperScrape({ clock: new ManualClock(), ask });
    const both = [scrape.take(['a']), scrape.take(['a'])];
    gate.resolve(answer);
    await Promise.all(both);
    expect(asked).toEqual(['a']);
    await scrape.take(['a']);
    expect(asked).toEqual(['a', 'a']);
  });

  it('ends when many hang: those that were not asked in time have no answer', async () => {
    const clock = new ManualClock();
    const asked: string[] = [];
    const ask = async (vm: string): Promise<VmMetrics> => {
      asked.push(vm);
      await clock.sleep(1000);
      throw new Error('no answer');
    };
    const taking = new KeeperScrape({ clock, ask }).take(names(1000));
    let done = false;
    void taking.then(() => {
      done = true;
    });
    for (let second = 0; second < 20 && !done; second++) {
      clock.advance(1000);
      await new Promise((resolve) => setImmediate(resolve));
    }
    const found = await taking;
    expect(asked).toHaveLength(5 * 32);
    expect(found.size).toBe(1000);
  });

  it('lets a broken invariant through', async () => {
    const ask = async () => {
      throw new InvariantViolation('broken');
    };
    await expect(new KeeperScrape({ clock: new ManualClock(), ask }).take(['a'])).rejects.toThrow('broken');
  });
});
