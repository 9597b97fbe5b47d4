import { describe, expect, it } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { PLACE_BOUNDS, type Place, PlaceBook } from './place-book.ts';

function world({ freeBytes = Number.POSITIVE_INFINITY } = {}) {
  const kept: string[] = [];
  let nowMs = 0;
  const clock = { ...systemClock, nowMs: () => nowMs };
  const book = new PlaceBook({ clock, kept: () => kept, freeBytes: () => freeBytes });
  const taken: Place[] = [];
  return {
    kept,
    taken,
    pass: (ms: number) => {
      nowMs += ms;
    },
    /** As many as it gives, up to `most`, and why no more. */
    ask: (peer: string, most = 1000): { count: number; refusal: unknown } => {
      for (let count = 0; count < most; count += 1) {
        try {
          taken.push(book.take(`vm-${taken.length}`, peer));
        } catch (refusal) {
          return { count, refusal };
        }
      }
      return { count: most, refusal: undefined };
    },
  };
}

const FULL = expect.objectContaining({ code: 'KEEPER_PLACES_FULL', hint: expect.stringMatching(/\S/) });

describe('places for shadows', () => {
  it('are so many under way for one host, and others are left for the next one', () => {
    const { ask, taken } = world();
    expect(ask('a')).toEqual({ count: PLACE_BOUNDS.underWayPerPeer, refusal: FULL });
    expect(ask('b', 1).refusal).toBeUndefined();
    taken[0]?.[Symbol.dispose]();
    expect(ask('a')).toEqual({ count: 1, refusal: FULL });
  });

  it('are so many under way for all hosts together', () => {
    const { ask } = world();
    const counts = ['a', 'b', 'c', 'd', 'e'].map((peer) => ask(peer).count);
    expect(counts).toEqual([16, 16, 16, 16, 0]);
  });

  it('are under way no more when the VM has its keeper, or has not come for long', () => {
    const { ask, kept, taken, pass } = world();
    ask('a');
    kept.push(...taken.map(({ vm }) => vm));
    expect(ask('a').count).toBe(PLACE_BOUNDS.underWayPerPeer);
    expect(ask('a').count).toBe(0);
    pass(60_000);
    expect(ask('a').count).toBe(PLACE_BOUNDS.underWayPerPeer);
  });

  it('are so many for one host, and so many at all, however long it takes to ask for them', () => {
    const { ask, kept, taken } = world();
    let refusal: unknown;
    for (let count = 1; count > 0; ) {
      ({ count, refusal } = ask('a'));
      kept.splice(0, kept.length, ...taken.map(({ vm }) => vm));
    }
    expect(taken).toHaveLength(PLACE_BOUNDS.keepersPerPeer);
    expect(refusal).toEqual(FULL);
    kept.push(...Array.from({ length: PLACE_BOUNDS.keepers - kept.length }, (_, index) => `own-${index}`));
    expect(ask('b')).toEqual({ count: 0, refusal: FULL });
  });

  it('are not given where there is no memory for their keepers', () => {
    const { ask } = world({ freeBytes: 2.5 * PLACE_BOUNDS.keeperBytes });
    expect(ask('a')).toMatchObject({ count: 2, refusal: { code: 'KEEPER_HOST_NO_ROOM' } });
  });
});
