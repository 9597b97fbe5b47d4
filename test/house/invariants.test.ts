import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { REPOSITORY } from '../kit/static-checks.ts';

/** What is wrong with the table of invariants: a row without proof, or one whose test does not exist. */
function faultsOf(markdown: string, readTest: (path: string) => string | undefined): string[] {
  const faults: string[] = [];
  const rows = [...markdown.matchAll(/^\| (I\d+) \|(.*)\|(.*)\|$/gm)];
  rows.forEach(([, id, , proof = ''], index) => {
    if (id !== `I${index + 1}`) faults.push(`${id} stands where I${index + 1} should`);
    const tests = [...proof.matchAll(/`([^`]+\.test\.ts)`: \*([^*]+)\*/g)];
    if (tests.length === 0) faults.push(`${id} names no test`);
    for (const [, path = '', title = ''] of tests) {
      const text = readTest(path);
      if (text === undefined) faults.push(`${id}: there is no ${path}`);
      else if (!text.replaceAll("\\'", "'").includes(title))
        faults.push(`${id}: ${path} has no test "${title}"`);
    }
  });
  return rows.length === 0 ? ['there is no invariant'] : faults;
}

function readTest(path: string): string | undefined {
  const whole = join(REPOSITORY, path);
  return existsSync(whole) ? readFileSync(whole, 'utf8') : undefined;
}

describe('the invariants in ARCHITECTURE.md', () => {
  it('each name a test that exists', () => {
    expect(faultsOf(readFileSync(join(REPOSITORY, 'ARCHITECTURE.md'), 'utf8'), readTest)).toEqual([]);
  });

  it.each([
    ['no proof', '| I1 | It holds. | — |', 'I1 names no test'],
    [
      'a test file that is gone',
      '| I1 | It holds. | `src/a.test.ts`: *holds* |',
      'I1: there is no src/a.test.ts',
    ],
    [
      'a test that was renamed',
      '| I1 | It holds. | `src/b.test.ts`: *stays* |',
      'I1: src/b.test.ts has no test "stays"',
    ],
    ['a number left out', '| I2 | It holds. | `src/b.test.ts`: *holds* |', 'I2 stands where I1 should'],
    ['a table that cannot be read', 'I1: it holds', 'there is no invariant'],
  ])('are found wanting with %s', (_, markdown, fault) => {
    const tests: Record<string, string> = { 'src/b.test.ts': "it('holds', () => {});" };
    expect(faultsOf(markdown, (path) => tests[path])).toEqual([fault]);
  });
});
