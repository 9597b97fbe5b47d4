import { randomBytes } from 'node:crypto';
import { assert } from '../base/assert.ts';
import { MIB } from '../base/units.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { HASH_BYTES, HASH_KEY_BYTES, hashRegions } from '../block/block-hashes.ts';
import { DirtyRegions, REGION_BYTES, type Region } from '../block/dirty-regions.ts';
import type { ReadHints } from '../block/read-hints.ts';
import {
  ASKED_REGIONS_MAX,
  COPY_BYTES_MAX,
  type DiskQuestion,
  decodeAnswer,
  encodePiece,
  encodeQuestion,
} from './disk-messages.ts';
import type { PeerLink } from './peer-link.ts';
import { garbled, MESSAGE } from './peer-messages.ts';

/** A disk of a VM that runs, as its guest sees it. */
export interface CopiedDisk extends Pick<BlockDevice, 'sizeBytes' | 'read' | 'extents'> {
  readonly name: string;
  /** What its guest reads. */
  readonly reads?: ReadHints | undefined;
  /** Tells what is written, at once when it can be read, until the returned function is called. */
  watch(onWritten: (offset: number, lengthBytes: number) => void): () => void;
  /** As of the first epoch, from its cut on until `completed` is called: whatever is written meanwhile. */
  readAtCut(offset: number, into: Uint8Array): Promise<void>;
  /** The copy has all of that. Output that waits for the first epoch may leave when it resolves. */
  completed(): Promise<void>;
}

export interface DiskCopyOptions {
  readonly link: PeerLink;
  /** In the order of the hello, which is how both sides number them. */
  readonly disks: readonly CopiedDisk[];
  /** Names of those of which the other side has an older copy: only what differs is sent. */
  readonly held: ReadonlySet<string>;
  readonly signal: AbortSignal;
  /** Share of the disks that was looked at, 0 … 1. */
  readonly onProgress: (share: number) => void;
}

/** So little may be left for the first epoch to wait for. */
const REST_BYTES_MAX = MIB;
/** A guest that writes faster than the link takes it would be followed for ever; its first epoch makes it wait at last. */
const PASSES_MAX = 8;
const ZEROS = Buffer.alloc(REGION_BYTES);

/**
 * The first copy of a VM's disks to the host of its shadow, while the VM runs and writes. What it writes meanwhile is
 * marked and copied again, until little is left. The rest is copied when the first epoch has been cut, as of that cut, before
 * the epoch is sent: so the copy is the disks as of that epoch.
 */
export class DiskCopy implements Disposable {
  readonly #options: DiskCopyOptions;
  readonly #key = randomBytes(HASH_KEY_BYTES);
  readonly #dirty: readonly DirtyRegions[];
  readonly #unwatch: (() => void)[] = [];
  readonly #answers: { question: DiskQuestion; answered: PromiseWithResolvers<Uint8Array> }[] = [];
  readonly #totalBytes: number;
  #doneBytes = 0;
  #lost: unknown;

  constructor(options: DiskCopyOptions) {
    const { disks, signal } = options;
    this.#options = options;
    this.#totalBytes = disks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    this.#dirty = disks.map(({ sizeBytes }) => new DirtyRegions(sizeBytes));
    for (const [index, disk] of disks.entries()) {
      this.#unwatch.push(disk.watch((offset, lengthBytes) => this.#dirty[index]?.mark(offset, lengthBytes)));
    }
    if (signal.aborted) this.fail(signal.reason);
    else signal.addEventListener('abort', () => this.fail(signal.reason), { once: true });
  }

  /** Copies all that is on the disks but what was written lately. @throws what the link was lost by; the signal's reason */
  async copy(): Promise<void> {
    const { disks, held } = this.#options;
    for (const [index, disk] of disks.entries()) {
      if (held.has(disk.name)) await this.#copyDifferences(index, disk);
      else await this.#copyExtents(index, disk);
    }
    await this.#followWrites();
  }

