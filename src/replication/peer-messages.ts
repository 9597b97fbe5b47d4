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
 *   disk-…         the first copy of disks, and what the guest reads: see disk-messages.ts
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
  diskHints: 26,
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

/** How much there may be of anything in words; all of a message has at most MESSAGE_BYTES_MAX. */
export const WORDS_BOUNDS = {
  /** Names, versions, codes. */
  nameChars: 256,
  /** Sentences for people. Longer ones are cut. */
  textChars: 4096,
  /** The specification of a VM. */
  specChars: 512 * 1024,
  /** Disks that are copied; nics. */
  devices: 64,
  /** Addresses of a host; those that a guest has claimed for one nic. */
  addresses: 32,
  /** Files that a QEMU is started from. */
  files: 16,
  labels: 256,
  /** VMs of a host. */
  vms: 10_000,
  /** Tokens and numbers of copies and epochs: what is not far from where numbers end leaves room for those that follow. */
  counter: 2 ** 48,
} as const;

const { addresses: ADDRESSES_MAX, devices: DEVICES_MAX } = WORDS_BOUNDS;

const count = z.int().nonnegative();
const counter = count.max(WORDS_BOUNDS.counter);
const name = z.string().max(WORDS_BOUNDS.nameChars);
const text = z.string().max(WORDS_BOUNDS.textChars);
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
    .max(WORDS_BOUNDS.vms)
    .readonly(),
  labels: recordOf(word, word, WORDS_BOUNDS.labels),
  isInMaintenance: z.boolean(),
});

const diskSchema = z.object({
  name,
  sizeBytes: count,
  /** What its image takes up, without holes. */
  usedBytes: count,
  /** The same for all copies of the disk. */
  identity: z.string().regex(/^[0-9a-f]{32}$/),
  /** Of what is written to it. */
  token: counter,
});

/** Why something was not done, as it is told to the other side. */
export const refusalShape = { code: name, message: text, hint: text.optional() };
/** IPv4 or IPv6. */
const address = z.string().regex(/^(?:[0-9a-f]{8}|[0-9a-f]{32})$/);

const failedDiskSchema = z.object({ path: text, code: name, error: text });

/** One that cannot be relied on any more, and why. */
export type FailedDisk = Readonly<z.infer<typeof failedDiskSchema>>;

