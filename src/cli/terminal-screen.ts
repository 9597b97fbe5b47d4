import { emitKeypressEvents } from 'node:readline';

const ENTER = '\x1b[?1049h\x1b[?25l';
const LEAVE = '\x1b[?25h\x1b[?1049l';

/** The part of a terminal's ends that a screen needs; `process.stdin` and `process.stdout` are such. */
export type TerminalInput = NodeJS.ReadableStream & { setRawMode?(raw: boolean): unknown };
export interface TerminalOutput extends NodeJS.EventEmitter {
  readonly columns?: number;
  readonly rows?: number;
  readonly writableNeedDrain: boolean;
  write(text: string): boolean;
}

export interface TerminalEnds {
  readonly input: TerminalInput;
  readonly output: TerminalOutput;
}

/**
 * A terminal as a screen of lines, with keys. It is given back as it was, whatever ends the process: at disposal, and
 * else when the process exits, as it does after an exception that nobody caught.
 */
export class TerminalScreen implements Disposable {
  readonly #ends: TerminalEnds;
  readonly #onKeyPress: (text: string | undefined, key: KeyPress) => void;
  readonly #onResize: () => void;
  readonly #restore = () => this.#leave();
  #isOpen = true;

  constructor(ends: TerminalEnds, { onKey, onResize }: ScreenListeners) {
    this.#ends = ends;
    this.#onKeyPress = (text, key) => onKey(keyOf(text, key));
    this.#onResize = onResize;
    const { input, output } = ends;
    process.on('exit', this.#restore);
    output.write(ENTER);
    output.on('resize', this.#onResize);
    input.setRawMode?.(true);
    // Sequences that several bytes make, in whatever pieces they come.
    emitKeypressEvents(input);
    input.on('keypress', this.#onKeyPress);
    input.resume();
  }

  get columns(): number {
    return this.#ends.output.columns || 80;
  }

  get rows(): number {
    return this.#ends.output.rows || 24;
  }

  /** One frame. A terminal that does not keep up misses some: nothing is kept for it. */
  draw(lines: readonly string[]): void {
    const { output } = this.#ends;
    if (!this.#isOpen || output.writableNeedDrain) return;
    output.write(`\x1b[H${lines.map((line) => `${line}\x1b[K`).join('\r\n')}\x1b[J`);
  }

  [Symbol.dispose](): void {
    process.off('exit', this.#restore);
    this.#leave();
  }

  #leave(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    const { input, output } = this.#ends;
    output.off('resize', this.#onResize);
    input.off('keypress', this.#onKeyPress);
    input.setRawMode?.(false);
    input.pause();
    output.write(LEAVE);
  }
}

/** What `emitKeypressEvents` of Node tells of a key. */
interface KeyPress {
  readonly name?: string;
  readonly ctrl?: boolean;
}

export interface ScreenListeners {
  /** A character, the name of a key (`up`), or `ctrl-c`. */
  readonly onKey: (key: string) => void;
  readonly onResize: () => void;
}

/** A key: the character that it types, or else its name. */
function keyOf(text: string | undefined, { name, ctrl }: KeyPress): string {
  if (ctrl === true) return `ctrl-${name}`;
  return text?.length === 1 ? text : (name ?? '');
}
