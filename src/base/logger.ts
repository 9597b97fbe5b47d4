import { pino } from 'pino';
import { redacted } from './redaction.ts';

/** One line of a log: when, how bad, what happened, and facts. Implementations write JSON lines. */
export interface Logger {
  debug(message: string, facts?: Readonly<Record<string, unknown>>): void;
  info(message: string, facts?: Readonly<Record<string, unknown>>): void;
  warn(message: string, facts?: Readonly<Record<string, unknown>>): void;
  error(message: string, facts?: Readonly<Record<string, unknown>>): void;
}

const LEVELS = ['debug', 'info', 'warn', 'error'] as const;

export type LogLevel = (typeof LEVELS)[number];
type Environment = Readonly<Record<string, string | undefined>>;

/** What every line has; a fact of the same name must not take its place. */
const OWN_FIELDS: ReadonlySet<string> = new Set(['time', 'level', 'message']);

/**
 * Writes JSON lines to `write`, e.g. a keeper's log file: `time` (ISO 8601), `level`, `message` and the facts. What is
 * below `level` is left out. Facts that look like secrets are not written: see {@link redacted}.
 */
export function jsonLogger(
  write: (line: string) => void,
  wallMs: () => number,
  { level = 'info' }: { readonly level?: LogLevel } = {},
): Logger {
  const log = pino(
    {
      level,
      // Neither process id nor host name: journald knows both, and a keeper's file belongs to one process.
      base: null,
      messageKey: 'message',
      timestamp: () => `,"time":"${new Date(wallMs()).toISOString()}"`,
      formatters: { level: (label) => ({ level: label }), log: factsOf },
    },
    // Synchronous: the last words before a crash are in it.
    { write },
  );
  const at =
    (label: LogLevel) =>
    (message: string, facts: Readonly<Record<string, unknown>> = {}): void =>
      log[label](facts, message);
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}

/** Leaves out what is below the least level, which may change meanwhile. */
export function levelledLogger(logger: Logger, leastLevel: () => LogLevel): Logger {
  const at =
    (level: LogLevel): Logger[LogLevel] =>
    (message, facts) => {
      if (LEVELS.indexOf(level) >= LEVELS.indexOf(leastLevel())) logger[level](message, facts);
    };
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}

export const silentLogger: Logger = { debug() {}, info() {}, warn() {}, error() {} };

/** The log of this process, of the level that the environment says. A wrong one is told: no VM fails to start for it. */
export function processLogger(
  write: (line: string) => void,
  wallMs: () => number,
  env: Environment = process.env,
): Logger {
  const level = logLevelFrom(env);
  const log = jsonLogger(write, wallMs, { level: level ?? 'info' });
  if (level === undefined)
    log.warn('UNDERSTUDY_LOG_LEVEL is no level', { given: env.UNDERSTUDY_LOG_LEVEL, levels: LEVELS });
  return log;
}

/** `UNDERSTUDY_LOG_LEVEL`; undefined for a word that is no level. */
export function logLevelFrom(env: Environment): LogLevel | undefined {
  const word = env.UNDERSTUDY_LOG_LEVEL || 'info';
  return LEVELS.find((level) => level === word);
}

function factsOf(facts: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(redacted(facts)).map(([name, value]) => [OWN_FIELDS.has(name) ? `${name}_` : name, value]),
  );
}
