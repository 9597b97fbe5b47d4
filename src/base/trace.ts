/**
 * A trace is the id of the request on whose behalf something is done, from the API down to the commands that QEMU
 * gets. Callers choose it (`X-Request-Id`), so what it may hold is narrow: it is written to logs and onto wires.
 */
export type Trace = string;

const TRACE = /^[\w.:-]{1,64}$/;

export function isTrace(text: unknown): text is Trace {
  return typeof text === 'string' && TRACE.test(text);
}

/** For an event or a log: nothing where nobody asked. */
export function traceFacts(trace: Trace | undefined): { readonly trace?: Trace } {
  return trace === undefined ? {} : { trace };
}
