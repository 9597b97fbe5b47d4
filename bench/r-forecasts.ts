import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { LEVELS } from '../src/forecast/quantile-forecast.ts';

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

const SCRIPT = `
suppressPackageStartupMessages(library(forecast))
args <- commandArgs(trailingOnly = TRUE)
y <- scan(args[1], quiet = TRUE, na.strings = "NaN")
y <- as.numeric(na.interp(ts(y)))
h <- as.integer(args[3])
fit <- switch(args[2],
  auto.arima = auto.arima(ts(y)),
  ets = ets(ts(y)),
  tbats = tbats(msts(y, seasonal.periods = 288), use.parallel = FALSE))
f <- forecast(fit, h = h, level = c(20, 40, 60, 80, 90, 98))
q <- cbind(f$lower[, 4:1], f$mean, f$upper[, 1:6])
write.table(format(q, digits = 10), args[4], row.names = FALSE, col.names = FALSE, quote = FALSE)
`;

/** Whether R has Rob Hyndman's package forecast (Debian: r-cran-forecast). Undefined where not. */
export function rVersion(): string | undefined {
  const asked = spawnSync('Rscript', ['-e', 'cat(as.character(packageVersion("forecast")))'], {
    encoding: 'utf8',
  });
  return asked.status === 0 ? asked.stdout.trim() : undefined;
}

/** Forecasts of one method, by task, from a fresh fit at each origin. Stops at the deadline: then there are fewer. */
export async function forecastWithR(
  method: RMethod,
  tasks: readonly RTask[],
  { leads, deadlineMs, signal }: RRunOptions,
): Promise<readonly Float64Array[]> {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-bench-r-'));
  const done: Float64Array[] = [];
  const endAt = performance.now() + deadlineMs;
  try {
    const [script, input, output] = ['fit.R', 'in.txt', 'out.txt'].map((name) => join(folder, name));
    if (script === undefined || input === undefined || output === undefined) return done;
    writeFileSync(script, SCRIPT);
    for (const { values, origin } of tasks) {
      const leftMs = endAt - performance.now();
      if (leftMs <= 0) break;
      writeFileSync(input, values.subarray(Math.max(0, origin - FIT_STEPS[method]), origin).join('\n'));
      const child = spawn('Rscript', [script, input, method, String(leads), output], {
        stdio: ['ignore', 'ignore', 'pipe'],
        signal: AbortSignal.any([signal, AbortSignal.timeout(leftMs)]),
      });
      // An abort is also an 'error' event; what it means is decided below.
      child.on('error', () => undefined);
      const [complaint, [code]] = await Promise.all([text(child.stderr), once(child, 'close')]);
      signal.throwIfAborted();
      if (performance.now() >= endAt) break;
      if (code !== 0) throw new Error(`Rscript ended with ${code}: ${complaint.slice(0, 300)}`);
      const rows = readFileSync(output, 'utf8').trim().split(/\s+/).map(Number);
      done.push(straightened(Float64Array.from(rows)));
    }
    return done;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Use is not negative, which R does not know. */
function straightened(rows: Float64Array): Float64Array {
  for (let at = 0; at < rows.length; at += 1) rows[at] = Math.max(0, rows[at] ?? 0);
  return rows.length % LEVELS.length === 0 ? rows : new Float64Array(0);
}
