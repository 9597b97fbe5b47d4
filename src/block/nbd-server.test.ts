import { statSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { MemoryDisk, RawClient, requestOf, TestFolder } from './nbd-fixture.ts';
import { NbdServer } from './nbd-server.ts';
import {
  CHUNK,
  COMMAND,
  COMMAND_FLAG,
  NBD_ERRNO,
  NBD_PAYLOAD_BYTES_MAX,
  OPTION,
  optionRequest,
} from './nbd-wire.ts';

let folder: TestFolder;
let disk: MemoryDisk;
let server: NbdServer;
let troubles: unknown[];

beforeEach(async () => {
  folder = new TestFolder();
  disk = new MemoryDisk(64 * 1024);
  troubles = [];
  server = await serve({ readOnly: false });
});

afterEach(async () => {
  disk.before = () => {};
  await server.close();
  folder[Symbol.dispose]();
});

function serve({ readOnly }: { readOnly: boolean }): Promise<NbdServer> {
  return NbdServer.listen({
    socketPath: folder.file(`${readOnly}.sock`),
    exports: [{ name: 'disk', device: disk, readOnly }],
    onTrouble: (thrown) => troubles.push(thrown),
  });
}

const simpleClient = () => RawClient.ready(folder.file('false.sock'), { structured: false });

/** Error and cookie of a simple reply. */
async function simpleReply(client: RawClient): Promise<{ error: number; low: number }> {
  const bytes = await client.take(16);
  expect([bytes.readUInt32BE(0), bytes.readUInt32BE(8)]).toEqual([0x67446698, 0xfeed]);
  return { error: bytes.readUInt32BE(4), low: bytes.readUInt32BE(12) };
}

describe('a server', () => {
  test('lets nobody else open its socket', () => {
    expect(statSync(folder.file('false.sock')).mode & 0o777).toBe(0o600);
  });

  test('writes and reads any bytes, aligned or not', async () => {
    using client = await simpleClient();
    client.send(requestOf(COMMAND.write, 1, { offset: 4095, lengthBytes: 3 }), Buffer.from('abc'));
    expect(await simpleReply(client)).toEqual({ error: 0, low: 1 });
    client.send(requestOf(COMMAND.read, 2, { offset: 4094, lengthBytes: 5 }));
    expect(await simpleReply(client)).toEqual({ error: 0, low: 2 });
    expect((await client.take(5)).toString()).toBe('\0abc\0');
  });

  test('answers in the order in which requests are done, not in which they came', async () => {
    using client = await simpleClient();
    const gate = Promise.withResolvers<void>();
    disk.before = (call) => (call === 'flush' ? gate.promise : undefined);
    client.send(
      requestOf(COMMAND.flush, 1),
      requestOf(COMMAND.write, 2, { lengthBytes: 1 }),
      Buffer.from('x'),
    );
    expect((await simpleReply(client)).low).toBe(2);
    gate.resolve();
    expect((await simpleReply(client)).low).toBe(1);
  });

  test('refuses what lies outside, flags and commands it does not know, and goes on', async () => {
    using client = await simpleClient();
    const size = disk.sizeBytes;
    const cases = [
      [requestOf(COMMAND.read, 0, { offset: size - 1, lengthBytes: 2 }), 'EINVAL'],
      [requestOf(COMMAND.read, 0, { offset: 2 ** 53, lengthBytes: 1 }), 'EINVAL'],
      [requestOf(COMMAND.read, 0, { lengthBytes: 0xffffffff }), 'EINVAL'],
      [requestOf(COMMAND.writeZeroes, 0, { offset: size, lengthBytes: 1 }), 'ENOSPC'],
      [requestOf(COMMAND.trim, 0, { offset: 1, lengthBytes: size }), 'EINVAL'],
      [requestOf(COMMAND.read, 0, { lengthBytes: 1, flags: 0x8000 }), 'EINVAL'],
      [requestOf(COMMAND.read, 0, { lengthBytes: 1, flags: COMMAND_FLAG.doNotFragment }), 'EINVAL'],
      [requestOf(COMMAND.flush, 0, { offset: 1 }), 'EINVAL'],
      [requestOf(COMMAND.blockStatus, 0, { lengthBytes: 1 }), 'EINVAL'],
      [requestOf(99, 0), 'EINVAL'],
    ] as const;
    for (const [bytes, errno] of cases) {
      client.send(bytes);
      expect((await simpleReply(client)).error).toBe(NBD_ERRNO[errno]);
    }
    client.send(requestOf(COMMAND.write, 0, { offset: size, lengthBytes: 2 }), Buffer.from('zz'));
    expect((await simpleReply(client)).error).toBe(NBD_ERRNO.ENOSPC);
    expect(disk.calls).toEqual([]);
    client.send(requestOf(COMMAND.flush, 7));
    expect(await simpleReply(client)).toEqual({ error: 0, low: 7 });
  });

  test('passes on whether a write is to be durable, and whether zeros may be holes', async () => {
    using client = await simpleClient();
    const place = { lengthBytes: 1, flags: COMMAND_FLAG.fua };
    client.send(requestOf(COMMAND.write, 1, place), Buffer.from('x'));
    await simpleReply(client);
    client.send(requestOf(COMMAND.writeZeroes, 2, { lengthBytes: 9, flags: COMMAND_FLAG.noHole }));
    await simpleReply(client);
    client.send(requestOf(COMMAND.writeZeroes, 3, { lengthBytes: 9, flags: COMMAND_FLAG.fastZero }));
    await simpleReply(client);
    expect(disk.calls).toEqual(['write fua', 'zero no-hole', 'zero']);
  });

  test('changes nothing that is read-only', async () => {
    await using guarded = await serve({ readOnly: true });
    expect(guarded).toBeDefined();
    using client = await RawClient.ready(folder.file('true.sock'), { structured: false });
    client.send(requestOf(COMMAND.write, 1, { lengthBytes: 1 }), Buffer.from('x'));
    expect((await simpleReply(client)).error).toBe(NBD_ERRNO.EPERM);
    client.send(requestOf(COMMAND.trim, 2, { lengthBytes: 1 }));
    expect((await simpleReply(client)).error).toBe(NBD_ERRNO.EPERM);
    expect(disk.calls).toEqual([]);
    client.send(requestOf(COMMAND.disconnect, 3));
    await client.rest();
  });

  test('tells the errno of a disk that fails, and EIO for anything else', async () => {
    using client = await simpleClient();
    for (const [thrown, errno] of [
      [Object.assign(new Error('full'), { code: 'ENOSPC' }), 'ENOSPC'],
      [new Error('who knows'), 'EIO'],
    ] as const) {
      disk.before = () => Promise.reject(thrown);
      client.send(requestOf(COMMAND.write, 1, { lengthBytes: 1 }), Buffer.from('x'));
      expect((await simpleReply(client)).error).toBe(NBD_ERRNO[errno]);
    }
    expect(troubles).toEqual([new Error('who knows')]);
  });

  test('sends errors and data as chunks to whoever asked for that', async () => {
    using client = await RawClient.ready(folder.file('false.sock'), { structured: true });
    disk.bytes.write('hello');
    client.send(requestOf(COMMAND.read, 5, { lengthBytes: 5 }));
    const data = await client.take(20 + 8 + 5);
    expect([data.readUInt16BE(4), data.readUInt16BE(6), data.readUInt32BE(16)]).toEqual([1, CHUNK.data, 13]);
    expect(data.subarray(28).toString()).toBe('hello');
    client.send(requestOf(COMMAND.read, 5, { offset: disk.sizeBytes, lengthBytes: 5 }));
    const failure = await client.take(26);
    expect([failure.readUInt16BE(6), failure.readUInt32BE(20)]).toEqual([CHUNK.error, NBD_ERRNO.EINVAL]);
  });

  test('takes no more requests than may be in flight, and answers all of them in the end', async () => {
    using client = await simpleClient();
    const gate = Promise.withResolvers<void>();
    disk.before = () => gate.promise;
    const count = 1000;
    for (let low = 0; low < count; low++) client.send(requestOf(COMMAND.read, low, { lengthBytes: 8 }));
    while (disk.calls.length < 256) await new Promise((resolve) => setImmediate(resolve));
    // Another client gets through meanwhile, which is the time in which the first one's requests could have, too.
    using other = await simpleClient();
    other.send(requestOf(COMMAND.trim, 0));
    await simpleReply(other);
    expect(disk.calls).toHaveLength(256);
    gate.resolve();
    const lows = new Set<number>();
    for (let index = 0; index < count; index++) lows.add((await client.take(24)).readUInt32BE(12));
    expect(lows.size).toBe(count);
  });

  test('holds no more than two of the largest writes, whatever is sent, and has all of them in the end', async () => {
    const large = new MemoryDisk(NBD_PAYLOAD_BYTES_MAX);
    const socketPath = folder.file('large.sock');
    await using _ = await NbdServer.listen({
      socketPath,
      exports: [{ name: 'disk', device: large, readOnly: false }],
    });
    using client = await RawClient.ready(socketPath, { structured: false });
    const gate = Promise.withResolvers<void>();
    large.before = (call) => (call === 'write' ? gate.promise : undefined);
    const payload = Buffer.alloc(NBD_PAYLOAD_BYTES_MAX, 7);
    for (const low of [1, 2, 3]) {
      client.send(requestOf(COMMAND.write, low, { lengthBytes: payload.length }));
      client.socket.write(payload);
    }
    while (large.calls.length < 2) await new Promise((resolve) => setImmediate(resolve));
    // Another client gets through meanwhile.
    using other = await RawClient.ready(socketPath, { structured: false });
    other.send(requestOf(COMMAND.trim, 0, { lengthBytes: 1 }));
    await simpleReply(other);
    expect(large.calls).toEqual(['write', 'write', 'trim']);
    gate.resolve();
    for (const low of [1, 2, 3]) expect(await simpleReply(client)).toEqual({ error: 0, low });
    expect(large.bytes.equals(payload)).toBe(true);
  });

  test('that closes answers what it took, and then hangs up', async () => {
    using client = await simpleClient();
    const gate = Promise.withResolvers<void>();
    disk.before = () => gate.promise;
    client.send(requestOf(COMMAND.write, 1, { lengthBytes: 1 }), Buffer.from('x'));
    while (disk.calls.length === 0) await new Promise((resolve) => setImmediate(resolve));
    const closed = server.close();
    gate.resolve();
    expect((await simpleReply(client)).error).toBe(0);
    expect((await client.rest()).length).toBe(0);
    await closed;
    expect(() => statSync(folder.file('false.sock'))).toThrow('ENOENT');
  });

  test('hangs up on a client that breaks the protocol, and serves the others', async () => {
    using bad = await simpleClient();
    using good = await simpleClient();
    bad.send(Buffer.alloc(28, 0xff));
    await bad.rest();
    expect(troubles).toEqual([expect.objectContaining({ code: 'BLOCK_NBD_VIOLATION' })]);
    using early = await RawClient.connect(folder.file('false.sock'));
    early.send(optionRequest(OPTION.abort));
    expect((await early.rest()).readUInt32BE(12)).toBe(1);
    good.send(requestOf(COMMAND.flush, 1));
    expect((await simpleReply(good)).error).toBe(0);
  });
});
