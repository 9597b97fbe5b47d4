import { readFileSync } from 'node:fs';
import { checked, libc } from './libc.ts';

const CLOCK_BOOTTIME = 7;
const TIMESPEC_BYTES = 16;

/**
 * Milliseconds since this machine was started, with the time that it slept: clock_gettime(2), CLOCK_BOOTTIME. Nobody
 * can set it. What runs out while a host sleeps has run out for it when it wakes.
 */
export function bootTimeMs(): number {
  const timespec = new Uint8Array(TIMESPEC_BYTES);
  checked('clock_gettime', libc.clockGettime(CLOCK_BOOTTIME, timespec));
  const view = new DataView(timespec.buffer);
  return Number(view.getBigInt64(0, true)) * 1000 + Number(view.getBigInt64(8, true)) / 1e6;
}

/** Names this run of the machine: times of `bootTimeMs` compare within one only. */
export function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}