  /** The same with what was written since, where something else took its time. */
  async catchUp(): Promise<void> {
    await this.#followWrites();
  }

  /**
   * Copies the rest, as of the first epoch, which has been cut. @throws what the link was lost by; the signal's reason
   */
  async complete(): Promise<void> {
    this[Symbol.dispose]();
    await this.#copyDirty({ isCut: true });
    for (const disk of this.#options.disks) await disk.completed();
  }

  /** What the other side answers. @throws ReplicationError REPLICATION_PEER_GARBLED */
  takeAnswer(body: Uint8Array): void {
    const { question, hashes } = decodeAnswer(body, this.#options.disks);
    const asked = this.#answers.shift();
    const isOurs =
      asked !== undefined &&
      asked.question.disk === question.disk &&
      asked.question.what === question.what &&
      asked.question.first === question.first &&
      asked.question.count === question.count;
    if (!isOurs) throw garbled('an answer to no question');
    asked.answered.resolve(hashes);
  }

  /** The other side is lost, or not wanted any more. */
  fail(cause: unknown): void {
    this.#lost ??= cause;
    for (const { answered } of this.#answers.splice(0)) answered.reject(cause);
  }

  [Symbol.dispose](): void {
    for (const unwatch of this.#unwatch.splice(0)) unwatch();
  }

  /** The other side has nothing but zeros. */
  async #copyExtents(index: number, disk: CopiedDisk): Promise<void> {
    for (let at = 0; at < disk.sizeBytes; ) {
      for (const { lengthBytes, zero } of await disk.extents(at, disk.sizeBytes - at)) {
        this.#refuseLost();
        if (zero) this.#noteDone(lengthBytes);
        else await this.#copyRange(index, { offset: at, lengthBytes }, { sendZeros: false });
        at += lengthBytes;
      }
    }
  }

  async #copyRange(
    index: number,
    { offset, lengthBytes }: Region,
    options: { readonly sendZeros: boolean },
  ): Promise<void> {
    for (let at = offset; at < offset + lengthBytes; ) {
      const pieceBytes = Math.min(COPY_BYTES_MAX, offset + lengthBytes - at);
      await this.#copyPiece(index, { offset: at, lengthBytes: pieceBytes }, options);
      this.#noteDone(pieceBytes);
      at += pieceBytes;
    }
  }

  async #copyDifferences(index: number, disk: CopiedDisk): Promise<void> {
    const regionCount = Math.ceil(disk.sizeBytes / REGION_BYTES);
    const questionAt = (first: number) =>
      this.#ask({
        ...{ disk: index, what: 'hashes', first },
        count: Math.min(ASKED_REGIONS_MAX, regionCount - first),
      });
    // The other side looks at the next ones while these are compared.
    let next = questionAt(0);
    for (let first = 0; first < regionCount; first += ASKED_REGIONS_MAX) {
      const answer = next;
      const isLast = first + ASKED_REGIONS_MAX >= regionCount;
      if (!isLast) next = questionAt(first + ASKED_REGIONS_MAX);
      // It is waited for in the next turn, if there is one.
      next.catch(() => {});
      const count = Math.min(ASKED_REGIONS_MAX, regionCount - first);
      const own = await hashRegions(disk, { first, count, key: this.#key });
      const theirs = await answer;
      for (const range of differences(own, theirs)) {
        const offset = (first + range.first) * REGION_BYTES;
        const endByte = Math.min(disk.sizeBytes, (first + range.end) * REGION_BYTES);
        for (let at = offset; at < endByte; at += COPY_BYTES_MAX) {
          const lengthBytes = Math.min(COPY_BYTES_MAX, endByte - at);
          await this.#copyPiece(index, { offset: at, lengthBytes }, { sendZeros: true });
        }
      }
      this.#noteDone(Math.min(count * REGION_BYTES, disk.sizeBytes - first * REGION_BYTES));
    }
  }

  /** Until little is left to copy, and what was copied is on the disk there: the first epoch would wait for that. */
  async #followWrites(): Promise<void> {
    if (this.#options.disks.length === 0) return;
    for (let pass = 0; pass < PASSES_MAX; pass += 1) {
      await this.#copyDirty();
      await this.#ask({ disk: 0, what: 'synced', first: 0, count: 0 });
      if (this.#dirty.reduce((sum, { dirtyBytes }) => sum + dirtyBytes, 0) <= REST_BYTES_MAX) return;
    }
  }

  async #copyDirty({ isCut = false } = {}): Promise<void> {
    for (const [index, dirty] of this.#dirty.entries()) {
      for (const region of dirty.take({ lengthBytesMax: COPY_BYTES_MAX }))
        await this.#copyPiece(index, region, { sendZeros: true, isCut });
    }
  }

  /** At most one message of data; zeros in it are sent as such, or not at all. */
  async #copyPiece(
    index: number,
    { offset, lengthBytes }: Region,
    { sendZeros, isCut = false }: { readonly sendZeros: boolean; readonly isCut?: boolean },
  ): Promise<void> {
    this.#refuseLost();
    const bytes = Buffer.allocUnsafe(lengthBytes);
    const disk = this.#options.disks[index];
    await (isCut ? disk?.readAtCut(offset, bytes) : disk?.read(offset, bytes));
    for (const part of partsOf(bytes)) {
      const at = offset + part.start;
      const content = bytes.subarray(part.start, part.end);
      if (!part.isZero) await this.#send(index, { kind: 'data', offset: at, bytes: content });
      else if (sendZeros) {
        await this.#send(index, { kind: 'zero', offset: at, lengthBytes: content.length, mayPunch: true });
      }
    }
  }

