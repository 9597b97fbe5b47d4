/** One line of a log: when, how bad, what happened, and facts. Implementations write JSON lines. */
export interface Logger {
  debug(message: string, facts?: Readonly<Record<string, unknown>>): void;
  info(message: string, facts?: Readonly<Record<string, unknown>>): void;
  warn(message: string, facts?: Readonly<Record<string, unknown>>): void;
  error(message: string, facts?: Readonly<Record<string, unknown>>): void;
}

type Level = keyof Logger;

/** Writes JSON lines to `write`, e.g. a keeper's log file. */
export function jsonLogger(write: (line: string) => void, wallMs: () => number): Logger {
  const at =
    (level: Level) =>
    (message: string, facts: Readonly<Record<string, unknown>> = {}) =>
      write(`${JSON.stringify({ time: new Date(wallMs()).toISOString(), level, message, ...facts })}\n`);
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}

export const silentLogger: Logger = { debug() {}, info() {}, warn() {}, error() {} };
