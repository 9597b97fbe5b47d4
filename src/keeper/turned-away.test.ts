import { describe, expect, it } from 'vitest';
import { TurnedAwayLog } from './turned-away.ts';

const expired = { address: '10.0.0.2', code: 'WIRE_PEER_EXPIRED' };

describe('the log of those who were turned away', () => {
  it('tells of the same host and cause once a minute', () => {
    const log = new TurnedAwayLog();
    const told = [0, 500, 59_999, 60_000, 61_000].filter((nowMs) => log.isNews(expired, nowMs));
    expect(told).toEqual([0, 60_000]);
  });

  it('tells of another cause, and of another host, at once', () => {
    const log = new TurnedAwayLog();
    const others = [expired, { ...expired, code: 'WIRE_VERSION' }, { ...expired, address: '10.0.0.3' }];
    expect(others.map((one) => log.isNews(one, 0))).toEqual([true, true, true]);
  });

  it('is not filled by a crowd of strangers, and is there for others when they have gone', () => {
    const log = new TurnedAwayLog();
    const crowd = Array.from({ length: 1000 }, (_, at) => ({
      ...expired,
      address: `10.1.${at >> 8}.${at & 255}`,
    }));
    expect(crowd.filter((one) => log.isNews(one, 0))).toHaveLength(64);
    expect(log.isNews(expired, 60_000)).toBe(true);
  });
});
