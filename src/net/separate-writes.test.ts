import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { MIB } from '../base/units.ts';
import { readInto } from '../linux/poll.ts';
import { descriptorOf } from '../linux/socket-descriptor.ts';
import { SeparateWrites } from './separate-writes.ts';

let open: DisposableStack;
beforeEach(() => {
  open = new DisposableStack();
});
afterEach(() => open.dispose());

async function socketPair(): Promise<[Socket, Socket]> {
  const folder = mkdtempSync(join(tmpdir(), 'us-writes-'));
  open.defer(() => rmSync(folder, { recursive: true }));
  const server = createServer({ pauseOnConnect: true }).listen(join(folder, 'socket'));
  open.defer(() => void server.close());
  await once(server, 'listening');
  const writer = connect(join(folder, 'socket'));
  const [reader] = (await once(server, 'connection')) as [Socket];
  open.defer(() => void writer.destroy());
  open.defer(() => void reader.destroy());
  return [writer, reader];
}

/** Reads all that the kernel has, again and again: how often that ended within a piece, and the bytes. */
async function readAll(reader: Socket, pieces: readonly Uint8Array[]) {
  let total = 0;
  const ends = new Set(pieces.map((piece) => (total += piece.length)));
  const buffer = Buffer.alloc(8 * MIB);
  const chunks: Buffer[] = [];
  let [bytes, endedWithin] = [0, 0];
  while (bytes < total) {
    const count = readInto(descriptorOf(reader) ?? -1, buffer);
    if (count === 0) throw new Error('the stream has ended');
    if (count !== undefined) {
      chunks.push(Buffer.from(buffer.subarray(0, count)));
      bytes += count;
      if (!ends.has(bytes)) endedWithin += 1;
    }
    await setImmediate();
  }
  return { endedWithin, bytes: Buffer.concat(chunks) };
}

const pieces = Array.from({ length: 3000 }, (_, index) => Buffer.alloc(18 + ((index * 7919) % 1500), index));

it('a reader that has read all there is never stands within a piece, and gets all of them in order', async () => {
  const [writer, reader] = await socketPair();
  const writes = new SeparateWrites(writer);
  for (const piece of pieces) writes.write(piece);
  expect(writes.waitingBytes).toBeGreaterThan(MIB);
  const read = await readAll(reader, pieces);
  expect(read.endedWithin).toBe(0);
  expect(read.bytes.equals(Buffer.concat(pieces))).toBe(true);
  await expect.poll(() => writes.waitingBytes).toBe(0);
});

it('one whose writer leaves it to Node does (control)', async () => {
  const [writer, reader] = await socketPair();
  for (const piece of pieces) writer.write(piece);
  expect((await readAll(reader, pieces)).endedWithin).toBeGreaterThan(0);
});
