import { type Document, isScalar, LineCounter, parseDocument, visit } from 'yaml';
import type { z } from 'zod';
import { ConfigError } from './config-error.ts';
import { firstOf, type SpecText, specProblems } from './spec-problems.ts';

/** Longer texts are no specification. Protects the parser. */
const TEXT_BYTES_MAX = 1024 * 1024;

export interface YamlText {
  /** How the text is called in messages, usually its path. */
  readonly source: string;
  /** What the whole of it is called in messages: `specification`. */
  readonly whole: string;
  /** What a text that says nothing stands for; left out where something has to be said. */
  readonly nothing?: unknown;
  /** What is checked in place of what the text says. */
  readonly prepare?: (said: unknown) => unknown;
}

/**
 * Checks a YAML text against a schema. All problems are reported at once, each with its line.
 * @throws {ConfigError} CONFIG_INVALID
 */
export function parseYamlText<Schema extends z.ZodType>(
  text: string,
  schema: Schema,
  { source, whole, nothing, prepare = (said) => said }: YamlText,
): { readonly value: z.output<Schema>; readonly text: SpecText } {
  if (text.length > TEXT_BYTES_MAX) throw invalid([`${source}:1: ${whole}: is longer than 1 MiB`]);
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, uniqueKeys: false });
  const errors = document.errors.map(({ pos, message }) => ({ offset: pos[0], message }));
  const wrong = errors.length > 0 ? errors : keysGivenTwice(document);
  if (wrong.length > 0) {
    throw invalid(
      firstOf(wrong).map(({ offset, message }) => `${source}:${lines.linePos(offset).line}: ${message}`),
    );
  }
  const specText: SpecText = { document, lines, source, whole };
  const result = schema.safeParse(document.contents === null ? nothing : prepare(plainValue(specText)));
  if (!result.success) throw invalid(specProblems(result.error.issues, schema, specText));
  return { value: result.data, text: specText };
}

function plainValue({ document, source, whole }: SpecText): unknown {
  try {
    return document.toJS();
  } catch (cause) {
    // Aliases that multiply ("billion laughs").
    throw invalid([`${source}:1: ${whole}: too many aliases`], cause);
  }
}

function invalid(problems: readonly string[], cause?: unknown): ConfigError {
  return new ConfigError('CONFIG_INVALID', problems.join('\n'), {
    hint: 'Correct the lines that are named.',
    facts: { problems },
    cause,
  });
}

/** The parser has this check too, but compares each key with each: a minute for a specification full of them. */
function keysGivenTwice(document: Document): { offset: number; message: string }[] {
  const found: { offset: number; message: string }[] = [];
  visit(document, {
    Map: (_, { items }) => {
      const seen = new Set<unknown>();
      for (const { key } of items) {
        if (!isScalar(key)) continue;
        if (seen.has(key.value))
          found.push({ offset: key.range?.[0] ?? 0, message: 'Map keys must be unique' });
        seen.add(key.value);
      }
    },
  });
  return found;
}
