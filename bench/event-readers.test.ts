import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { serveApi, socketDirectory } from '../src/api/api-fixture.ts';
import { EventReaders } from './event-readers.ts';

const signal = new AbortController().signal;

describe('many readers of events', () => {
  it('get each event once and in order, and are seen to', async () => {
    await using api = await serveApi();
    api.service.emit('alpha', 'early');
    await using readers = await EventReaders.open(api.socketPath, { count: 60, signal });
    for (const _ of [2, 3]) {
      const all = readers.nextEvent(signal);
      api.service.emit('alpha', 'tick', { text: 'two\r\nlines' });
      await all;
    }
    expect(readers.compare([2, 3])).toEqual({ served: 60, lost: 0, doubled: 0 });
    expect(readers.compare([2, 3, 4])).toEqual({ served: 0, lost: 60, doubled: 0 });
    expect(readers.compare([3, 2])).toMatchObject({ served: 0 });
  });

  it('are seen to miss an event, and to get one twice', async () => {
    using directory = socketDirectory();
    const socketPath = join(directory.path, 'api.sock');
    const frame = (id: number) => `id: ${id}\nevent: tick\ndata: {}\n\n`;
    // A host that forgets and repeats.
    const server = createServer((socket) => {
      socket.on('error', () => {});
      socket.once('data', () => {
        socket.write(`HTTP/1.1 200 OK\r\n\r\nid: 0\n\n${frame(1)}${frame(1)}${frame(3)}`);
      });
    });
    await new Promise<void>((resolve) => server.listen(socketPath, resolve));
    try {
      await using readers = await EventReaders.open(socketPath, { count: 3, signal });
      await expect.poll(() => readers.compare([1, 2, 3])).toEqual({ served: 0, lost: 3, doubled: 3 });
    } finally {
      server.close();
    }
  });
});
