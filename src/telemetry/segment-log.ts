import {
  closeSync,
  fdatasyncSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { messageOf } from '../base/errors.ts';
import { makeDirectory } from '../base/make-directory.ts';
import { MIB } from '../base/units.ts';
import { tryLockExclusive } from '../linux/file.ts';
import { TelemetryError } from './telemetry-error.ts';

const SEGMENT_NAME = /^(\d{12})\.segment$/;
const SEGMENT_BYTES_MAX = 8 * MIB;
/** A whole log is so many segments: when it is full, this part of it is dropped at a time. */
const SEGMENTS = 8;

/** Little-endian: bytes of the payload, CRC-32 of all that follows, kind, count (all 4 bytes), time (8 bytes, double). */
const HEADER_BYTES = 24;
const SUMMED_FROM = 8;

export interface Entry {
  /** What the payload is, to whoever wrote it. */
  readonly kind: number;
  /** Samples in it. */
  readonly count: number;
  /** Unix time in ms. */
  readonly timeMs: number;
  readonly payload: Uint8Array;
}

export interface Place {
  /** Number of the segment. */
  readonly segment: number;
  readonly offset: number;
}

interface Segment {
  readonly number: number;
  readonly fd: number;
  bytes: number;
  /** Samples in it. */
  count: number;
}

/**
 * What waits on disk, in the order in which it came: files that are appended to and deleted as a whole, from the oldest on. An
 * entry is on disk when `append` returns. One that was cut short by the death of a process or machine is not there. One process
 * at a time.
 */
export class SegmentLog {
  readonly #directory: string;
  readonly #maxBytes: number;
  readonly #lockFd: number;
  readonly #segments: Segment[] = [];

  /** @throws TelemetryError TELEMETRY_STORE_UNUSABLE, TELEMETRY_STORE_BUSY */
  constructor(directory: string, { maxBytes }: { maxBytes: number }) {
    this.#directory = directory;
    this.#maxBytes = maxBytes;
    let lockFd: number | undefined;
    try {
      makeDirectory(directory, { mode: 0o700 });
      lockFd = openSync(join(directory, 'lock'), 'a', 0o600);
      if (!tryLockExclusive(lockFd)) throw busy(directory);
      for (const name of readdirSync(directory).sort()) {
        const match = SEGMENT_NAME.exec(name);
        if (match !== null) this.#open(Number(match[1]));
      }
      this.#lockFd = lockFd;
      this.roll();
    } catch (thrown) {
      for (const { fd } of this.#segments) closeSync(fd);
      if (lockFd !== undefined) closeSync(lockFd);
      if (thrown instanceof TelemetryError) throw thrown;
      throw new TelemetryError('TELEMETRY_STORE_UNUSABLE', `cannot use ${directory}: ${messageOf(thrown)}`, {
        hint: 'See that the directory belongs to this user, and that the disk has room and is whole.',
        facts: { directory },
        cause: thrown,
      });
    }
  }

  get bytes(): number {
    return this.#segments.reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** Where the oldest entry is, or will be. */
  get start(): Place {
    return { segment: this.#segments[0]?.number ?? 0, offset: 0 };
  }

  /** Where the next entry will be. */
  get end(): Place {
    const last = this.#last;
    return { segment: last.number, offset: last.bytes };
  }

  /** Closed segments, the oldest first: nothing is added to them. */
  get closed(): readonly number[] {
    return this.#segments.slice(0, -1).map(({ number }) => number);
  }

  /** Whether it has to be made room for before this many bytes of payload can be appended. */
  isFullFor(payloadBytes: number): boolean {
    return this.bytes + HEADER_BYTES + payloadBytes > this.#maxBytes;
  }

  /** @throws what the file system says; then nothing was appended */
  append({ kind, count, timeMs, payload }: Entry): void {
    const frame = new Uint8Array(HEADER_BYTES + payload.length);
    const view = new DataView(frame.buffer);
    view.setUint32(0, payload.length, true);
    view.setUint32(8, kind, true);
    view.setUint32(12, count, true);
    view.setFloat64(16, timeMs, true);
    frame.set(payload, HEADER_BYTES);
    view.setUint32(4, crc32(frame.subarray(SUMMED_FROM)), true);
    if (this.#last.bytes > Math.min(SEGMENT_BYTES_MAX, this.#maxBytes / SEGMENTS)) this.roll();
    const last = this.#last;
    try {
      for (let written = 0; written < frame.length; )
        written += writeSync(last.fd, frame, written, frame.length - written, last.bytes + written);
      fdatasyncSync(last.fd);
    } catch (thrown) {
      ftruncateSync(last.fd, last.bytes);
      throw thrown;
    }
    last.bytes += frame.length;
    last.count += count;
  }

  /** The entry at a place, and the place of the next. Undefined at the end, or where the place was dropped. */
  read({ segment, offset }: Place): { readonly entry: Entry; readonly next: Place } | undefined {
    const index = this.#segments.findIndex(({ number }) => number === segment);
    const from = this.#segments[index];
    if (from === undefined) return undefined;
    if (offset >= from.bytes) {
      const following = this.#segments[index + 1];
      return following === undefined ? undefined : this.read({ segment: following.number, offset: 0 });
    }
    const found = readEntry(from.fd, offset, from.bytes);
    if (found === undefined) return this.read({ segment, offset: from.bytes });
    return { entry: found.entry, next: { segment, offset: found.end } };
  }

  /** Samples at and after a place. */
  countFrom({ segment, offset }: Place): number {
    let count = 0;
    for (const { number, fd, bytes, count: all } of this.#segments) {
      if (number > segment || (number === segment && offset === 0)) count += all;
      else if (number === segment)
        for (
          let found = readEntry(fd, offset, bytes);
          found !== undefined;
          found = readEntry(fd, found.end, bytes)
        )
          count += found.entry.count;
    }
    return count;
  }

  /** Begins a new segment where the last one has anything in it. */
  roll(): void {
    const last = this.#segments.at(-1);
    if (last !== undefined && last.bytes === 0) return;
    this.#open((last?.number ?? 0) + 1);
    const directory = openSync(this.#directory, 'r');
    try {
      fsyncSync(directory);
    } finally {
      closeSync(directory);
    }
  }

  /** Deletes the oldest segment; never the one that is appended to. */
  dropOldest(): void {
    if (this.#segments.length < 2) return;
    const [oldest] = this.#segments.splice(0, 1);
    if (oldest === undefined) return;
    closeSync(oldest.fd);
    rmSync(this.#path(oldest.number));
  }

  close(): void {
    for (const { fd } of this.#segments) closeSync(fd);
    closeSync(this.#lockFd);
  }

  get #last(): Segment {
    const last = this.#segments.at(-1);
    if (last === undefined) throw new Error('a log has a segment');
    return last;
  }

  #path(number: number): string {
    return join(this.#directory, `${String(number).padStart(12, '0')}.segment`);
  }

  #open(number: number): void {
    const fd = openSync(this.#path(number), 'a+', 0o600);
    const segment = { number, fd, bytes: 0, count: 0 };
    this.#segments.push(segment);
    const size = fstatSync(fd).size;
    for (let entry = readEntry(fd, 0, size); entry !== undefined; entry = readEntry(fd, entry.end, size)) {
      segment.bytes = entry.end;
      segment.count += entry.entry.count;
    }
    // What follows was being written when a process or the machine died: nobody was told that it is there.
    ftruncateSync(fd, segment.bytes);
  }
}

/** Undefined where there is no whole entry. */
function readEntry(fd: number, offset: number, end: number): { entry: Entry; end: number } | undefined {
  const header = new Uint8Array(HEADER_BYTES);
  if (offset + HEADER_BYTES > end || readSync(fd, header, 0, HEADER_BYTES, offset) < HEADER_BYTES)
    return undefined;
  const view = new DataView(header.buffer);
  const length = view.getUint32(0, true);
  if (offset + HEADER_BYTES + length > end) return undefined;
  const payload = new Uint8Array(length);
  if (readSync(fd, payload, 0, length, offset + HEADER_BYTES) < length) return undefined;
  if (crc32(payload, crc32(header.subarray(SUMMED_FROM))) !== view.getUint32(4, true)) return undefined;
  const [kind, count, timeMs] = [
    view.getUint32(8, true),
    view.getUint32(12, true),
    view.getFloat64(16, true),
  ];
  return { entry: { kind, count, timeMs, payload }, end: offset + HEADER_BYTES + length };
}

function busy(directory: string): TelemetryError {
  return new TelemetryError('TELEMETRY_STORE_BUSY', `another process uses ${directory}`, {
    hint: 'One daemon keeps the series of a machine. Give a second one for trials another --state.',
    facts: { directory },
  });
}
