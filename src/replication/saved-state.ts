import { createHash, randomUUID } from 'node:crypto';
import { createReadStream, existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { type FileHandle, open, rename, statfs } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { constants, createZstdCompress, createZstdDecompress } from 'node:zlib';
import { z } from 'zod';
import { messageOf } from '../base/errors.ts';
import type { Failpoints } from '../base/failpoint.ts';
import { makeDirectory } from '../base/make-directory.ts';
import { formatBytes, MIB } from '../base/units.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { ReplicationError } from './replication-error.ts';
import { fillMemory, memoryStream } from './saved-memory.ts';

/**
 * A VM on disk: a directory with `header.json`, and the parts that the header names with their checksums. A part's name
 * is used once. A header that is renamed into place is the moment in which a state begins to exist, and its unlinking
 * the one in which it ceases to: what the header does not name is left over from an attempt and of no meaning.
 */
const HEADER = 'header.json';
const FORMAT = 1;
/** The fastest but for none: what counts is that the VM stands still for a short time. */
const ZSTD_LEVEL = 1;
/** For header, device state and firmware, beside the memory. */
const ROOM_BESIDES_BYTES = 8 * MIB;

const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
const part = z.object({
  file: z.string().regex(/^[a-z]+-[0-9a-f-]{36}$/),
  bytes: z.int().nonnegative(),
  sha256,
});
const factsSchema = z.object({
  vm: z.string(),
  kind: z.enum(['suspended', 'snapshot']),
  savedAtMs: z.number(),
  epoch: z.int().nonnegative(),
  /** State loads only into a machine that was built in the same way by the same QEMU. */
  qemuVersion: z.string(),
  accel: z.enum(['kvm', 'tcg']),
  machineHash: sha256,
  memoryBytes: z.int().positive(),
  /** Of a VM of several hosts: what is on record of this state. */
  rightToken: z.int().positive().optional(),
});
const headerSchema = factsSchema.extend({
  format: z.literal(FORMAT),
  memory: part,
  deviceState: part,
  firmware: part,
});

export type SavedStateFacts = z.output<typeof factsSchema>;
type Header = z.output<typeof headerSchema>;
type Part = z.output<typeof part>;

export interface SaveOptions {
  readonly facts: SavedStateFacts;
  readonly memory: GuestMemory;
  readonly deviceState: Uint8Array;
  readonly firmware: Uint8Array;
  readonly signal: AbortSignal;
  readonly failpoints: Failpoints;
  /** All of it is on disk, and does not exist yet: nobody else may go on with the VM from now on. */
  readonly beforeHeader?: () => Promise<Pick<SavedStateFacts, 'rightToken'>>;
  /** Share of the memory that is written, 0 … 1. */
  readonly onProgress: (share: number) => void;
}

/** The saved state of one VM, whole on disk. */
export class SavedState {
  readonly directory: string;
  readonly #header: Header;

  private constructor(directory: string, header: Header) {
    this.directory = directory;
    this.#header = header;
  }

  /** Undefined when there is none. @throws ReplicationError REPLICATION_STATE_DAMAGED, REPLICATION_STATE_FOREIGN */
  static find(directory: string): SavedState | undefined {
    let text: string;
    try {
      text = readFileSync(join(directory, HEADER), 'utf8');
    } catch (thrown) {
      if (errnoNameOf(thrown) === 'ENOENT') return undefined;
      throw damaged(directory, messageOf(thrown), thrown);
    }
    return new SavedState(directory, headerFrom(directory, text));
  }

  /** Whether there is one, in whatever condition. */
  static isThere(directory: string): boolean {
    return existsSync(join(directory, HEADER));
  }

  /**
   * Sees that there is room for all of the memory, though it is compressed: how far that helps is not known before.
   * @throws ReplicationError REPLICATION_STATE_NO_ROOM
   */
  static async assertRoom(directory: string, memory: GuestMemory): Promise<void> {
    makeDirectory(directory, { mode: 0o700 });
    const { bavail, bsize } = await statfs(directory);
    const freeBytes = bavail * bsize;
    const neededBytes = memory.residentBytes() + ROOM_BESIDES_BYTES;
    if (freeBytes >= neededBytes) return;
    const what = `it has ${formatBytes(freeBytes)} free, and ${formatBytes(neededBytes)} may be needed`;
    throw noRoom(directory, what);
  }

  /**
   * Writes the state of a VM that stands still. It is on disk as a whole when this resolves, in the place of the one
   * that was there; until then that one is untouched.
   * @throws ReplicationError REPLICATION_STATE_NO_ROOM; the signal's reason; errors of the file system
   */
  static async save(directory: string, options: SaveOptions): Promise<SavedState> {
    const { facts, memory, deviceState, firmware, signal, failpoints } = options;
    makeDirectory(directory, { mode: 0o700 });
    const written: string[] = [];
    let inPlace = false;
    const write = (kind: string, content: AsyncIterable<Buffer> | Iterable<Buffer>) => {
      const file = `${kind}-${randomUUID()}`;
      written.push(file);
      return writePart(directory, { file, content, compress: kind === 'memory' });
    };
    try {
      const header: Header = {
        format: FORMAT,
        ...facts,
        memory: await write('memory', memoryStream(memory, options)),
        deviceState: await write('devices', [Buffer.from(deviceState)]),
        firmware: await write('firmware', [Buffer.from(firmware)]),
      };
      await failpoints.hit('save.before-header');
      signal.throwIfAborted();
      const known = await options.beforeHeader?.();
      signal.throwIfAborted();
      const { file } = await write('header', [Buffer.from(encoded({ ...header, ...known }))]);
      await syncDirectory(directory);
      inPlace = true;
      await rename(join(directory, file), join(directory, HEADER));
      await syncDirectory(directory);
      await syncDirectory(dirname(directory));
      await failpoints.hit('save.after-header');
      removeAllBut(directory, header);
      return new SavedState(directory, { ...header, ...known });
    } catch (cause) {
      // The VM goes on: nobody may go on from here as well.
      if (inPlace) rmSync(join(directory, HEADER), { force: true });
      for (const file of written) rmSync(join(directory, file), { force: true });
      throw errnoNameOf(cause) === 'ENOSPC' ? noRoom(directory, 'it is full', cause) : cause;
    }
  }

  get facts(): SavedStateFacts {
    return factsSchema.parse(this.#header);
  }

  get sizeBytes(): number {
    return partsOf(this.#header).reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** Compares every byte with its checksum. @throws ReplicationError REPLICATION_STATE_DAMAGED */
  async verify(): Promise<void> {
    for (const { file, bytes, sha256: expected } of partsOf(this.#header)) {
      const hash = createHash('sha256');
      let found = 0;
      try {
        for await (const chunk of createReadStream(join(this.directory, file))) {
          found += (chunk as Buffer).length;
          hash.update(chunk as Buffer);
        }
      } catch (cause) {
        throw damaged(this.directory, messageOf(cause), cause);
      }
      if (found !== bytes || hash.digest('hex') !== expected)
        throw damaged(this.directory, `${file} does not fit its checksum`);
    }
  }

  /** Fills memory that is all holes. The state was verified before. @throws ReplicationError REPLICATION_STATE_DAMAGED */
  async loadMemory(memory: GuestMemory): Promise<void> {
    let isWhole = false;
    await pipeline(
      createReadStream(join(this.directory, this.#header.memory.file)),
      createZstdDecompress(),
      async (stream: AsyncIterable<Buffer>) => {
        isWhole = await fillMemory(memory, stream);
      },
    );
    if (!isWhole) throw damaged(this.directory, 'its memory is not of this VM');
  }

  get deviceState(): Buffer {
    return readFileSync(join(this.directory, this.#header.deviceState.file));
  }

  get firmware(): Buffer {
    return readFileSync(join(this.directory, this.#header.firmware.file));
  }

  /** It does not exist any more when this resolves, also after a loss of power. */
  async remove(): Promise<void> {
    rmSync(join(this.directory, HEADER), { force: true });
    await syncDirectory(this.directory);
    discardSavedState(this.directory);
  }
}

/** Removes a state in whatever condition it is, and what attempts to save one have left. */
export function discardSavedState(directory: string): void {
  rmSync(join(directory, HEADER), { force: true });
  rmSync(directory, { recursive: true, force: true });
}

/** Header and checksum of it, in two lines. */
function encoded(header: Header): string {
  const text = JSON.stringify(header);
  return `${text}\n${createHash('sha256').update(text).digest('hex')}\n`;
}

function headerFrom(directory: string, text: string): Header {
  const [line = '', checksum] = text.split('\n');
  if (createHash('sha256').update(line).digest('hex') !== checksum)
    throw damaged(directory, `${HEADER} does not fit its checksum`);
  const header = headerSchema.safeParse(JSON.parse(line));
  if (header.success) return header.data;
  throw new ReplicationError('REPLICATION_STATE_FOREIGN', `${directory} holds a state of another format`, {
    hint: 'Another version of Understudy saved it: start the VM with that version, or discard the state.',
    facts: { directory },
  });
}

function partsOf({ memory, deviceState, firmware }: Header): Part[] {
  return [memory, deviceState, firmware];
}

interface PartToWrite {
  readonly file: string;
  readonly content: AsyncIterable<Buffer> | Iterable<Buffer>;
  readonly compress: boolean;
}

async function writePart(directory: string, { file, content, compress }: PartToWrite): Promise<Part> {
  const hash = createHash('sha256');
  let bytes = 0;
  const handle = await open(join(directory, file), 'wx', 0o600);
  const write = async (stream: AsyncIterable<Buffer>) => {
    for await (const chunk of stream) {
      hash.update(chunk);
      bytes += chunk.length;
      await handle.writeFile(chunk);
    }
  };
  try {
    const zstd = { params: { [constants.ZSTD_c_compressionLevel]: ZSTD_LEVEL } };
    if (compress) await pipeline(content, createZstdCompress(zstd), write);
    else await pipeline(content, write);
    await handle.sync();
  } finally {
    await handle.close();
  }
  return { file, bytes, sha256: hash.digest('hex') };
}

async function syncDirectory(path: string): Promise<void> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, 'r');
    await handle.sync();
  } finally {
    await handle?.close();
  }
}

function removeAllBut(directory: string, header: Header): void {
  const kept = new Set([HEADER, ...partsOf(header).map(({ file }) => file)]);
  for (const name of readdirSync(directory))
    if (!kept.has(name)) rmSync(join(directory, name), { force: true });
}

function damaged(directory: string, what: string, cause?: unknown): ReplicationError {
  const discard = `\`understudy start ${basename(directory)} --discard\``;
  return new ReplicationError('REPLICATION_STATE_DAMAGED', `the state in ${directory} is damaged: ${what}`, {
    hint: `It is kept as it is, and the VM does not boot anew by itself. Check the disk; ${discard} gives the state up.`,
    facts: { directory },
    cause,
  });
}

function noRoom(directory: string, what: string, cause?: unknown): ReplicationError {
  return new ReplicationError('REPLICATION_STATE_NO_ROOM', `no room for a state in ${directory}: ${what}`, {
    hint: 'Make room there, remove snapshots (`understudy snapshots ls`), or stop the VM with --then remove.',
    facts: { directory },
    cause,
  });
}
