import { styleText } from 'node:util';
import { messageOf, UnderstudyError } from '../base/errors.ts';

export type Mark = 'ok' | 'warn' | 'fail';

const COLOURS = { ok: 'green', warn: 'yellow', fail: 'red' } as const;

/**
 * What a command says. For people: results on standard output, progress and errors on standard error. With
 * `--json`: one JSON object or a stream of JSON lines on standard output, nothing else there; an error is the last
 * line, `{"error": {"code", "message", "hint"}}`.
 */
export class Output {
  readonly json: boolean;
  readonly #rewrites = process.stderr.isTTY === true;
  #lastStep = '';
  #lineIsOpen = false;

  constructor({ json }: { json: boolean }) {
    this.json = json;
  }

  /** `toText` is asked only when a person reads. Text without colours when it goes into a file. */
  result(value: unknown, toText: () => string): void {
    this.#closeLine();
    const text = this.json ? JSON.stringify(value) : toText();
    if (text !== '') process.stdout.write(`${text}\n`);
  }

  /** What is being done now. On a terminal `detail` is kept up to date in the same line. */
  progress(step: string, detail = ''): void {
    if (this.json) return;
    if (this.#rewrites) {
      if (step !== this.#lastStep) this.#closeLine();
      process.stderr.write(`\r\x1b[K${step}${detail === '' ? '' : ` ${detail}`}`);
      this.#lineIsOpen = true;
    } else if (step !== this.#lastStep) {
      process.stderr.write(`${step}\n`);
    }
    this.#lastStep = step;
  }

  error(thrown: unknown): void {
    this.#closeLine();
    const facts = errorFacts(thrown);
    if (this.json) {
      process.stdout.write(`${JSON.stringify({ error: facts })}\n`);
      return;
    }
    const label = styleText('red', `error ${facts.code}:`, { stream: process.stderr });
    process.stderr.write(`${label} ${facts.message}\n`);
    if (facts.hint !== undefined) process.stderr.write(`hint: ${facts.hint}\n`);
    if (process.env.UNDERSTUDY_DEBUG && thrown instanceof Error) process.stderr.write(`${causes(thrown)}\n`);
  }

  #closeLine(): void {
    if (this.#lineIsOpen) process.stderr.write('\n');
    this.#lineIsOpen = false;
  }
}

export function marked(mark: Mark, text: string): string {
  return styleText(COLOURS[mark], text, { stream: process.stdout });
}

/** Columns as wide as their widest cell, two spaces apart. Cells without colours. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [column, cell] of row.entries()) widths[column] = Math.max(widths[column] ?? 0, cell.length);
  }
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

export function duration(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

function errorFacts(thrown: unknown): { code: string; message: string; hint: string | undefined } {
  if (thrown instanceof UnderstudyError) {
    return thrown.toJSON() as ReturnType<typeof errorFacts>;
  }
  const hint = 'This is a fault of Understudy. Repeat with UNDERSTUDY_DEBUG=1 and report what it says.';
  return { code: 'CLI_INTERNAL', message: messageOf(thrown), hint };
}

function causes(error: Error): string {
  const below = error.cause instanceof Error ? `\ncaused by: ${causes(error.cause)}` : '';
  return `${error.stack ?? error.message}${below}`;
}
