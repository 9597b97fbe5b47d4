/** A family of the Prometheus text format, as `parseExposition` found it. */
export interface ParsedFamily {
  readonly name: string;
  readonly help: string;
  readonly type: string;
  readonly samples: readonly ParsedSample[];
}

export interface ParsedSample {
  readonly name: string;
  readonly labels: ReadonlyMap<string, string>;
  readonly value: number;
}

type OpenFamily = ParsedFamily & { readonly samples: ParsedSample[] };

const NAME = '[a-zA-Z_:][a-zA-Z0-9_:]*';
const LABEL = '[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\\\\n]|\\\\[\\\\"n])*"';
const HELP_LINE = new RegExp(`^# HELP (${NAME}) (.+)$`);
const TYPE_LINE = new RegExp(`^# TYPE (${NAME}) (counter|gauge|histogram|summary|untyped)$`);
const SAMPLE_LINE = new RegExp(
  `^(${NAME})(?:\\{(${LABEL}(?:,${LABEL})*)\\})? (-?[0-9.]+(?:e[+-]?[0-9]+)?|[+-]Inf|NaN)$`,
);
const SUFFIXES: Readonly<Record<string, readonly string[]>> = {
  histogram: ['_bucket', '_sum', '_count'],
  summary: ['', '_sum', '_count'],
};

/**
 * Reads the text format (version 0.0.4), stricter than Prometheus does: every family has one HELP and one TYPE before
 * its samples and stands in one piece; no series comes twice; counters end in `_total`; the buckets of every histogram
 * grow, and the last one is `+Inf` and equals the count.
 * @throws what is wrong, with the line
 */
export function parseExposition(text: string): Map<string, ParsedFamily> {
  if (!text.endsWith('\n')) throw new Error('the last line has no end');
  const families = new Map<string, OpenFamily>();
  const seen = new Set<string>();
  let open: OpenFamily | undefined;
  let help: { readonly name: string; readonly words: string } | undefined;
  for (const line of text.split('\n').filter((each) => each !== '')) {
    const [, name = '', words = ''] = HELP_LINE.exec(line) ?? [];
    const [, typed = '', type = ''] = TYPE_LINE.exec(line) ?? [];
    if (name !== '') {
      if (families.has(name)) throw new Error(`${name} comes twice`);
      if (help !== undefined) throw new Error(`HELP without TYPE before: ${line}`);
      help = { name, words };
    } else if (typed !== '') {
      if (help?.name !== typed) throw new Error(`no HELP right before: ${line}`);
      open = { name: typed, help: help.words, type, samples: [] };
      families.set(typed, open);
      help = undefined;
    } else {
      const sample = sampleFrom(line);
      if (open === undefined || help !== undefined || !belongs(sample, open))
        throw new Error(`stray: ${line}`);
      const key = line.slice(0, line.lastIndexOf(' '));
      if (seen.has(key)) throw new Error(`the series comes twice: ${line}`);
      seen.add(key);
      open.samples.push(sample);
    }
  }
  for (const family of families.values()) check(family);
  return families;
}

/** The one sample of a family with these labels; undefined if there is none. */
export function sampleOf(
  families: ReadonlyMap<string, ParsedFamily>,
  name: string,
  labels: Readonly<Record<string, string>> = {},
): number | undefined {
  const family = families.get(name) ?? families.get(name.replace(/_(?:bucket|sum|count)$/, ''));
  return family?.samples.find(
    (sample) =>
      sample.name === name &&
      sample.labels.size === Object.keys(labels).length &&
      Object.entries(labels).every(([key, value]) => sample.labels.get(key) === value),
  )?.value;
}

function sampleFrom(line: string): ParsedSample {
  const match = SAMPLE_LINE.exec(line);
  if (match === null) throw new Error(`no sample: ${line}`);
  const [, name = '', labelText = '', value = ''] = match;
  const labels = [...labelText.matchAll(/([a-zA-Z0-9_]+)="((?:[^"\\]|\\.)*)"/g)].map(
    ([, key = '', text = '']) => [key, text] as const,
  );
  if (new Set(labels.map(([key]) => key)).size !== labels.length) throw new Error(`a label twice: ${line}`);
  return { name, labels: new Map(labels), value: Number(value.replace('Inf', 'Infinity')) };
}

function belongs({ name }: ParsedSample, family: ParsedFamily): boolean {
  return (SUFFIXES[family.type] ?? ['']).some((suffix) => name === family.name + suffix);
}

function check({ name, type, samples }: ParsedFamily): void {
  if ((type === 'counter') !== name.endsWith('_total')) throw new Error(`${name} is a ${type}`);
  if (type === 'counter' && samples.some(({ value }) => !(value >= 0)))
    throw new Error(`${name} counts below 0`);
  if (type !== 'histogram') return;
  const withoutBound = ({ labels }: ParsedSample) =>
    JSON.stringify([...labels].filter(([key]) => key !== 'le').sort());
  for (const [key, lines] of Map.groupBy(samples, withoutBound))
    checkHistogram(name, { called: `${name} ${key}`, lines });
}

function checkHistogram(
  name: string,
  { called, lines }: { called: string; lines: readonly ParsedSample[] },
): void {
  const buckets = lines.filter((line) => line.name === `${name}_bucket`);
  const bounds = buckets.map(({ labels }) => Number(labels.get('le')?.replace('Inf', 'Infinity')));
  const counts = buckets.map(({ value }) => value);
  const grows = (values: readonly number[], by: (a: number, b: number) => boolean) =>
    values.every((value, index) => index === 0 || by(values[index - 1] ?? Number.NaN, value));
  if (!grows(bounds, (a, b) => a < b) || bounds.at(-1) !== Number.POSITIVE_INFINITY)
    throw new Error(`bounds of ${called}: ${bounds}`);
  if (!grows(counts, (a, b) => a <= b)) throw new Error(`counts of ${called}: ${counts}`);
  const count = lines.find((line) => line.name === `${name}_count`)?.value;
  if (count !== counts.at(-1)) throw new Error(`${called} counts ${count}, not ${counts.at(-1)}`);
  if (!lines.some((line) => line.name === `${name}_sum`)) throw new Error(`${called} has no sum`);
}
