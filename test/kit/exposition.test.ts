import { describe, expect, it } from 'vitest';
import { parseExposition, sampleOf } from './exposition.ts';

const head = '# HELP a_total Some.\n# TYPE a_total counter\n';
const histogram = (lines: string) => `# HELP h Some.\n# TYPE h histogram\n${lines}\n`;

describe('the parser of expositions', () => {
  it('reads families, labels and values', () => {
    const families = parseExposition(
      `${head}a_total{vm="x",kind="q\\"\\\\"} 3\na_total 1e+21\n\n${histogram('h_bucket{le="1"} 1\nh_bucket{le="+Inf"} 2\nh_sum 3.5\nh_count 2')}`,
    );
    expect([...families.keys()]).toEqual(['a_total', 'h']);
    expect(sampleOf(families, 'a_total')).toBe(1e21);
    expect(sampleOf(families, 'a_total', { vm: 'x', kind: 'q\\"\\\\' })).toBe(3);
    expect(sampleOf(families, 'h_bucket', { le: '+Inf' })).toBe(2);
    expect(sampleOf(families, 'a_total', { vm: 'y' })).toBeUndefined();
  });

  it.each([
    ['an end that is missing', `${head}a_total 1`],
    ['no HELP', '# TYPE a_total counter\na_total 1\n'],
    ['an empty HELP', '# HELP a_total \n# TYPE a_total counter\na_total 1\n'],
    ['no TYPE', '# HELP a_total Some.\na_total 1\n'],
    ['a type that is none', '# HELP a_total Some.\n# TYPE a_total number\n'],
    ['a family twice', `${head}a_total 1\n${head}a_total{vm="x"} 1\n`],
    ['a series twice', `${head}a_total{vm="x"} 1\na_total{vm="x"} 2\n`],
    ['a label twice', `${head}a_total{vm="x",vm="y"} 1\n`],
    ['a sample of another family', `${head}b_total 1\n`],
    ['a value that is none', `${head}a_total undefined\n`],
    ['a label that is not closed', `${head}a_total{vm="x} 1\n`],
    ['a counter without _total', '# HELP a Some.\n# TYPE a counter\na 1\n'],
    ['a gauge with _total', '# HELP a_total Some.\n# TYPE a_total gauge\na_total 1\n'],
    ['a counter below 0', `${head}a_total -1\n`],
    ['buckets that shrink', histogram('h_bucket{le="1"} 2\nh_bucket{le="+Inf"} 1\nh_sum 1\nh_count 1')],
    [
      'bounds that shrink',
      histogram('h_bucket{le="2"} 0\nh_bucket{le="1"} 0\nh_bucket{le="+Inf"} 0\nh_sum 0\nh_count 0'),
    ],
    ['no last bucket', histogram('h_bucket{le="1"} 1\nh_sum 1\nh_count 1')],
    ['another count', histogram('h_bucket{le="+Inf"} 1\nh_sum 1\nh_count 2')],
    ['no sum', histogram('h_bucket{le="+Inf"} 1\nh_count 1')],
  ])('refuses %s', (_, text) => {
    expect(() => parseExposition(text)).toThrow();
  });
});
