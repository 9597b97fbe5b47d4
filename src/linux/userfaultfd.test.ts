import { expect, test } from 'vitest';
import { probeUserfaultfd } from './userfaultfd.ts';

test('a user who may open /dev/userfaultfd or is root gets full reach and is told the features', () => {
  const support = probeUserfaultfd();
  expect(support).toMatchObject({ kind: 'supported', reach: 'full' });
  // The kernel has had this one since 4.11, and asynchronous write protection only together with the others.
  const features = support.kind === 'supported' ? support.features : [];
  expect(features).toContain('MISSING_SHMEM');
  if (features.includes('WP_ASYNC')) {
    expect(features).toEqual(expect.arrayContaining(['WP_HUGETLBFS_SHMEM', 'WP_UNPOPULATED']));
  }
});
