import { createServer, type Server, type Socket } from 'node:net';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ByteQueue } from './byte-queue.ts';
import { NbdClientDevice } from './nbd-client-device.ts';
import { MemoryDisk, TestFolder } from './nbd-fixture.ts';
import { ReplyReader } from './nbd-replies.ts';
import { NbdServer } from './nbd-server.ts';
import { CHUNK, NBD_ERRNO, putChunk, putSimpleReply, putUint64 } from './nbd-wire.ts';

let folder: TestFolder;

beforeEach(() => {
  folder = new TestFolder();
});

afterEach(() => folder[Symbol.dispose]());

describe('a disk that another program serves', () => {
  let disk: MemoryDisk;
  let server: NbdServer;
  let client: NbdClientDevice;

  beforeEach(async () => {
    disk = new MemoryDisk(32 * 1024);
    const socketPath = folder.file('nbd.sock');
    server = await NbdServer.listen({ socketPath, exports: [{ name: '', device: disk, readOnly: false }] });
    client = await NbdClientDevice.connect(socketPath);
  });

  afterEach(async () => {
    await client.close();
    await server.close();
  });

  test('is read and written, many requests at a time', async () => {
    expect(client.sizeBytes).toBe(disk.sizeBytes);
    await Promise.all(
      Array.from({ length: 600 }, (_, index) => client.write(index * 50, Buffer.alloc(50, index % 256))),
    );
    const found = await Promise.all(
      Array.from({ length: 600 }, async (_, index) => {
        const into = Buffer.alloc(50);
        await client.read(index * 50, into);
        return into.equals(Buffer.alloc(50, index % 256));
      }),
    );
    expect(found.every((same) => same)).toBe(true);
  });

  test('is asked for zeros, durability and extents as its user asks for them', async () => {
    await client.write(0, Buffer.alloc(4096, 1), { fua: true });
    await client.zero(100, 100, { mayPunch: false });
    await client.trim(1000, 10);
    await client.flush();
    expect(disk.calls).toEqual(['write fua', 'zero no-hole', 'trim', 'flush']);
    expect(await client.extents(90, 120)).toEqual([
      { lengthBytes: 10, hole: false, zero: false },
      { lengthBytes: 100, hole: true, zero: true },
      { lengthBytes: 10, hole: false, zero: false },
    ]);
  });

  test('says what went wrong, and goes on', async () => {
    disk.before = () => Promise.reject(Object.assign(new Error('full'), { code: 'ENOSPC' }));
    await expect(client.write(0, Buffer.alloc(1))).rejects.toMatchObject({ errnoName: 'ENOSPC' });
    disk.before = () => {};
    await client.write(0, Buffer.alloc(1, 9));
    expect(disk.bytes[0]).toBe(9);
  });

  test('fails whatever is in flight when that program ends, and all that follows', async () => {
    const gate = Promise.withResolvers<void>();
    disk.before = () => gate.promise;
    const flushed = client.flush();
    const lost = expect(flushed).rejects.toMatchObject({ code: 'BLOCK_NBD_LOST' });
    while (disk.calls.length === 0) await new Promise((resolve) => setImmediate(resolve));
    gate.reject(new Error('gone'));
    disk.before = () => {};
    // The request is answered, as the server ends in good order; the next one finds nobody.
    await expect(Promise.race([flushed, lost])).rejects.toThrow();
    await server.close();
    await expect(client.flush()).rejects.toMatchObject({ code: 'BLOCK_NBD_LOST' });
  });
});