  async #send(disk: number, write: Parameters<typeof encodePiece>[0]['write']): Promise<void> {
    await this.#options.link.send(MESSAGE.diskCopy, encodePiece({ disk, write }));
  }

  async #ask(question: DiskQuestion): Promise<Uint8Array> {
    this.#refuseLost();
    const answered = Promise.withResolvers<Uint8Array>();
    answered.promise.catch(() => {});
    this.#answers.push({ question, answered });
    await this.#options.link.send(MESSAGE.diskAsk, encodeQuestion(question, this.#key));
    return await answered.promise;
  }

  #noteDone(bytes: number): void {
    this.#doneBytes += bytes;
    this.#options.onProgress(this.#totalBytes === 0 ? 1 : Math.min(1, this.#doneBytes / this.#totalBytes));
  }

  #refuseLost(): void {
    if (this.#lost !== undefined) throw this.#lost;
  }
}

/** Runs of regions that are zeros, and of those that are not. */
function* partsOf(bytes: Buffer): Generator<{ start: number; end: number; isZero: boolean }> {
  let start = 0;
  let wasZero: boolean | undefined;
  for (let at = 0; at < bytes.length; at += REGION_BYTES) {
    const region = bytes.subarray(at, at + REGION_BYTES);
    const isZero = region.equals(ZEROS.subarray(0, region.length));
    if (wasZero !== undefined && wasZero !== isZero) {
      yield { start, end: at, isZero: wasZero };
      start = at;
    }
    wasZero = isZero;
  }
  if (wasZero !== undefined) yield { start, end: bytes.length, isZero: wasZero };
}

/** Runs of hashes that are not the same. */
function* differences(own: Buffer, theirs: Uint8Array): Generator<{ first: number; end: number }> {
  assert(own.length === theirs.length, 'hashes of the same regions are compared');
  const count = own.length / HASH_BYTES;
  const isSame = (index: number) =>
    own.compare(
      theirs,
      ...[index * HASH_BYTES, (index + 1) * HASH_BYTES],
      ...[index * HASH_BYTES, (index + 1) * HASH_BYTES],
    ) === 0;
  for (let index = 0; index < count; ) {
    const first = index;
    while (index < count && !isSame(index)) index += 1;
    if (index > first) yield { first, end: index };
    else index += 1;
  }
}
