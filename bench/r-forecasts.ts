import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { messageOf } from '../src/base/errors.ts';
import { LEVELS } from '../src/forecast/quantile-forecast.ts';
import { BenchError } from './bench-error.ts';

export const R_METHODS = ['auto.arima', 'ets', 'tbats'] as const;
export type RMethod = (typeof R_METHODS)[number];

export interface RTask {
  readonly values: Float64Array;
  readonly origin: number;
}

export interface RRunOptions {
  readonly leads: number;
  readonly deadlineMs: number;
  readonly signal: AbortSignal;
}

/** Days that a model is fitted to: more takes minutes for each, and the package's defaults gain nothing by it. */
const FIT_STEPS: Record<RMethod, number> = { 'auto.arima': 2016, ets: 2016, tbats: 1152 };

/** A line of the input is a series; a line of the output is what was said of it. */
const SCRIPT = `
suppressPackageStartupMessages(library(forecast))
args <- commandArgs(trailingOnly = TRUE)
h <- as.integer(args[3])
for (line in readLines(args[1])) {
  y <- as.numeric(strsplit(line, " ")[[1]])
  y <- as.numeric(na.interp(ts(y)))
  fit <- switch(args[2],
    auto.arima = auto.arima(ts(y)),
    ets = ets(ts(y)),
    tbats = tbats(msts(y, seasonal.periods = 288), use.parallel = FALSE))
  f <- forecast(fit, h = h, level = c(20, 40, 60, 80, 90, 98))
  q <- cbind(f$lower[, 4:1], f$mean, f$upper[, 1:6])
  cat(formatC(as.vector(t(q)), digits = 10, format = "g"), "\\n", file = args[4], append = TRUE)
}
`;

/** Whether R has Rob Hyndman's package forecast (Debian: r-cran-forecast). Undefined where not. */
export function rVersion(): string | undefined {
  const asked = spawnSync('Rscript', ['-e', 'cat(as.character(packageVersion("forecast")))'], {
    encoding: 'utf8',
  });
  return asked.status === 0 ? asked.stdout.trim() : undefined;
}

/** Forecasts of one method, by task, from a fresh fit for each. Stops at the deadline: then there are fewer. */
export async function forecastWithR(
  method: RMethod,
  tasks: readonly RTask[],
  { leads, deadlineMs, signal }: RRunOptions,
): Promise<readonly Float64Array[]> {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-bench-r-'));
  try {
    const [script, input, output] = [join(folder, 'fit.R'), join(folder, 'in.txt'), join(folder, 'out.txt')];
    writeFileSync(script, SCRIPT);
    writeFileSync(output, '');
    const lines = tasks.map(({ values, origin }) =>
      values.subarray(Math.max(0, origin - FIT_STEPS[method]), origin).join(' '),
    );
    writeFileSync(input, lines.map((line) => `${line}\n`).join(''));
    const tooLong = AbortSignal.timeout(deadlineMs);
    const child = spawn('Rscript', [script, input, method, String(leads), output], {
      stdio: ['ignore', 'ignore', 'pipe'],
      signal: AbortSignal.any([signal, tooLong]),
    });
    // An abort is also an 'error' event; what it means is decided below.
    child.on('error', () => undefined);
    const closed = new Promise<number | null>((resolve) => child.once('close', resolve));
    const [complaint, code] = await Promise.all([text(child.stderr).catch(messageOf), closed]);
    signal.throwIfAborted();
    if (code !== 0 && !tooLong.aborted) {
      throw new BenchError(
        'BENCH_PEER_FAILED',
        `R's ${method} ended with ${code}: ${complaint.slice(0, 300)}`,
        {
          hint: 'Try the same with Rscript by hand.',
        },
      );
    }
    // A line that has no end was cut off.
    const said = readFileSync(output, 'utf8').split('\n').slice(0, -1);
    return said.map((line) => straightened(Float64Array.from(line.trim().split(/\s+/), Number)));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Use is not negative, which R does not know. */
function straightened(rows: Float64Array): Float64Array {
  for (let at = 0; at < rows.length; at += 1) rows[at] = Math.max(0, rows[at] ?? 0);
  return rows.length % LEVELS.length === 0 ? rows : new Float64Array(0);
}