describe('replies', () => {
  /** An answer to each of three requests, the second one a failure, in the one form or the other. */
  function stream(structured: boolean): Buffer {
    const cookie = (low: number) => ({ high: 0, low });
    const data = Buffer.from('0123456789');
    if (!structured) {
      const heads = [0, NBD_ERRNO.ENOSPC, 0].map((error, index) => {
        const bytes = Buffer.alloc(16);
        putSimpleReply(bytes, cookie(index + 1), error);
        return bytes;
      });
      return Buffer.concat([heads[0] ?? data, data, heads[1] ?? data, heads[2] ?? data]);
    }
    const read = Buffer.alloc(28);
    putChunk(read, cookie(1), { type: CHUNK.data, lengthBytes: 14 });
    read.writeUInt16BE(0, 4);
    putUint64(read, 20, 100);
    const hole = Buffer.alloc(32);
    putChunk(hole, cookie(1), { type: CHUNK.hole, lengthBytes: 12 });
    putUint64(hole, 20, 106);
    hole.writeUInt32BE(4, 28);
    const error = Buffer.alloc(26);
    putChunk(error, cookie(2), { type: CHUNK.error, lengthBytes: 6 });
    error.writeUInt32BE(NBD_ERRNO.ENOSPC, 20);
    const done = Buffer.alloc(20);
    putChunk(done, cookie(3), { type: CHUNK.none, lengthBytes: 0 });
    return Buffer.concat([read, data.subarray(0, 6), hole, error, done]);
  }

  test('are understood the same however they are cut', () => {
    fc.assert(
      fc.property(
        fc.boolean(),
        fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }),
        (structured, cuts) => {
          const into = Buffer.alloc(10, 0xff);
          const done: [number, number][] = [];
          const onDone = (cookie: number) => (error: number) => done.push([cookie, error]);
          const targets = new Map([
            [1, { read: { offset: 100, into }, onDone: onDone(1) }],
            [2, { onDone: onDone(2) }],
            [3, { onDone: onDone(3) }],
          ]);
          const reader = new ReplyReader(targets);
          const queue = new ByteQueue();
          const bytes = stream(structured);
          for (let at = 0, index = 0; at < bytes.length; index++) {
            const cut = cuts[index % cuts.length] ?? 1;
            queue.push(bytes.subarray(at, at + cut));
            reader.advance(queue);
            at += cut;
          }
          expect(done).toEqual([
            [1, 0],
            [2, NBD_ERRNO.ENOSPC],
            [3, 0],
          ]);
          expect(into.toString('latin1')).toBe(structured ? '012345\0\0\0\0' : '0123456789');
          expect(targets.size).toBe(0);
        },
      ),
    );
  });

  test('that answer nothing, or bring what nobody asked for, are refused', () => {
    const fed = (bytes: Buffer) => () => {
      const queue = new ByteQueue();
      queue.push(bytes);
      const read = { offset: 0, into: Buffer.alloc(4) };
      new ReplyReader(new Map([[1, { read, onDone: () => {} }]])).advance(queue);
    };
    const stranger = Buffer.alloc(16);
    putSimpleReply(stranger, { high: 0, low: 2 }, 0);
    const beyond = Buffer.alloc(20 + 8 + 5);
    putChunk(beyond, { high: 0, low: 1 }, { type: CHUNK.data, lengthBytes: 13 });
    const large = Buffer.alloc(20);
    putChunk(large, { high: 0, low: 1 }, { type: CHUNK.blockStatus, lengthBytes: 0x7fffffff });
    for (const bytes of [Buffer.alloc(16, 1), stranger, beyond, large]) {
      expect(fed(bytes)).toThrow(expect.objectContaining({ code: 'BLOCK_NBD_VIOLATION' }));
    }
  });
});

describe('a server that is none', () => {
  let server: Server;
  const sockets: Socket[] = [];

  afterEach(() => {
    for (const socket of sockets.splice(0)) socket.destroy();
    server.close();
  });

  test.each([
    { how: 'hangs up', says: undefined, code: 'BLOCK_NBD_LOST' },
    { how: 'says something else', says: Buffer.alloc(100, 7), code: 'BLOCK_NBD_VIOLATION' },
  ])('and $how is noticed', async ({ says, code }) => {
    server = createServer((socket) => {
      sockets.push(socket);
      socket.on('error', () => {});
      if (says === undefined) socket.end();
      else socket.write(says);
    });
    await new Promise<void>((resolve) => server.listen(folder.file('none.sock'), resolve));
    await expect(NbdClientDevice.connect(folder.file('none.sock'))).rejects.toMatchObject({ code });
  });
});
