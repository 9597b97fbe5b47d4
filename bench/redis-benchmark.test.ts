import { describe, expect, it } from 'vitest';
import { parseSetRates } from './redis-benchmark.ts';

const CSV = `"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"SET","11029.41","4.450","0.824","4.079","8.463","11.775","20.431"
`;

describe('the output of redis-benchmark', () => {
  it('is read by the names of its columns', () => {
    expect(parseSetRates(CSV)).toEqual({ perSecond: 11029.41, p50Ms: 4.079, p99Ms: 11.775 });
  });

  it('is not mistaken for a figure when it has none', () => {
    expect(() => parseSetRates('Could not connect to Redis at 10.77.0.2:6379')).toThrow('rps');
    expect(() => parseSetRates('')).toThrow('rps');
  });
});
