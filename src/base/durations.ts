const UNIT_MS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** `250ms`, `90s`, `15m`, `12h`, `30d` in milliseconds; undefined where it is no such time. */
export function parseDuration(text: string): number | undefined {
  const match = /^(\d{1,6})(ms|[smhd])$/.exec(text);
  const unit = match?.[2] as keyof typeof UNIT_MS | undefined;
  return match === null || unit === undefined ? undefined : Number(match[1]) * UNIT_MS[unit];
}
