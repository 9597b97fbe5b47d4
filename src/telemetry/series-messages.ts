import type { RangeQuery } from './series-store.ts';
import type { SqliteSeriesOptions } from './sqlite-series.ts';
import type { TelemetryErrorCode } from './telemetry-error.ts';
import { TelemetryError } from './telemetry-error.ts';
import type { VictoriaMetricsOptions } from './victoria-metrics-series.ts';

type Plain<Options> = Omit<Options, 'wallMs' | 'clock'>;

/** What the thread is to open. */
export type EngineChoice =
  | { readonly kind: 'sqlite'; readonly options: Plain<SqliteSeriesOptions> }
  | { readonly kind: 'victoriametrics'; readonly options: Plain<VictoriaMetricsOptions> };

export type Question =
  | { readonly kind: 'append'; readonly batch: Uint8Array }
  | { readonly kind: 'range'; readonly query: RangeQuery }
  | { readonly kind: 'metrics' | 'forget'; readonly vm: string }
  | { readonly kind: 'usage' | 'close' };

/** Questions are answered in any order; number 0 is the opening. */
export interface Asked {
  readonly number: number;
  readonly question: Question;
}

export type Answered =
  | { readonly number: number; readonly kind: 'done'; readonly result: unknown }
  | { readonly number: number; readonly kind: 'failed'; readonly error: PlainError };

interface PlainError {
  readonly code: TelemetryErrorCode | undefined;
  readonly message: string;
  readonly hint: string | undefined;
  readonly facts: Readonly<Record<string, unknown>>;
}

/** An error as it can be sent: classes do not survive between threads. */
export function plainError(thrown: unknown): PlainError {
  if (thrown instanceof TelemetryError)
    return { code: thrown.code, message: thrown.message, hint: thrown.hint, facts: thrown.facts };
  const message = thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown);
  return { code: undefined, message, hint: undefined, facts: {} };
}

export function errorFrom({ code, message, hint, facts }: PlainError): TelemetryError {
  return new TelemetryError(code ?? 'TELEMETRY_STORE_FAILED', message, {
    ...(hint === undefined ? {} : { hint }),
    facts,
  });
}
