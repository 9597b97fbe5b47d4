import { systemClock as clock } from '../../src/base/clock.ts';

/** What a console has said and nobody has taken yet. */
export class ConsoleText {
  #text = '';
  #changed = Promise.withResolvers<void>();

  add(text: string): void {
    this.#text += text;
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  /** Waits for a piece of text, and takes it and all before it out. */
  async take(pattern: RegExp, { deadlineMs }: { deadlineMs: number }): Promise<RegExpExecArray> {
    const late = Promise.withResolvers<never>();
    const cancel = clock.after(deadlineMs, () =>
      late.reject(new Error(`no ${pattern} in: ${this.#text.slice(-2000)}`)),
    );
    try {
      for (;;) {
        const match = pattern.exec(this.#text);
        if (match !== null) {
          this.#text = this.#text.slice(match.index + match[0].length);
          return match;
        }
        await Promise.race([this.#changed.promise, late.promise]);
      }
    } finally {
      cancel();
    }
  }
}
