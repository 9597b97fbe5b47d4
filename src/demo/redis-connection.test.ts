import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../base/clock.ts';
import { RedisConnection } from './redis-connection.ts';

const HOST = '127.0.0.1';
let open: AsyncDisposableStack;
beforeEach(() => {
  open = new AsyncDisposableStack();
});
afterEach(() => open.disposeAsync());

/** Somebody who speaks on the port of a Redis. */
async function listener(onConnection: (socket: Socket) => void): Promise<number> {
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    socket.on('error', () => {});
    sockets.push(socket);
    onConnection(socket);
  }).listen(0, HOST);
  open.defer(async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
    await once(server, 'close');
  });
  await once(server, 'listening');
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('a TCP server has a port');
  return address.port;
}

describe('a connection to Redis', () => {
  it('gives replies to commands in their order, without waiting between them', async () => {
    const port = await listener((socket) => {
      let received = '';
      socket.on('data', (chunk) => {
        received += chunk;
        // Both commands are there before the first is answered.
        if (received.includes('SECOND')) socket.write('+one\r\n+two\r\n');
      });
    });
    using connection = await RedisConnection.connect({ host: HOST, port, clock });
    expect(await Promise.all([connection.call('FIRST'), connection.call('SECOND')])).toEqual(['one', 'two']);
  });

  it('fails every open command when it is closed, and takes no other', async () => {
    const port = await listener((socket) => socket.on('data', () => socket.destroy()));
    using connection = await RedisConnection.connect({ host: HOST, port, clock });
    const calls = await Promise.allSettled([connection.call('A'), connection.call('B')]);
    expect(calls.map(({ status }) => status)).toEqual(['rejected', 'rejected']);
    await expect(connection.call('C')).rejects.toMatchObject({ code: 'DEMO_REDIS_CLOSED' });
    expect(connection.lost).toMatchObject({ code: 'DEMO_REDIS_CLOSED' });
  });

  it('is given up when a reply does not come', async () => {
    const port = await listener(() => {});
    using connection = await RedisConnection.connect({ host: HOST, port, clock, replyDeadlineMs: 20 });
    await expect(connection.call('PING')).rejects.toMatchObject({ code: 'DEMO_REDIS_SILENT' });
  });

  it('is given up when what comes is no Redis', async () => {
    const port = await listener((socket) => socket.write('SSH-2.0-OpenSSH\r\n'));
    using connection = await RedisConnection.connect({ host: HOST, port, clock });
    await expect(connection.call('PING')).rejects.toMatchObject({ code: 'DEMO_REDIS_GARBLED' });
  });

  it('is not made where nobody listens', async () => {
    await expect(RedisConnection.connect({ host: HOST, port: 1, clock })).rejects.toMatchObject({
      code: 'DEMO_REDIS_CLOSED',
    });
  });
});
