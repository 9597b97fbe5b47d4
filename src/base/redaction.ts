const REDACTED = '[redacted]';

/** Names of what opens a door, alone or at the end of a longer name: `authorization`, `apiToken`, `client_secret`. */
const SECRET_NAME = /(?:authorization|cookie|token|secret|passwd|password|passphrase|private[-_]?key)$/i;
/** As it stands in a header, wherever somebody quotes one. */
const CREDENTIAL = /\b(Bearer|Basic)\s+[\w.~+/=-]+/gi;
const DEPTH_MAX = 8;

/**
 * A copy of facts without their secrets, whatever the depth they lie in. The last line of defence: who logs should not
 * have secrets at hand. Beyond a depth of 8 nothing is written at all, so that a circle ends.
 */
export function redacted(facts: Readonly<Record<string, unknown>>, depth = 0): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(facts).map(([name, value]) => [
      name,
      SECRET_NAME.test(name) && isText(value) ? REDACTED : clean(value, depth + 1),
    ]),
  );
}

function clean(value: unknown, depth: number): unknown {
  if (typeof value === 'string') return value.replace(CREDENTIAL, `$1 ${REDACTED}`);
  // JSON knows none; a log line that throws would be worse than one that is not exact.
  if (typeof value === 'bigint') return String(value);
  if (typeof value !== 'object' || value === null) return value;
  if (depth > DEPTH_MAX) return '[too deep]';
  if ('toJSON' in value && typeof value.toJSON === 'function') return clean(value.toJSON(), depth + 1);
  if (Array.isArray(value)) return value.map((item) => clean(item, depth + 1));
  if (value instanceof Error) return clean(value.message, depth);
  return redacted(value as Record<string, unknown>, depth);
}

/** The token of a VM, which says how often another QEMU began to act, is a number and no secret. */
function isText(value: unknown): boolean {
  return value !== undefined && value !== null && typeof value !== 'number' && typeof value !== 'boolean';
}