const wordsSchema = z.discriminatedUnion('kind', [
  /** To the host itself: a keeper for the shadow of this VM is wanted. */
  z.object({ kind: z.literal('place'), vm: name }),
  /** It listens at this port of the same address. */
  z.object({ kind: z.literal('placed'), port: z.int().min(1).max(65_535) }),
  /** The first words of a primary. */
  z.object({
    kind: z.literal('hello'),
    protocol: z.int(),
    vm: name,
    /** Number of this copy of the VM: a shadow that is made anew has another one. */
    copy: counter,
    /** The specification as the primary's keeper was given it. */
    spec: z.object({ text: z.string().max(WORDS_BOUNDS.specChars), source: text }),
    token: counter,
    /** Of the right that it acts under, as it is on record: with the copy it is shown by who takes a broken link up again. */
    rightToken: counter,
    /** Here it can be seen whether the process lives. */
    presencePort: z.int().min(1).max(65_535),
    /** The guest's VMGenID: a takeover is no return to the past. */
    generationId: z.uuid().optional(),
    /** The next epoch. */
    epoch: counter,
    qemuVersion: name,
    accel: z.enum(['kvm', 'tcg']),
    /** What a QEMU is started from has to be the same on both hosts: file by file. */
    files: recordOf(name, digest, WORDS_BOUNDS.files),
    /** Heartbeats over datagrams are told by this key, in hexadecimal digits. */
    pulseKey: z.string().regex(/^[0-9a-f]{64}$/),
    /** Those that are copied, in the order in which they are numbered. */
    disks: z.array(diskSchema).max(DEVICES_MAX),
  }),
  /** The answer to it: a standby has been started and waits for memory. */
  z.object({
    ...{ kind: z.literal('welcome'), host: name, instance: count },
    /** Its memory is older memory of the VM. It is told what to do with it before anything else. */
    hasRelic: z.boolean(),
    /** Where it listens for heartbeats, for each of its addresses. */
    pulsePorts: z.array(z.int().min(1).max(65_535)).min(1).max(ADDRESSES_MAX),
    /** It takes nothing over before it has heard nothing for so long, on any path. */
    silenceMinMs: z.int().positive(),
    /** Disks of which it has an older copy: it is asked what is in them. */
    heldDisks: z.array(name).max(DEVICES_MAX),
  }),
  /** Begin with nothing. */
  z.object({ kind: z.literal('discard') }),
  /** Say what is there, in hashes under this secret; and that was all. */
  z.object({ kind: z.literal('compare'), secret: z.string().regex(/^[0-9a-f]{384}$/) }),
  z.object({ kind: z.literal('compared') }),
  z.object({ kind: z.literal('refused'), ...refusalShape }),
  /** All of this epoch is here. */
  z.object({ kind: z.literal('held'), epoch: counter }),
  /** It is on record who may take over, and under which token the primary acts. */
  z.object({ kind: z.literal('in-sync'), token: counter }),
  /** Addresses that the guest of each nic has claimed, to be announced by whoever acts. */
  z.object({
    kind: z.literal('claimed'),
    links: recordOf(name, z.array(address).max(ADDRESSES_MAX), DEVICES_MAX),
  }),
  /** The primary is dead, by its keeper's own hand or word: act, under this token. */
  z.object({
    ...{ kind: z.literal('take-over'), token: counter, reason: text, trace: name.optional() },
    /** The disk of its host that it was given up for. */
    disk: failedDiskSchema.optional(),
  }),
  z.object({ kind: z.literal('acts'), token: counter, tookMs: z.number() }),
  /** The shadow is not wanted any more. */
  z.object({ kind: z.literal('dismiss') }),
  /** It will not take over. */
  z.object({ kind: z.literal('dismissed') }),
  /** The host of the shadow shall be free of it: have another one elsewhere, or none, and dismiss this one. */
  z.object({ kind: z.literal('leave') }),
  /** To the host itself: what it has left for a shadow of this VM. */
  z.object({ kind: z.literal('ask-resources'), vm: name }),
  z.object({ kind: z.literal('resources'), resources: resourcesSchema }),
]);

export type PeerWords = z.infer<typeof wordsSchema>;

function recordOf<Value extends z.ZodType>(key: z.ZodType<string, string>, value: Value, entriesMax: number) {
  return z.record(key, value).refine((record) => Object.keys(record).length <= entriesMax);
}

export function encodeWords(words: PeerWords): Uint8Array {
  const said = words.kind === 'refused' ? { ...words, ...clipped(words) } : words;
  return Buffer.from(JSON.stringify(said), 'utf8');
}

interface Told {
  readonly message: string;
  readonly hint?: string | undefined;
}

/** What is said to people may be as long as a log; the other side takes so much of it. */
export function clipped({ message, hint }: Told): Told {
  const most = WORDS_BOUNDS.textChars;
  return { message: message.slice(0, most), ...(hint !== undefined && { hint: hint.slice(0, most) }) };
}

/** @throws ReplicationError REPLICATION_PEER_GARBLED */
export function decodeWords(body: Uint8Array): PeerWords {
  try {
    return wordsSchema.parse(JSON.parse(Buffer.from(body).toString('utf8')));
  } catch (cause) {
    throw garbled('words that mean nothing', cause);
  }
}

const protocolSchema = z.object({ kind: z.literal('hello'), protocol: z.int().nonnegative() });

/** Which protocol first words are of, whatever else is in them: another one may have other words. Undefined for any others. */
export function helloProtocol(body: Uint8Array): number | undefined {
  try {
    return protocolSchema.safeParse(JSON.parse(Buffer.from(body).toString('utf8'))).data?.protocol;
  } catch {
    return undefined;
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
  if (epoch > BigInt(WORDS_BOUNDS.counter)) throw garbled('an epoch of no number');
  return epochId(Number(epoch));
}
