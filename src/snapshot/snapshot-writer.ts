import type { GuestMemory } from '../memory/guest-memory.ts';
import { ChunkWriter } from './chunk-writer.ts';
import { type LendImage, PageCopy, type PageSink, type ReadOut, readOutShadow } from './shadow-readout.ts';
import type { SnapshotFacts } from './snapshot-format.ts';

interface CommonOptions {
  /** Where the file is to be. */
  readonly path: string;
  readonly key: Uint8Array | undefined;
  /** The text of the specification. */
  readonly spec: Uint8Array;
  readonly firmware: Uint8Array;
  readonly signal: AbortSignal;
  /** Share of the memory that is written, 0 … 1. */
  readonly onProgress: (share: number) => void;
}

interface StillOptions extends CommonOptions {
  readonly facts: SnapshotFacts;
  readonly memory: GuestMemory;
  readonly deviceState: Uint8Array;
}

interface ReadOutOptions extends CommonOptions {
  readonly facts: Omit<SnapshotFacts, 'epoch'>;
  /** Hands all pages over as of one epoch, from wherever the shadow is, and tells the share of them. */
  readonly readOut: (sink: PageSink) => Promise<ReadOut>;
}

interface ShadowOptions extends Omit<ReadOutOptions, 'readOut'> {
  readonly use: LendImage;
  readonly nowMs: () => number;
  /** The image stands still. */
  readonly onHeld?: () => Promise<void> | void;
}

export interface WrittenSnapshot {
  readonly epoch: number;
  readonly sizeBytes: number;
  /** How long epochs were not applied meanwhile; 0 for a VM that stood still anyway. */
  readonly heldMs: number;
}

/** Of a VM that stands still, and goes on doing so until this resolves. @throws SnapshotError; the signal's reason */
export async function snapshotStill(options: StillOptions): Promise<WrittenSnapshot> {
  const { path, facts, key, memory, onProgress, signal } = options;
  await using writer = await ChunkWriter.create(path, { memoryBytes: facts.memoryBytes, key });
  using copying = new PageCopy(writer, { memory, signal });
  await copying.copy(memory.dataRuns(), onProgress);
  return { epoch: facts.epoch, sizeBytes: await finish(writer, options), heldMs: 0 };
}

/**
 * Of a VM that runs, from its shadow, as of one committed epoch. The VM does not notice: epochs go on being committed
 * and applied, and for the last pages the image is held, as in a test of the failover.
 * @throws SnapshotError; ReplicationError; the signal's reason
 */
export async function snapshotShadow(options: ShadowOptions): Promise<WrittenSnapshot> {
  const { use, ...rest } = options;
  return await snapshotReadOut({ ...rest, readOut: (sink) => readOutShadow(use, { ...rest, sink }) });
}

/** The same of a shadow wherever it is. @throws SnapshotError; what `readOut` throws; the signal's reason */
export async function snapshotReadOut(options: ReadOutOptions): Promise<WrittenSnapshot> {
  const { key, path, signal, facts, readOut } = options;
  await using writer = await ChunkWriter.create(path, { memoryBytes: facts.memoryBytes, key });
  const { epoch, deviceState, heldMs } = await readOut(writer);
  signal.throwIfAborted();
  const sizeBytes = await finish(writer, { ...options, facts: { ...facts, epoch }, deviceState });
  return { epoch, sizeBytes, heldMs };
}

async function finish(
  writer: ChunkWriter,
  { facts, deviceState, firmware, spec }: Pick<StillOptions, 'facts' | 'deviceState' | 'firmware' | 'spec'>,
): Promise<number> {
  await writer.writeBlob('deviceState', deviceState);
  await writer.writeBlob('firmware', firmware);
  await writer.writeBlob('spec', spec);
  return await writer.finish(facts);
}
