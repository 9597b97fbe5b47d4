import { execFileSync } from 'node:child_process';
import { closeSync, constants, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const SOURCE = fileURLToPath(new URL('odd-clock.c', import.meta.url));
/** Far from what this machine has, in seconds. */
const NAMESPACE_OFFSETS = { monotonic: 5_000_000, boottime: 9_000_000 };

/**
 * The clocks of a host whose processes run in this machine: its wall clock can be set, its other clocks began at another time
 * (a time namespace) and run at another rate.
 */
export class OddClock {
  /** For processes of that host. A QEMU has the clock rates of the machine: a keeper gives it other libraries. */
  readonly environment: Readonly<Record<string, string>>;
  readonly #file: string;

  /** Compiles what its processes are to load. Files go to `folder`. */
  constructor(folder: string, { rate }: { readonly rate: number }) {
    const library = join(folder, 'odd-clock.so');
    this.#file = join(folder, 'odd-clock');
    execFileSync('gcc', ['-shared', '-fPIC', '-O1', '-Wall', '-Werror', '-o', library, SOURCE]);
    this.environment = {
      LD_PRELOAD: library,
      ODD_CLOCK_FILE: this.#file,
      ODD_CLOCK_RATE: String(rate),
    };
    this.setWall(0);
  }

  /** So far ahead of the wall clock of this machine, or behind it, from now on and for all processes. */
  setWall(offsetMs: number): void {
    const offsetNs = new BigInt64Array([BigInt(offsetMs) * 1_000_000n]);
    // In place, and never shorter than what is mapped.
    const fd = openSync(this.#file, constants.O_RDWR | constants.O_CREAT);
    writeSync(fd, new Uint8Array(offsetNs.buffer), 0, 8, 0);
    closeSync(fd);
  }

  /** A command as it is run where the clocks began at another time. */
  elsewhen(words: readonly string[]): string[] {
    const { monotonic, boottime } = NAMESPACE_OFFSETS;
    return ['unshare', '--time', '--monotonic', String(monotonic), '--boottime', String(boottime), ...words];
  }
}
