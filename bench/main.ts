/**
 * `npm run -s bench -- NAME [--json] [--quick]`: runs one benchmark; without a name lists them.
 * Exit codes as those of `understudy`: 0 measured, 1 failed, 2 wrong usage, 4 not possible here, 130 interrupted.
 */
import { parseArgs } from 'node:util';
import { systemClock } from '../src/base/clock.ts';
import { messageOf } from '../src/base/errors.ts';
import { exitCodeOf } from '../src/cli/exit-codes.ts';
import { Interruption } from '../src/cli/interruption.ts';
import { Output, table } from '../src/cli/output.ts';
import { adoption } from './adoption.ts';
import { anomaly } from './anomaly.ts';
import { api } from './api.ts';
import { BenchError } from './bench-error.ts';
import { checkpoint } from './checkpoint.ts';
import { disk } from './disk.ts';
import { failover } from './failover.ts';
import { failover2 } from './failover2.ts';
import { forecast } from './forecast.ts';
import { type Benchmark, BenchRun } from './harness.ts';
import { machineFacts, versions } from './machine-facts.ts';
import { nbd } from './nbd.ts';
import { overhead } from './overhead.ts';
import { policy } from './policy.ts';
import { replication } from './replication.ts';
import { reportMarkdown, reportText, targetText } from './report.ts';
import { restore } from './restore.ts';
import { sampling } from './sampling.ts';
import { series } from './series.ts';
import { warming } from './warming.ts';
import { wire } from './wire.ts';

const BENCHMARKS: readonly Benchmark[] = [
  ...[checkpoint, failover, overhead, api, adoption],
  ...[wire, restore, nbd, disk, warming, replication, failover2],
  ...[forecast, policy, anomaly, series, sampling],
];
const KILLS_MAX = 1000;

const USAGE = `\
Usage: npm run -s bench -- [NAME] [options]

Measures Understudy next to its peers, alternating in the same run. Without a name it lists the benchmarks.

Options:
  --json      print one JSON object as the last line of standard output
  --markdown  print the section for docs/benchmarks.md
  --quick     less than 60 s; the figures mean the same and are less sure
  --kills N   how often failover kills the primary (default: 20, with --quick 5)
  --traces D  for forecast, policy, anomaly: a folder of CSV files (.csv, .csv.gz), or one of them, with a column
              "timestamp" or "step" and one column per series
  --traces D  for forecast, policy, anomaly: a folder of CSV files (.csv, .csv.gz) with a column "timestamp" or
              "step" and one column per series; anomaly: "timestamp" and "value", and windows.json
  --step S    between two steps of traces without timestamps, in seconds (default: 300)
  -h, --help  show help

A ratio says in its line below what is divided by what. A dash, or null, is a figure that could not be measured
here; a note says why. Targets are for a machine with 2 cores that emulates (TCG).
`;

process.exitCode = await main(process.argv.slice(2));

async function main(args: readonly string[]): Promise<number> {
  const out = new Output({ json: args.includes('--json') });
  try {
    const { name, help, quick, kills, traces, stepMs, markdown } = parse(args);
    if (help) {
      process.stdout.write(`${USAGE}\n${BENCHMARKS.map(helpOn).join('\n\n')}\n`);
      return 0;
    }
    if (name === undefined) {
      const list = BENCHMARKS.map(({ name, summary }) => ({ name, summary }));
      out.result(list, () => table(list.map((entry) => [entry.name, entry.summary])));
      return 0;
    }
    const toText = markdown ? reportMarkdown : reportText;
    await measure(find(name), { quick, kills, traces, stepMs, out, toText });
    return 0;
  } catch (thrown) {
    out.error(thrown);
    return thrown instanceof BenchError && thrown.code === 'BENCH_USAGE' ? 2 : exitCodeOf(thrown);
  }
}

function parse(args: readonly string[]) {
  try {
    const { values, positionals } = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        json: { type: 'boolean', default: false },
        markdown: { type: 'boolean', default: false },
        quick: { type: 'boolean', default: false },
        kills: { type: 'string' },
        traces: { type: 'string' },
        step: { type: 'string', default: '300' },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
    if (positionals.length > 1) throw new Error(`one benchmark at a time, not ${positionals.join(' ')}`);
    const { kills, step, ...plain } = values;
    return { ...plain, name: positionals[0], kills: killCount(kills), stepMs: stepLength(step) };
  } catch (thrown) {
    throw new BenchError('BENCH_USAGE', messageOf(thrown), {
      hint: '`npm run -s bench -- --help` shows the options.',
    });
  }
}

function killCount(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const kills = Number(text);
  if (Number.isInteger(kills) && kills >= 1 && kills <= KILLS_MAX) return kills;
  throw new Error(`--kills takes a whole number from 1 to ${KILLS_MAX}, not '${text}'`);
}

function stepLength(text: string): number {
  const seconds = Number(text);
  if (seconds > 0 && Number.isFinite(seconds)) return seconds * 1000;
  throw new Error(`--step takes a number of seconds, not '${text}'`);
}

function find(name: string): Benchmark {
  const found = BENCHMARKS.find((benchmark) => benchmark.name === name);
  if (found !== undefined) return found;
  throw new BenchError('BENCH_USAGE', `there is no benchmark '${name}'`, {
    hint: `There are: ${BENCHMARKS.map((benchmark) => benchmark.name).join(', ')}.`,
    facts: { name },
  });
}

interface MeasureOptions {
  readonly quick: boolean;
  readonly kills: number | undefined;
  readonly traces: string | undefined;
  readonly stepMs: number;
  readonly out: Output;
  readonly toText: typeof reportText;
}

async function measure(benchmark: Benchmark, { out, toText, ...options }: MeasureOptions): Promise<void> {
  using interruption = new Interruption();
  const machine = machineFacts();
  const run = new BenchRun(benchmark, {
    ...options,
    clock: systemClock,
    signal: interruption.signal,
    onProgress: (step) => process.stderr.write(`${step}\n`),
  });
  const used = await versions();
  await benchmark.run(run);
  const result = run.result(machine, used);
  out.result(result, () => toText(result, benchmark));
}

function helpOn({ name, summary, figures }: Benchmark): string {
  const rows = Object.entries(figures).map(([figure, info]) => {
    const target = targetText(info);
    return [`  ${figure}`, `${info.meaning}${target === '' ? '' : ` (target ${target})`}`];
  });
  return `${name}: ${summary}\n${table(rows)}`;
}
