import { closeSync, openSync, writeFileSync } from 'node:fs';
import { assert } from '../base/assert.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { checked, lastErrno, libc } from './libc.ts';
import { fromNodeError } from './linux-error.ts';
import { Mapping } from './mapping.ts';

/** _IOWR('f', 16, struct pm_scan_arg), Linux 6.7: Documentation/admin-guide/mm/pagemap.rst */
const PAGEMAP_SCAN = 0xc0606610;
const PM_SCAN_WP_MATCHING = 1;
const PM_SCAN_CHECK_WPASYNC = 2;
const PAGE_IS_WRITTEN = 1 << 1;

const ENTRY_BYTES = 8;
/** Bit 55 of a pagemap entry, as seen in its upper 32 bits. */
const SOFT_DIRTY_HIGH = 1 << (55 - 32);

const ARGUMENT_BYTES = 96;
const REGION_BYTES = 24;
/** Regions that one call can return; the scan goes on where it stopped. */
const REGION_LIMIT = 4096;
/** Entries read at a time: those of 128 MiB. */
const ENTRY_LIMIT = 32_768;

/** A range of addresses of the scanned process. */
export interface AddressRange {
  readonly startAddress: number;
  readonly lengthBytes: number;
}

interface ScanOptions extends AddressRange {
  /** Write-protects the reported pages again in the same step, so that the next scan sees later writes only. */
  readonly rearm: boolean;
  /** Stop after this many pages. */
  readonly maxPages?: number;
}

/**
 * /proc/PID/pagemap of a process. Stays with the memory of the process that was opened, also when its id is
 * used again.
 */
export class Pagemap implements Disposable {
  readonly #fd: number;
  readonly #scratch: Mapping;
  #disposed = false;

