import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import { describe, expect, it } from 'vitest';
import { type Logger, silentLogger } from '../base/logger.ts';
import { ask, ManualClock, type ServedApi, serveApi } from './api-fixture.ts';
import { HEARTBEAT_MS, STALL_MAX_MS } from './event-streams.ts';

const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index);

/** A reader of the stream that keeps what it got. */
function read(api: ServedApi, path: string, headers: Record<string, string> = {}): Socket & { got: string } {
  const socket = Object.assign(createConnection(api.socketPath), { got: '' });
  socket.setEncoding('utf8');
  socket.on('data', (text: string) => {
    socket.got += text;
  });
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.write(`GET ${path} HTTP/1.1\r\nHost: x\r\n${lines.join('')}\r\n`);
  return socket;
}

const ids = ({ got }: { got: string }) =>
  [...got.matchAll(/^id: (\d+)\nevent: /gm)].map(([, id]) => Number(id));

describe('the stream of events', () => {
  it('is one of server-sent events', async () => {
    await using api = await serveApi();
    api.service.emit('alpha', 'vm-started', { text: 'two\nlines' });
    using reader = disposable(read(api, '/v1/events/stream?after=0', { 'X-Request-Id': 'r1' }));
    await expect.poll(() => ids(reader.socket)).toEqual([1]);
    const { got } = reader.socket;
    expect(got).toMatch(/^HTTP\/1\.1 200 .*content-type: text\/event-stream\r\n/s);
    expect(got).toMatch(/x-request-id: r1\r\n/);
    const data = /id: 1\nevent: vm-started\ndata: (.*)\n\n/.exec(got)?.[1] ?? '';
    expect(JSON.parse(data)).toEqual(api.service.events[0]);
  });

  it('goes on at every point where it may be cut, without gap and double, while events come in', async () => {
    await using api = await serveApi();
    for (const _ of range(1, 250)) api.service.emit('alpha', 'tick');
    // 0, 1, the edges of pages, the newest
    for (const after of [0, 1, 99, 100, 101, 149, 150, 199, 200, 201, 249, 250]) {
      const newest = api.service.events.length;
      using reader = disposable(read(api, '/v1/events/stream?after=3', { 'Last-Event-ID': String(after) }));
      // One while it connects, one at a time while it catches up, some when it is live.
      api.service.emit('alpha', 'early');
      await once(reader.socket, 'data');
      api.service.emit('alpha', 'live');
      await expect.poll(() => ids(reader.socket).at(-1)).toBe(newest + 2);
      api.service.emit('alpha', 'live');
      await expect.poll(() => ids(reader.socket).at(-1)).toBe(newest + 3);
      expect(ids(reader.socket)).toEqual(range(after + 1, newest + 3));
    }
  });

  it('begins with what is to come where nobody says after what, and a reader that is cut off at once misses nothing', async () => {
    await using api = await serveApi();
    for (const _ of range(1, 5)) api.service.emit('alpha', 'early');
    using first = disposable(read(api, '/v1/events/stream'));
    await expect.poll(() => first.socket.got).toContain('\nid: 5\n\n');
    api.service.emit('alpha', 'live');
    await expect.poll(() => ids(first.socket)).toEqual([6]);
    // As the standard has it, one that saw no event gives the place that it was told.
    using second = disposable(read(api, '/v1/events/stream', { 'Last-Event-ID': '5' }));
    await expect.poll(() => ids(second.socket)).toEqual([6]);
  });

  it('is of one VM on request', async () => {
    await using api = await serveApi();
    for (const vm of ['alpha', 'beta', 'alpha']) api.service.emit(vm, 'early');
    using reader = disposable(read(api, '/v1/events/stream?after=0&vm=alpha'));
    await expect.poll(() => ids(reader.socket)).toEqual([1, 3]);
    for (const vm of ['beta', null, 'alpha']) api.service.emit(vm, 'live');
    await expect.poll(() => ids(reader.socket)).toEqual([1, 3, 6]);
  });

  it('tells an event once that is announced after it was read in the journal', async () => {
    await using api = await serveApi();
    const event = api.service.record('alpha', 'tick');
    using reader = disposable(read(api, '/v1/events/stream?after=0'));
    await expect.poll(() => ids(reader.socket)).toEqual([1]);
    api.service.announce(event);
    api.service.emit('alpha', 'tick');
    await expect.poll(() => ids(reader.socket)).toEqual([1, 2]);
  });

  it.each(['that were there before', 'that come in'])(
    'hands events %s to a slow reader at its own speed, and it misses none',
    async (which) => {
      await using api = await serveApi();
      const asked = pagesAsked(api);
      const filler = 'x'.repeat(50_000);
      const emitAll = () => range(1, 60).forEach(() => void api.service.emit('alpha', 'tick', { filler }));
      if (which === 'that were there before') emitAll();
      using reader = disposable(read(api, '/v1/events/stream?after=0'));
      reader.socket.pause();
      await expect.poll(() => asked[0]).toBe(0);
      if (which === 'that come in') emitAll();
      // A newer one does not get past those that wait.
      api.service.emit('alpha', 'tick');
      reader.socket.resume();
      await expect.poll(() => ids(reader.socket).at(-1)).toBe(61);
      expect(ids(reader.socket)).toEqual(range(1, 61));
      // What had been written ahead of the reader is what fits into a socket.
      expect(asked[1]).toBeLessThan(20);
    },
  );

  it('is closed to a reader that does not read', async () => {
    const clock = new ManualClock();
    const warned: string[] = [];
    const log: Logger = { ...silentLogger, warn: (message) => warned.push(message) };
    await using api = await serveApi({ clock, log });
    const asked = pagesAsked(api);
    using reader = disposable(read(api, '/v1/events/stream'));
    await once(reader.socket, 'data');
    reader.socket.pause();
    const filler = 'x'.repeat(50_000);
    for (const _ of range(1, 400)) api.service.emit('alpha', 'tick', { filler });
    expect(asked).toEqual([0]);
    // What fits into the socket may still drain; then nothing moves.
    await expect
      .poll(() => {
        clock.advance(STALL_MAX_MS);
        return warned;
      })
      .toEqual(['a reader of events does not read']);
    reader.socket.resume();
    await once(reader.socket, 'close');
    expect(ids(reader.socket).length).toBeLessThan(40);
  });

  it('gives a sign of life when nothing happens', async () => {
    const clock = new ManualClock();
    await using api = await serveApi({ clock });
    using reader = disposable(read(api, '/v1/events/stream'));
    await once(reader.socket, 'data');
    for (const beats of [1, 2]) {
      clock.advance(HEARTBEAT_MS);
      await expect.poll(() => reader.socket.got.split('\n:\n').length - 1).toBe(beats);
    }
  });

  it('ends when the journal fails', async () => {
    const logged: unknown[] = [];
    await using api = await serveApi({ log: { ...silentLogger, error: (...line) => logged.push(line) } });
    api.service.listEvents = () => {
      throw new Error('disk on fire');
    };
    using reader = disposable(read(api, '/v1/events/stream'));
    await once(reader.socket, 'close');
    expect(logged).toHaveLength(1);
    expect((await ask(api.socketPath, { path: '/v1/health' })).status).toBe(200);
  });

  it('ends with the server', async () => {
    const api = await serveApi();
    using reader = disposable(read(api, '/v1/events/stream'));
    await once(reader.socket, 'data');
    await Promise.all([once(reader.socket, 'close'), api[Symbol.asyncDispose]()]);
  });
});

/** After which events the journal was asked for more. */
function pagesAsked({ service }: ServedApi): number[] {
  const asked: number[] = [];
  const { listEvents } = service;
  service.listEvents = (page) => {
    asked.push(page.after);
    return listEvents.call(service, page);
  };
  return asked;
}

function disposable<Reader extends Socket>(socket: Reader): Disposable & { readonly socket: Reader } {
  return { socket, [Symbol.dispose]: () => socket.destroy() };
}
