import { describe, expect, it } from 'vitest';
import { specDifferences } from './spec-difference.ts';
import { parseVmSpec } from './vm-spec.ts';

// Any file will do for a kernel.
const KERNEL = import.meta.filename;

function spec(more: string) {
  return parseVmSpec(`name: a\nboot: {kernel: ${KERNEL}}\n${more}`, { source: 'spec', directory: '/' });
}

describe('two specifications', () => {
  it('do not differ in what is written otherwise and means the same', () => {
    expect(specDifferences(spec('memory: 1GiB\n'), spec('# the same\nmemory: 1024MiB\n'))).toEqual([]);
    expect(specDifferences(spec('memory: 1GiB\n'), spec('memory: 1GiB\nshadow: {enabled: true}\n'))).toEqual(
      [],
    );
  });

  it('differ in named fields, however deep, and in what only one of them has', () => {
    const before = spec('memory: 128MiB\nshadow: {maxIntervalMs: 50}\n');
    const after = spec('memory: 256MiB\nshadow: {maxIntervalMs: 60}\nnics: [{uplink: {kind: none}}]\n');
    const found = specDifferences(before, after);
    expect(found).toContainEqual({
      ...{ field: 'memoryBytes', before: 128 * 1024 * 1024, after: 256 * 1024 * 1024 },
    });
    expect(found.map(({ field }) => field).sort()).toEqual(['memoryBytes', 'nics.0', 'shadow.maxIntervalMs']);
    expect(found.find(({ field }) => field === 'nics.0')?.before).toBeUndefined();
  });
});
