import { z } from 'zod';
import { type EpochId, epochId } from '../epoch/epoch-id.ts';
import { countPages, type PageRun } from '../memory/page-runs.ts';
import { encodedBytesMax } from '../wire/page-codec.ts';
import { HASH_BYTES } from './page-hashes.ts';
import { ReplicationError } from './replication-error.ts';

/**
 * What the keeper of a VM and that of its shadow on another host tell each other. Both check all of it: the other side
 * has shown who it is, which does not make it free of faults.
 *
 * Words are JSON; what is large is binary, little endian:
 *
 *   copy, pages    u64 epoch (0 in a copy), u16 runs, u16 flags (1: the first run is the rest of the last
 *                  one before), then for each run u32 first page, u32 pages; then
 *                  their contents as the page codec packs them
 *   tail           u64 epoch, bytes: device state and output, in order
 *   writes         u64 epoch, bytes: writes to disks, in order
 *   seal           u64 epoch, header of the slot: all of the epoch was sent
 *   disk-…         the first copy of disks: see disk-messages.ts
 *   hashes         u32 first page, u32 pages, then 16 bytes for each: what the shadow's host has in its memory
 *   errand         JSON: what a shadow is asked to do with what it holds, and what came of it (keeper/errand-messages.ts)
 *   read, readState  the other way: as pages and tail, with the number of the errand in the place of the epoch
 */
export const PEER_PROTOCOL = 4;

/** Smaller numbers are the link's own. */
export const MESSAGE = {
  words: 16,
  firmware: 17,
  copy: 18,
  pages: 19,
  tail: 20,
  seal: 21,
  writes: 22,
  diskCopy: 23,
  diskAsk: 24,
  diskAnswer: 25,
  hashes: 32,
  errand: 33,
  read: 34,
  readState: 35,
} as const;

/** Pages in one message: a compromise between what a message costs and how long another one waits behind it. */
export const MESSAGE_PAGES_MAX = 256;
export const MESSAGE_BYTES_MAX = encodedBytesMax(MESSAGE_PAGES_MAX) + MESSAGE_PAGES_MAX * 8 + 64;
const EPOCH_BYTES = 8;
const RUN_BYTES = 8;
const CONTINUES = 1;

const count = z.int().nonnegative();
const digest = z.string().regex(/^[0-9a-f]{64}$/);

const word = z.string().max(64);
const resourcesSchema = z.object({
  memoryFreeBytes: count,
  memoryTotalBytes: count,
  /** Below 0 where more was promised than there is. */
  roomFreeBytes: z.int(),
  cpus: count,
  load: z.number().nonnegative(),
  shadows: count,
  vms: z
    .array(z.object({ name: word, antiAffinity: z.array(word).max(64).readonly() }))
    .max(10_000)
    .readonly(),
  labels: z.record(word, word),
  isInMaintenance: z.boolean(),
});

const diskSchema = z.object({
  name: z.string(),
  sizeBytes: count,
  /** The same for all copies of the disk. */
  identity: z.string().regex(/^[0-9a-f]{32}$/),
  /** Of what is written to it. */
  token: count,
});

