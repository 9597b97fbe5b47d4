import { basename } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type SourceFile, sourceFiles } from './source-files.ts';

const FILE_LINES_MAX = 500;
const KEBAB_CASE = /^[a-z0-9]+(?:-[a-z0-9]+)*(?:\.test)?\.(?:ts|c)$/;
// Split, so that this file does not find itself.
const UNFINISHED = new RegExp(
  ['TO' + 'DO', 'FIX' + 'ME', 'X' + 'XX'].map((word) => `\\b${word}\\b`).join('|'),
);
/** Its `recursive` spins for ever in some places: src/base/make-directory.ts. */
const ENDLESS = /\bmkdir(?:Sync)?\([^;]*recursive: true/;
const SET_ASIDE = /\b(?:it|test|describe)\.(?:only|skip|todo)\b/;

/** What Biome does not look at: it checks formatting, function length and the rest. */
function faultsOf({ path, text }: SourceFile): string[] {
  const faults: string[] = [];
  const name = basename(path);
  const lines = text.split('\n').length - 1;
  if (lines > FILE_LINES_MAX) faults.push(`${path} has ${lines} lines, more than ${FILE_LINES_MAX}`);
  if (!KEBAB_CASE.test(name)) faults.push(`${path} is not named in kebab-case`);
  if (/^index\./.test(name)) faults.push(`${path} is named by its place, not by what it holds`);
  if (/(?:^|[/-])(?:utils?|helpers?|misc|common)(?:[/.-]|$)/.test(path)) {
    faults.push(`${path} has a name that says nothing about what it holds`);
  }
  if (UNFINISHED.test(text)) faults.push(`${path} holds a note on unfinished work`);
  if (name.endsWith('.test.ts') && path !== 'test/house/style.test.ts' && SET_ASIDE.test(text)) {
    faults.push(`${path} sets a test aside`);
  }
  if (path.startsWith('src/') && !/\.test\.ts$|-fixture\.ts$/.test(path) && ENDLESS.test(text)) {
    faults.push(`${path} may spin in mkdir: makeDirectory does not`);
  }
  return faults;
}

describe('the style of the house', () => {
  it('is kept by every source file', () => {
    const files = sourceFiles();
    expect(files.length).toBeGreaterThan(10);
    expect(files.flatMap(faultsOf)).toEqual([]);
  });

  it.each<[string, SourceFile, string]>([
    ['a file that is too long', { path: 'src/net/a.ts', text: '\n'.repeat(501) }, 'has 501 lines'],
    ['a name in camel case', { path: 'src/net/outputGate.ts', text: '' }, 'kebab-case'],
    ['an index file', { path: 'src/net/index.ts', text: '' }, 'named by its place'],
    ['a drawer for everything', { path: 'src/net/frame-utils.ts', text: '' }, 'says nothing'],
    ['a folder for everything', { path: 'src/utils/frame.ts', text: '' }, 'says nothing'],
    ['unfinished work', { path: 'src/net/a.ts', text: `// ${'TO' + 'DO'} later\n` }, 'unfinished'],
    [
      'a directory made by what may not end',
      { path: 'src/net/a.ts', text: 'mkdirSync(path, { recursive: true });\n' },
      'may spin',
    ],
    ['a test that is skipped', { path: 'src/net/a.test.ts', text: "it.skip('x', () => {});\n" }, 'aside'],
  ])('is broken by %s', (_, file, fault) => {
    expect(faultsOf(file)).toEqual([expect.stringContaining(fault)]);
  });
});
