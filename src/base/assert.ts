/** A broken invariant: a bug in Understudy, never the user's fault. Not caught, so that the process stops. */
export class InvariantViolation extends Error {
  override readonly name = 'InvariantViolation';
}

/** Assertions stay on in production: going on with a broken invariant may let two machines act. */
export function assert(condition: unknown, invariant: string): asserts condition {
  if (!condition) throw new InvariantViolation(invariant);
}

/** Marks a branch that the types say cannot be reached. */
export function unreachable(value: never): never {
  throw new InvariantViolation(`unexpected value ${JSON.stringify(value)}`);
}
