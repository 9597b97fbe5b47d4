import { marked, table } from '../src/cli/output.ts';
import { type Benchmark, type BenchResult, type FigureInfo, reaches } from './harness.ts';

/** A result for people: figures beside their targets, then the samples that they were made from. */
export function reportText(result: BenchResult, { figures }: Pick<Benchmark, 'figures'>): string {
  const { machine, versions, samples, notes } = result;
  const rows = Object.entries(figures).map(([name, info]) => {
    const value = result.figures[name] ?? null;
    return [name, numberText(value), targetText(info), verdict(reaches(value, info))];
  });
  const sampleRows = Object.entries(samples).map(([series, { n, p50, p99, min, max }]) => [
    series,
    ...[n, p50, p99, min, max].map(numberText),
  ]);
  return [
    `${result.bench} on ${machine.cpu}, ${machine.cores} cores, ${machine.memoryMiB} MiB, Linux ${machine.kernel}`,
    factsText({ ...versions, ...machine }, ['cpu', 'cores', 'memoryMiB', 'kernel']),
    '',
    table([['figure', 'measured', 'target', ''], ...rows]),
    ...(sampleRows.length === 0
      ? []
      : ['', table([['samples', 'n', 'p50', 'p99', 'min', 'max'], ...sampleRows])]),
    ...(notes.length === 0 ? [] : ['', ...notes.map((note) => `- ${note}`)]),
  ].join('\n');
}

/** A result as a section of docs/benchmarks.md holds it, to be pasted there. */
export function reportMarkdown(result: BenchResult, { figures }: Pick<Benchmark, 'figures'>): string {
  const { machine, versions, samples, notes } = result;
  const rows = Object.entries(figures).map(([name, info]) => {
    const value = result.figures[name] ?? null;
    const measured = reaches(value, info) === false ? `${numberText(value)} (missed)` : numberText(value);
    return [`\`${name}\``, measured, targetText(info), info.meaning];
  });
  const sampleRows = Object.entries(samples).map(([series, { n, p50, p99, min, max }]) => [
    `\`${series}\``,
    ...[n, p50, p99, min, max].map(numberText),
  ]);
  return [
    `${factsText({ ...machine }, [])}; ${factsText({ ...versions }, [])}`,
    markdownTable([['figure', 'measured', 'target', 'what it is'], ...rows]),
    markdownTable([['samples', 'n', 'p50', 'p99', 'min', 'max'], ...sampleRows]),
    notes.map((note) => `- ${note}`).join('\n'),
  ].join('\n\n');
}

export function targetText({ target }: FigureInfo): string {
  if (target === undefined) return '';
  return 'atMost' in target ? `≤ ${target.atMost}` : `≥ ${target.atLeast}`;
}

function factsText(facts: Readonly<Record<string, unknown>>, said: readonly string[]): string {
  return Object.entries(facts)
    .filter(([name]) => !said.includes(name))
    .map(([name, value]) => `${name} ${value}`)
    .join(', ');
}

function numberText(value: number | null): string {
  return value === null ? '—' : String(value);
}

function verdict(reached: boolean | undefined): string {
  if (reached === undefined) return '';
  return reached ? marked('ok', 'reached') : marked('warn', 'missed');
}

function markdownTable([head = [], ...rows]: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(head), `|${'---|'.repeat(head.length)}`, ...rows.map(line)].join('\n');
}