const wordsSchema = z.discriminatedUnion('kind', [
  /** To the host itself: a keeper for the shadow of this VM is wanted. */
  z.object({ kind: z.literal('place'), vm: z.string() }),
  /** It listens at this port of the same address. */
  z.object({ kind: z.literal('placed'), port: z.int().min(1).max(65_535) }),
  /** The first words of a primary. */
  z.object({
    kind: z.literal('hello'),
    protocol: z.int(),
    vm: z.string(),
    /** Number of this copy of the VM: a shadow that is made anew has another one. */
    copy: count,
    /** The specification as the primary's keeper was given it. */
    spec: z.object({ text: z.string(), source: z.string() }),
    token: count,
    /** Of the right that it acts under, as it is on record: with the copy it is shown by who takes a broken link up again. */
    rightToken: count,
    /** Here it can be seen whether the process lives. */
    presencePort: z.int().min(1).max(65_535),
    /** The guest's VMGenID: a takeover is no return to the past. */
    generationId: z.uuid().optional(),
    /** The next epoch. */
    epoch: count,
    qemuVersion: z.string(),
    accel: z.enum(['kvm', 'tcg']),
    /** What a QEMU is started from has to be the same on both hosts: file by file. */
    files: z.record(z.string(), digest),
    /** Heartbeats over datagrams are told by this key, in hexadecimal digits. */
    pulseKey: z.string().regex(/^[0-9a-f]{64}$/),
    /** Those that are copied, in the order in which they are numbered. */
    disks: z.array(diskSchema).max(64),
  }),
  /** The answer to it: a standby has been started and waits for memory. */
  z.object({
    ...{ kind: z.literal('welcome'), host: z.string(), instance: count },
    /** Its memory is older memory of the VM. It is told what to do with it before anything else. */
    hasRelic: z.boolean(),
    /** Where it listens for heartbeats, for each of its addresses. */
    pulsePorts: z.array(z.int().min(1).max(65_535)).min(1),
    /** It takes nothing over before it has heard nothing for so long, on any path. */
    silenceMinMs: z.int().positive(),
    /** Disks of which it has an older copy: it is asked what is in them. */
    heldDisks: z.array(z.string()),
  }),
  /** Begin with nothing. */
  z.object({ kind: z.literal('discard') }),
  /** Say what is there, in hashes under this secret; and that was all. */
  z.object({ kind: z.literal('compare'), secret: z.string().regex(/^[0-9a-f]{384}$/) }),
  z.object({ kind: z.literal('compared') }),
  z.object({
    kind: z.literal('refused'),
    code: z.string(),
    message: z.string(),
    hint: z.string().optional(),
  }),
  /** All of this epoch is here. */
  z.object({ kind: z.literal('held'), epoch: count }),
  /** It is on record who may take over, and under which token the primary acts. */
  z.object({ kind: z.literal('in-sync'), token: count }),
  /** Addresses that the guest of each nic has claimed, to be announced by whoever acts. */
  z.object({
    kind: z.literal('claimed'),
    links: z.record(z.string(), z.array(z.string().regex(/^(?:[0-9a-f]{8}|[0-9a-f]{32})$/)).max(32)),
  }),
  /** The primary is dead, by its keeper's own hand or word: act, under this token. */
  z.object({ kind: z.literal('take-over'), token: count, reason: z.string(), trace: z.string().optional() }),
  z.object({ kind: z.literal('acts'), token: count, tookMs: z.number() }),
  /** The shadow is not wanted any more. */
  z.object({ kind: z.literal('dismiss') }),
  /** It will not take over. */
  z.object({ kind: z.literal('dismissed') }),
  /** The host of the shadow shall be free of it: have another one elsewhere, or none, and dismiss this one. */
  z.object({ kind: z.literal('leave') }),
  /** To the host itself: what it has left for a shadow of this VM. */
  z.object({ kind: z.literal('ask-resources'), vm: z.string() }),
  z.object({ kind: z.literal('resources'), resources: resourcesSchema }),
]);

export type PeerWords = z.infer<typeof wordsSchema>;

export function encodeWords(words: PeerWords): Uint8Array {
  return Buffer.from(JSON.stringify(words), 'utf8');
}

/** @throws ReplicationError REPLICATION_PEER_GARBLED */
export function decodeWords(body: Uint8Array): PeerWords {
  try {
    return wordsSchema.parse(JSON.parse(Buffer.from(body).toString('utf8')));
  } catch (cause) {
    throw garbled('words that mean nothing', cause);
  }
}

/** What stands before the contents of pages. */
export function encodePagesHead(
  epoch: EpochId,
  { runs, continues }: Pick<PagesMessage, 'runs' | 'continues'>,
): Buffer {
  const head = Buffer.alloc(EPOCH_BYTES + 4 + runs.length * RUN_BYTES);
  head.writeBigUInt64LE(BigInt(epoch), 0);
  head.writeUInt16LE(runs.length, EPOCH_BYTES);
  head.writeUInt16LE(continues ? CONTINUES : 0, EPOCH_BYTES + 2);
  for (const [index, { firstPage, pageCount }] of runs.entries()) {
    const at = EPOCH_BYTES + 4 + index * RUN_BYTES;
    head.writeUInt32LE(firstPage, at);
    head.writeUInt32LE(pageCount, at + 4);
  }
  return head;
}

