import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { REPOSITORY } from '../kit/static-checks.ts';
import { type SourceFile, sourceFiles } from './source-files.ts';

const CODE = /^[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+$/;

/** The codes of each error class, read from `type XErrorCode = 'A' | 'B'`. A form it cannot read is a fault. */
function codesInSource(files: readonly SourceFile[]): { codes: Map<string, string[]>; faults: string[] } {
  const codes = new Map<string, string[]>();
  const faults: string[] = [];
  for (const { path, text } of files) {
    const bare = text.replace(/\/\*[\s\S]*?\*\/|(?<!:)\/\/.*$/gm, '');
    for (const [, name, union] of bare.matchAll(/\btype\s+(\w+Error)Code\s*=\s*([^;]+);/g)) {
      const members = (union ?? '').split('|').flatMap((member) => member.trim() || []);
      const literals = members.map((member) => /^'([^']+)'$/.exec(member)?.[1]);
      if (literals.some((literal) => literal === undefined || !CODE.test(literal))) {
        faults.push(`${path}: ${name}Code is no union of 'UPPER_SNAKE' literals`);
      }
      codes.set(
        name ?? '',
        literals.filter((literal) => literal !== undefined),
      );
    }
    for (const [, name, argument] of bare.matchAll(
      /class\s+(\w+)\s+extends\s+UnderstudyError\b(?:<(\w+)>)?/g,
    )) {
      if (argument !== `${name}Code`)
        faults.push(`${path}: ${name} has to extend UnderstudyError<${name}Code>`);
      else if (!codes.has(name ?? '')) faults.push(`${path}: ${name}Code has to stand above ${name}`);
    }
  }
  return { codes, faults };
}

/** The codes of each `## XError` section, read from the first column of its table. */
function codesInDocument(markdown: string): { codes: Map<string, string[]>; faults: string[] } {
  const codes = new Map<string, string[]>();
  const faults: string[] = [];
  let section = '';
  for (const line of markdown.split('\n')) {
    section = /^## (\w+Error)$/.exec(line)?.[1] ?? section;
    const code = /^\| `([A-Z0-9_]+)` \|/.exec(line)?.[1];
    if (code === undefined) continue;
    const cells = line.split(/(?<!\\)\|/).slice(1, -1);
    if (cells.length !== 3 || cells.some((cell) => cell.trim() === '')) {
      faults.push(`docs/errors.md: ${code} needs a meaning and what to do`);
    }
    codes.set(section, [...(codes.get(section) ?? []), code]);
  }
  return { codes, faults };
}

function differences(source: readonly SourceFile[], markdown: string): string[] {
  const used = codesInSource(source);
  const documented = codesInDocument(markdown);
  const entries = (codes: Map<string, string[]>) =>
    [...codes].flatMap(([name, list]) => list.map((code) => `${name} ${code}`));
  const [inSource, inDocument] = [entries(used.codes), entries(documented.codes)];
  return [
    ...used.faults,
    ...documented.faults,
    ...inSource.filter((entry) => !inDocument.includes(entry)).map((entry) => `undocumented: ${entry}`),
    ...inDocument.filter((entry) => !inSource.includes(entry)).map((entry) => `not in the code: ${entry}`),
    ...inDocument
      .filter((entry, index) => inDocument.indexOf(entry) !== index)
      .map((entry) => `twice: ${entry}`),
  ];
}

const PLANTED_SOURCE = `
export type NetErrorCode =
  // when a peer sends garbage
  | 'NET_FRAME_INVALID'
  | 'NET_PASST_MISSING';
export class NetError extends UnderstudyError<NetErrorCode> {}
`;
const PLANTED_DOCUMENT = `
## NetError
| code | meaning | what to do |
|---|---|---|
| \`NET_FRAME_INVALID\` | garbage | report it |
| \`NET_PASST_MISSING\` | no passt | install passt |
`;

function plantedDifferences(source: string, markdown: string): string[] {
  return differences([{ path: 'src/net/net-error.ts', text: source }], markdown);
}

describe('docs/errors.md', () => {
  it('lists exactly the codes that the code can raise', () => {
    const files = sourceFiles().filter(({ path }) => /^(?:src|guest|bench)\/.*(?<!\.test)\.ts$/.test(path));
    expect(codesInSource(files).codes.size).toBeGreaterThan(0);
    expect(differences(files, readFileSync(join(REPOSITORY, 'docs/errors.md'), 'utf8'))).toEqual([]);
  });

  it('agrees with code that it describes', () => {
    expect(plantedDifferences(PLANTED_SOURCE, PLANTED_DOCUMENT)).toEqual([]);
  });

  it.each<[string, string, string, string]>([
    [
      'a code that is not documented',
      PLANTED_SOURCE.replace("| 'NET_PASST", "| 'NET_FULL' | 'NET_PASST"),
      PLANTED_DOCUMENT,
      'undocumented: NetError NET_FULL',
    ],
    [
      'a documented code that nothing raises',
      PLANTED_SOURCE.replace(/\n {2}\| 'NET_PASST_MISSING'/, ''),
      PLANTED_DOCUMENT,
      'not in the code: NetError NET_PASST_MISSING',
    ],
    [
      'a row without advice',
      PLANTED_SOURCE,
      PLANTED_DOCUMENT.replace('report it', ''),
      'docs/errors.md: NET_FRAME_INVALID needs a meaning and what to do',
    ],
    [
      'a code that is described twice',
      PLANTED_SOURCE,
      `${PLANTED_DOCUMENT}| \`NET_PASST_MISSING\` | again | again |\n`,
      'twice: NetError NET_PASST_MISSING',
    ],
    [
      'a code in another style',
      PLANTED_SOURCE.replace("'NET_PASST_MISSING'", "'passtMissing'"),
      PLANTED_DOCUMENT,
      "src/net/net-error.ts: NetErrorCode is no union of 'UPPER_SNAKE' literals",
    ],
    [
      'an error class without codes of its own',
      `${PLANTED_SOURCE}class OddError extends UnderstudyError {}\n`,
      PLANTED_DOCUMENT,
      'src/net/net-error.ts: OddError has to extend UnderstudyError<OddErrorCode>',
    ],
  ])('disagrees with %s', (_, source, markdown, difference) => {
    expect(plantedDifferences(source, markdown)).toContain(difference);
  });
});
