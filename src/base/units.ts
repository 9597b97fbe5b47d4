/** A type that only its own constructor makes, so that confusable numbers do not mix. */
export type Brand<Base, Name extends string> = Base & { readonly [brand]: Name };
declare const brand: unique symbol;

/** Bytes of one page of guest memory. Understudy tracks and sends memory in pages of this size. */
export const PAGE_BYTES = 4096;

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;
export const TIB = 1024 * GIB;

const SUFFIX_BYTES: Readonly<Record<string, number>> = {
  '': 1,
  B: 1,
  K: KIB,
  KiB: KIB,
  M: MIB,
  MiB: MIB,
  G: GIB,
  GiB: GIB,
  T: TIB,
  TiB: TIB,
};

/** Reads sizes as people write them: `256MiB`, `4G`, `1048576`. Undefined if it is no size. */
export function parseBytes(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$/.exec(text.trim());
  const factor = match === null ? undefined : SUFFIX_BYTES[match[2] ?? ''];
  if (match === null || factor === undefined) return undefined;
  const bytes = Number(match[1]) * factor;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** `268435456` → `256 MiB`. */
export function formatBytes(bytes: number): string {
  for (const [unit, size] of [
    ['TiB', TIB],
    ['GiB', GIB],
    ['MiB', MIB],
    ['KiB', KIB],
  ] as const) {
    if (bytes >= size) return `${Number((bytes / size).toFixed(1))} ${unit}`;
  }
  return `${bytes} B`;
}