export interface PagesMessage {
  readonly epoch: EpochId;
  readonly runs: readonly PageRun[];
  /** The first of them is the rest of the last one in the message before. */
  readonly continues: boolean;
  readonly pageCount: number;
  /** Contents of `runs`, packed. */
  readonly packed: Uint8Array;
}

/** `memoryPages`: of the VM; no run may reach beyond it. @throws ReplicationError REPLICATION_PEER_GARBLED */
export function decodePages(body: Uint8Array, memoryPages: number): PagesMessage {
  const view = viewOf(body);
  if (body.length < EPOCH_BYTES + 4) throw garbled('pages without a head');
  const runCount = view.getUint16(EPOCH_BYTES, true);
  const flags = view.getUint16(EPOCH_BYTES + 2, true);
  if ((flags & ~CONTINUES) !== 0) throw garbled('pages with flags that mean nothing');
  const start = EPOCH_BYTES + 4 + runCount * RUN_BYTES;
  if (runCount > MESSAGE_PAGES_MAX || start > body.length) throw garbled('a list of pages that is cut short');
  const runs = Array.from({ length: runCount }, (_, index) => ({
    firstPage: view.getUint32(EPOCH_BYTES + 4 + index * RUN_BYTES, true),
    pageCount: view.getUint32(EPOCH_BYTES + 8 + index * RUN_BYTES, true),
  }));
  const inside = runs.every(
    ({ firstPage, pageCount }) => pageCount > 0 && firstPage + pageCount <= memoryPages,
  );
  const pageCount = countPages(runs);
  if (!inside || pageCount > MESSAGE_PAGES_MAX) throw garbled('pages that the VM does not have');
  return {
    ...{ epoch: takeEpoch(view), runs, pageCount, packed: body.subarray(start) },
    continues: (flags & CONTINUES) !== 0,
  };
}

export function encodeHashes({ firstPage, pageCount }: PageRun, hashes: Uint8Array): Buffer {
  const head = Buffer.alloc(RUN_BYTES);
  head.writeUInt32LE(firstPage, 0);
  head.writeUInt32LE(pageCount, 4);
  return Buffer.concat([head, hashes]);
}

/** @throws ReplicationError REPLICATION_PEER_GARBLED */
export function decodeHashes(
  body: Uint8Array,
  memoryPages: number,
): { readonly piece: PageRun; readonly hashes: Uint8Array } {
  if (body.length < RUN_BYTES) throw garbled('hashes of nothing');
  const view = viewOf(body);
  const piece = { firstPage: view.getUint32(0, true), pageCount: view.getUint32(4, true) };
  const hashes = body.subarray(RUN_BYTES);
  const fits = piece.pageCount > 0 && piece.firstPage + piece.pageCount <= memoryPages;
  if (!fits || hashes.length !== piece.pageCount * HASH_BYTES)
    throw garbled('hashes of pages that the VM does not have');
  return { piece, hashes };
}

export function encodeEpoch(epoch: EpochId): Buffer {
  const head = Buffer.alloc(EPOCH_BYTES);
  head.writeBigUInt64LE(BigInt(epoch));
  return head;
}

/** @throws ReplicationError REPLICATION_PEER_GARBLED */
export function decodeEpoch(body: Uint8Array): { readonly epoch: EpochId; readonly rest: Uint8Array } {
  if (body.length < EPOCH_BYTES) throw garbled('a message without its epoch');
  return { epoch: takeEpoch(viewOf(body)), rest: body.subarray(EPOCH_BYTES) };
}

export function garbled(what: string, cause?: unknown): ReplicationError {
  return new ReplicationError('REPLICATION_PEER_GARBLED', `the other host sent ${what}`, {
    hint: 'Run the same version of understudy on both hosts. If they do, check their memory and network.',
    cause,
  });
}

function viewOf(body: Uint8Array): DataView {
  return new DataView(body.buffer, body.byteOffset, body.byteLength);
}

function takeEpoch(view: DataView): EpochId {
  const epoch = view.getBigUint64(0, true);
  if (epoch > BigInt(Number.MAX_SAFE_INTEGER)) throw garbled('an epoch of no number');
  return epochId(Number(epoch));
}
