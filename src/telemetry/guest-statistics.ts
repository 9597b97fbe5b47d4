/** What a guest says of its memory, in bytes; undefined what it does not say. */
export interface GuestMemoryStatistics {
  readonly totalBytes: number | undefined;
  readonly availableBytes: number | undefined;
  readonly freeBytes: number | undefined;
}

/** All ones of 64 bits: the guest has not said it. */
const UNSAID = 2 ** 63;

/**
 * `guest-stats` of a balloon, QEMU's docs/interop/virtio-balloon-stats.rst. Undefined before the guest's driver has answered for
 * the first time.
 */
export function parseGuestStatistics(answer: unknown): GuestMemoryStatistics | undefined {
  const { stats, 'last-update': lastUpdate } = (answer ?? {}) as Record<string, unknown>;
  if (typeof stats !== 'object' || stats === null || !(Number(lastUpdate) > 0)) return undefined;
  const bytes = (name: string) => {
    const value = (stats as Record<string, unknown>)[name];
    return typeof value === 'number' && value >= 0 && value < UNSAID ? value : undefined;
  };
  return {
    totalBytes: bytes('stat-total-memory'),
    availableBytes: bytes('stat-available-memory'),
    freeBytes: bytes('stat-free-memory'),
  };
}