  private constructor(fd: number) {
    this.#fd = fd;
    this.#scratch = Mapping.anonymous(
      Math.max(ARGUMENT_BYTES + REGION_LIMIT * REGION_BYTES, ENTRY_LIMIT * ENTRY_BYTES),
    );
  }

  /** @throws LinuxError: `ENOENT` for no such process, `EACCES` for one that this user may not inspect. */
  static open(pid: number): Pagemap {
    try {
      return new Pagemap(openSync(`/proc/${pid}/pagemap`, 'r'));
    } catch (thrown) {
      throw fromNodeError('open pagemap', thrown, { facts: { pid } });
    }
  }

  /**
   * Pages written since the range was write-protected (by userfaultfd in mode WP_ASYNC) or last scanned with
   * `rearm`. One ioctl per 4096 regions. Undefined when the process has given up its memory, that is, dies.
   * @throws LinuxError: `ENOTTY` before Linux 6.7, `EPERM` when part of the range is not protected that way.
   */
  scanWritten(options: ScanOptions): AddressRange[] | undefined {
    const { startAddress, lengthBytes, rearm, maxPages = 0 } = options;
    const endAddress = startAddress + lengthBytes;
    const regions: AddressRange[] = [];
    let pagesLeft = maxPages;
    for (let at = startAddress; at < endAddress; ) {
      const found = this.#scanOnce({ start: at, end: endAddress, rearm, maxPages: pagesLeft });
      if (found === undefined) return undefined;
      for (const region of found.regions) {
        regions.push(region);
        pagesLeft -= region.lengthBytes / PAGE_BYTES;
      }
      if (maxPages > 0 && pagesLeft <= 0) break;
      assert(found.walkEnd > at, 'a page map scan advances');
      at = found.walkEnd;
    }
    // Older kernels scan a dying process, find nothing and report no error. Memory that is there now was
    // there all the time.
    return this.#readEntries(startAddress / PAGE_BYTES, 1) === 0 ? undefined : regions;
  }

  #scanOnce(scan: { start: number; end: number; rearm: boolean; maxPages: number }) {
    const { address, bytes } = this.#scratch;
    // struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages,
    // category_inverted, category_mask, category_anyof_mask, return_mask
    const argument = new BigUint64Array(bytes.buffer, 0, ARGUMENT_BYTES / 8);
    const flags = PM_SCAN_CHECK_WPASYNC | (scan.rearm ? PM_SCAN_WP_MATCHING : 0);
    const fields = [ARGUMENT_BYTES, flags, scan.start, scan.end, 0, address + ARGUMENT_BYTES, REGION_LIMIT];
    fields.push(scan.maxPages, 0, PAGE_IS_WRITTEN, 0, PAGE_IS_WRITTEN);
    for (const [index, value] of fields.entries()) argument[index] = BigInt(value);
    const count = libc.ioctlAt(this.#fd, PAGEMAP_SCAN, address);
    if (count === -1 && lastErrno() === 'ESRCH') return undefined;
    checked('ioctl PAGEMAP_SCAN', count);
    const found = new BigUint64Array(bytes.buffer, ARGUMENT_BYTES, count * 3);
    const regions: AddressRange[] = [];
    for (let index = 0; index < found.length; index += 3) {
      const startAddress = Number(found[index]);
      regions.push({ startAddress, lengthBytes: Number(found[index + 1]) - startAddress });
    }
    return { regions, walkEnd: Number(argument[4]) };
  }

  /**
   * Pages whose soft-dirty bit is set, that is written since `clearSoftDirty`. The bit goes with the page
   * table entry: a page that was unmapped or swapped out since has lost it. Undefined as for `scanWritten`.
   */
  softDirty(range: AddressRange): AddressRange[] | undefined {
    const firstEntry = range.startAddress / PAGE_BYTES;
    const entryCount = Math.ceil(range.lengthBytes / PAGE_BYTES);
    const words = new Uint32Array(this.#scratch.bytes.buffer, 0, ENTRY_LIMIT * 2);
    const dirty: AddressRange[] = [];
    let runStart: number | undefined;
    const endRunAt = (entry: number) => {
      if (runStart === undefined) return;
      const startAddress = (firstEntry + runStart) * PAGE_BYTES;
      dirty.push({ startAddress, lengthBytes: (entry - runStart) * PAGE_BYTES });
      runStart = undefined;
    };
    for (let done = 0; done < entryCount; ) {
      const count = this.#readEntries(firstEntry + done, Math.min(ENTRY_LIMIT, entryCount - done));
      if (count === 0) return undefined;
      for (let index = 0; index < count; index++) {
        // The upper half of a little-endian entry is its second word.
        if (((words[2 * index + 1] ?? 0) & SOFT_DIRTY_HIGH) === 0) endRunAt(done + index);
        else runStart ??= done + index;
      }
      done += count;
    }
    endRunAt(entryCount);
    return dirty;
  }

  /** Reads entries into the scratch mapping. Zero when the memory of the process is gone. */
  #readEntries(firstEntry: number, count: number): number {
    const { address } = this.#scratch;
    const bytes = libc.pread(this.#fd, address, count * ENTRY_BYTES, firstEntry * ENTRY_BYTES);
    if (bytes === -1 && lastErrno() === 'ESRCH') return 0;
    return checked('pread pagemap', bytes) / ENTRY_BYTES;
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#scratch[Symbol.dispose]();
    closeSync(this.#fd);
  }
}

/** Clears the soft-dirty bits of all pages of a process and protects them anew: /proc/PID/clear_refs. @throws LinuxError. */
export function clearSoftDirty(pid: number): void {
  try {
    writeFileSync(`/proc/${pid}/clear_refs`, '4');
  } catch (thrown) {
    throw fromNodeError('write clear_refs', thrown, { facts: { pid } });
  }
}

/** Whether this kernel keeps soft-dirty bits at all: without, they read as clear, which looks like no writes. */
export function kernelKeepsSoftDirty(): boolean {
  using page = Mapping.anonymous(PAGE_BYTES);
  using pagemap = Pagemap.open(process.pid);
  const range = { startAddress: page.address, lengthBytes: PAGE_BYTES };
  page.bytes[0] = 1;
  if (pagemap.softDirty(range)?.length !== 1) return false;
  clearSoftDirty(process.pid);
  const cleared = pagemap.softDirty(range)?.length === 0;
  page.bytes[0] = 2;
  return cleared && pagemap.softDirty(range)?.length === 1;
}
