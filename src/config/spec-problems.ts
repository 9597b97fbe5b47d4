import { type Document, isAlias, isMap, isScalar, isSeq, type LineCounter, type Node } from 'yaml';
import type { z } from 'zod';
import { didYouMean } from './did-you-mean.ts';

type Path = readonly PropertyKey[];

/** Where in a YAML text things are said. */
export interface SpecText {
  readonly document: Document;
  readonly lines: LineCounter;
  /** How the text is called in messages, usually its file name. */
  readonly source: string;
  /** What the whole of it is called in messages. */
  readonly whole: string;
}

/** More would help nobody, and finding the lines of all could take minutes. */
const PROBLEMS_MAX = 100;
const SHOWN_MAX = 80;

/** As many problems as are told. */
export function firstOf<Problem>(problems: readonly Problem[]): readonly Problem[] {
  return problems.slice(0, PROBLEMS_MAX);
}

/** What the schema found wrong, as `demo.yaml:7: nics[0].uplink.kind: expected one of tap, passt, none`, in order of lines. */
export function specProblems(
  issues: readonly z.core.$ZodIssue[],
  schema: z.ZodType,
  text: SpecText,
): string[] {
  return firstOf(firstOf(issues).flatMap((issue) => describe(issue, schema, text)))
    .toSorted((a, b) => a.line - b.line)
    .map(({ line, field, what }) => `${text.source}:${line}: ${field}: ${what}`);
}

interface Problem {
  readonly line: number;
  readonly field: string;
  readonly what: string;
}

function describe(issue: z.core.$ZodIssue, schema: z.ZodType, text: SpecText): Problem[] {
  if (issue.code !== 'unrecognized_keys') {
    return [
      { line: lineOf(issue.path, text), field: fieldName(issue.path, text), what: whatIsWrong(issue, text) },
    ];
  }
  const known = fieldsAt(schema, issue.path);
  return firstOf(issue.keys).map((key) => {
    const path = [...issue.path, key];
    const meant = didYouMean(key, known);
    const advice = meant === undefined ? `known here: ${known.join(', ')}` : `did you mean ${meant}?`;
    return { line: lineOf(path, text), field: fieldName(path, text), what: `unknown field (${advice})` };
  });
}

function whatIsWrong(issue: z.core.$ZodIssue, text: SpecText): string {
  const given = nodeAt(issue.path, text);
  if (given.rest.length > 0) return issue.path.length === 0 ? issue.message : 'is missing';
  switch (issue.code) {
    case 'invalid_type': {
      return `expected ${issue.expected === 'int' ? 'a whole number' : issue.expected}, not ${shown(given.node, text)}`;
    }
    case 'invalid_value':
      return `expected ${issue.values.length > 1 ? 'one of ' : ''}${issue.values.join(', ')}`;
    case 'invalid_union':
      // A discriminated union says which kinds there are; its type in zod leaves that out.
      return 'options' in issue
        ? `expected one of ${(issue.options as unknown[]).join(', ')}`
        : issue.message;
    case 'too_small':
      return `expected ${issue.minimum} or more`;
    case 'too_big':
      return issue.origin === 'array'
        ? `expected at most ${issue.maximum} entries`
        : `expected ${issue.maximum} or less`;
    default:
      return issue.message;
  }
}

/** A value in few words. Not the whole of it: it may be large, and through an alias hold itself. */
function shown(node: Found['node'], { document }: SpecText): string {
  const value = isAlias(node) ? node.resolve(document) : node;
  if (isMap(value)) return 'a map';
  if (isSeq(value)) return 'a list';
  if (!isScalar(value)) return 'nothing';
  const text = JSON.stringify(value.value) ?? 'nothing';
  return text.length > SHOWN_MAX ? `${text.slice(0, SHOWN_MAX)}…` : text;
}

/** Where a field of a text that was accepted stands, as `demo.yaml:7: disks[0]`. */
export function placeOf(path: Path, text: SpecText): string {
  return `${text.source}:${lineOf(path, text)}: ${fieldName(path, text)}`;
}

/** `['nics', 0, 'mac']` → `nics[0].mac`. */
export function fieldName(path: Path, { whole }: Pick<SpecText, 'whole'>): string {
  const name = path.map((step) => (typeof step === 'number' ? `[${step}]` : `.${String(step)}`)).join('');
  return name === '' ? whole : name.replace(/^\./, '');
}

/** The line of a field: of its key where it has one, of what holds it where it is missing. */
function lineOf(path: Path, text: SpecText): number {
  const { offset } = nodeAt(path, text);
  return text.lines.linePos(offset).line;
}

interface Found {
  readonly node: Node | null | undefined;
  /** Where the deepest key or entry that exists begins. */
  readonly offset: number;
  /** Steps of the path that do not exist. */
  readonly rest: Path;
}

function nodeAt(path: Path, text: SpecText): Found {
  let node = text.document.contents;
  let offset = node?.range?.[0] ?? 0;
  for (const [depth, step] of path.entries()) {
    if (isAlias(node)) node = node.resolve(text.document) ?? null;
    if (isMap(node)) {
      const pair = node.items.find(({ key }) => isScalar(key) && String(key.value) === String(step));
      if (pair === undefined) return { node: undefined, offset, rest: path.slice(depth) };
      offset = (pair.key as Node).range?.[0] ?? offset;
      node = pair.value as Node | null;
    } else if (isSeq(node) && typeof step === 'number' && node.items[step] !== undefined) {
      node = node.items[step] as Node;
      offset = node.range?.[0] ?? offset;
    } else {
      return { node: undefined, offset, rest: path.slice(depth) };
    }
  }
  return { node, offset, rest: [] };
}

/** The fields that the schema knows at a path. Where several shapes are possible, the fields of all. */
function fieldsAt(schema: z.core.$ZodType, path: Path): string[] {
  const def = (schema as z.core.$ZodTypes)._zod.def;
  const [step, ...rest] = path;
  switch (def.type) {
    case 'object':
      if (step === undefined) return Object.keys(def.shape);
      return def.shape[String(step)] === undefined
        ? []
        : fieldsAt(def.shape[String(step)] as z.core.$ZodType, rest);
    case 'array':
      return fieldsAt(def.element, rest);
    case 'union':
      return [...new Set(def.options.flatMap((option) => fieldsAt(option, path)))];
    case 'pipe':
      return fieldsAt(def.in, path);
    case 'optional':
    case 'default':
    case 'prefault':
      return fieldsAt(def.innerType, path);
    default:
      return [];
  }
}
