/**
 * What every error of Understudy has in common: a stable code that scripts may match on, a sentence for
 * people, what to do next, and the cause it was made from. Each module has one subclass with its own codes;
 * all codes are listed in docs/errors.md, and a test holds the two against each other.
 */
export interface ErrorDetails {
  /** What a person can do about it, as a sentence. */
  readonly hint?: string;
  readonly cause?: unknown;
  /** Facts for logs and `--json`: names, paths, numbers. Never secrets. */
  readonly facts?: Readonly<Record<string, unknown>>;
}

export abstract class UnderstudyError<Code extends string = string> extends Error {
  readonly code: Code;
  readonly hint: string | undefined;
  readonly facts: Readonly<Record<string, unknown>>;

  constructor(code: Code, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = new.target.name;
    this.code = code;
    this.hint = details.hint;
    this.facts = details.facts ?? {};
  }

  toJSON(): Record<string, unknown> {
    // What every error has comes last: a fact of the same name must not take its place.
    return { ...this.facts, code: this.code, message: this.message, hint: this.hint };
  }
}

/** What was thrown, for an event or a log. */
export function errorFacts(thrown: unknown): Record<string, unknown> {
  return thrown instanceof UnderstudyError
    ? { code: thrown.code, error: thrown.message }
    : { error: messageOf(thrown) };
}

/** The message of anything that was thrown. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}
