import { once } from 'node:events';
import { createConnection } from 'node:net';
import type { Duplex } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import { type ClientOptions, WebSocket } from 'ws';
import { KIB, MIB } from '../base/units.ts';
import { ask, ManualClock, type ServedApi, serveApi } from './api-fixture.ts';
import { CONSOLE_STALL_MAX_MS, PING_INTERVAL_MS } from './console-sessions.ts';

const PATH = '/v1/vms/alpha/console';
const HANDSHAKE = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
};

async function peopled(clock?: ManualClock): Promise<ServedApi> {
  const api = await serveApi(clock === undefined ? {} : { clock });
  api.service.declareVm({ spec: 'name: alpha', directory: '/', desired: 'running' });
  api.service.declareVm({ spec: 'name: beta', directory: '/', desired: 'running' });
  return api;
}

/** The guest's end of the console that was opened last. */
function guestOf({ service }: ServedApi): Duplex {
  return service.consoles.at(-1) ?? expect.unreachable('no console was opened');
}

/** A client that is not ours, and does as it is told. */
async function open({ socketPath }: ServedApi, options: ClientOptions = {}): Promise<WebSocket> {
  const socket = new WebSocket(`ws://localhost${PATH}`, {
    createConnection: () => createConnection(socketPath),
    ...options,
  });
  await once(socket, 'open');
  return socket;
}

async function closeOf(socket: WebSocket): Promise<number> {
  socket.on('error', () => {});
  return (await once(socket, 'close'))[0];
}

/** Answers to a handshake that is refused come as to any request. */
async function refusal(api: ServedApi, headers: Record<string, string> = {}, path = PATH) {
  const {
    status,
    headers: answered,
    text,
  } = await ask(api.socketPath, {
    path,
    headers: { ...HANDSHAKE, ...headers },
  });
  expect(answered['content-type']).toMatch(/^application\/problem\+json/);
  expect(answered).toMatchObject({ connection: 'close', 'x-request-id': expect.any(String) });
  return [status, JSON.parse(text).code];
}

describe('a console over the API', () => {
  it('carries bytes both ways, whatever they are and however long', async () => {
    await using api = await peopled();
    const console = await api.client.console('alpha');
    const guest = guestOf(api);
    const bytes = Buffer.from(Array.from({ length: 300 * KIB }, (_, index) => index % 251));
    console.write(bytes);
    const typed: Buffer[] = [];
    for await (const chunk of guest.iterator({ destroyOnReturn: false })) {
      typed.push(chunk);
      if (Buffer.concat(typed).length === bytes.length) break;
    }
    expect(Buffer.concat(typed).equals(bytes)).toBe(true);
    guest.end(bytes);
    expect((await buffer(console)).equals(bytes)).toBe(true);
  });

  it('loses nothing that comes with the handshake, from either side', async () => {
    await using api = await peopled();
    const { openConsole } = api.service;
    api.service.openConsole = async (name) => {
      const console = await openConsole.call(api.service, name);
      guestOf(api).write('before');
      return console;
    };
    const socket = createConnection(api.socketPath);
    const lines = Object.entries(HANDSHAKE).map(([name, value]) => `${name}: ${value}\r\n`);
    // A binary message "ls", masked with zeros (RFC 6455, 5.2).
    const message = Buffer.from([0x82, 0x82, 0, 0, 0, 0, ...Buffer.from('ls')]);
    socket.write(
      Buffer.concat([Buffer.from(`GET ${PATH} HTTP/1.1\r\nHost: a\r\n${lines.join('')}\r\n`), message]),
    );
    await vi.waitFor(() => expect(String(guestOf(api).read())).toBe('ls'));
    socket.destroy();
    for (let round = 0; round < 20; round += 1) {
      const console = await api.client.console('alpha');
      const [first] = await once(console, 'data');
      expect(String(first)).toBe('before');
      console.destroy();
      await once(console, 'close');
    }
  });

  it('ends for the client when the VM ends it, and for the VM when the client leaves', async () => {
    await using api = await peopled();
    const first = await api.client.console('alpha');
    guestOf(api).end('bye');
    expect(String(await buffer(first))).toBe('bye');
    const second = await api.client.console('alpha');
    const left = once(guestOf(api).resume(), 'close');
    second.destroy();
    await left;
  });

  it('is refused as any other request is where it cannot be opened', async () => {
    await using api = await peopled();
    await expect(api.client.console('gamma')).rejects.toMatchObject({ code: 'HOST_VM_UNKNOWN' });
    await expect(api.client.console('..')).rejects.toMatchObject({ code: 'API_NOT_FOUND' });
    expect(await refusal(api, {}, '/v1/vms/gamma/console')).toEqual([404, 'HOST_VM_UNKNOWN']);
    expect(await refusal(api, {}, '/v1/vms/%2e%2e/console')).toEqual([400, 'API_BAD_REQUEST']);
    expect(await refusal(api, { 'sec-websocket-version': '7' })).toEqual([400, 'API_BAD_REQUEST']);
    expect(await refusal(api, { 'sec-websocket-key': 'short' })).toEqual([400, 'API_BAD_REQUEST']);
    expect(api.service.consoles).toEqual([]);
    const plain = await ask(api.socketPath, { path: PATH });
    expect([plain.status, JSON.parse(plain.text).code]).toEqual([426, 'API_UPGRADE_REQUIRED']);
    expect((await ask(api.socketPath, { method: 'POST', path: PATH })).status).toBe(405);
  });

  it('is not opened for the page of another origin', async () => {
    await using api = await peopled();
    for (const origin of [
      'https://evil.example',
      'null',
      'garbage',
      'http://localhost:81',
      'http://localhost.evil',
    ])
      expect([origin, ...(await refusal(api, { origin, host: 'localhost' }))]).toEqual([
        origin,
        403,
        'API_ORIGIN_REFUSED',
      ]);
    expect(api.service.consoles).toEqual([]);
    const socket = await open(api, { origin: 'http://localhost' });
    expect(api.service.consoles).toHaveLength(1);
    socket.terminate();
  });

  it('is offered in one place only: elsewhere a request is what it is, whatever it would like to become', async () => {
    await using api = await peopled();
    for (const upgrade of ['websocket', 'h2c'])
      expect(
        (await ask(api.socketPath, { path: '/v1/health', headers: { ...HANDSHAKE, upgrade } })).status,
      ).toBe(200);
    const other = await ask(api.socketPath, { path: PATH, headers: { ...HANDSHAKE, upgrade: 'h2c' } });
    expect(other.status).toBe(426);
  });

  it('takes binary messages only, and none that is too long', async () => {
    await using api = await peopled();
    const texting = await open(api);
    texting.send('ls');
    expect(await closeOf(texting)).toBe(1003);
    const flooding = await open(api);
    flooding.send(Buffer.alloc(64 * KIB + 1));
    expect(await closeOf(flooding)).toBe(1009);
    for (const guest of api.service.consoles) expect(guest.read()).toBeNull();
  });

  it('may be opened so many times for one VM, which takes nothing from another', async () => {
    await using api = await peopled();
    const open = await Promise.all(Array.from({ length: 8 }, () => api.client.console('alpha')));
    await expect(api.client.console('alpha')).rejects.toMatchObject({ code: 'API_CONSOLES_MAX' });
    open.push(await api.client.console('beta'));
    open.shift()?.destroy();
    await vi.waitFor(async () => open.push(await api.client.console('alpha')));
    for (const console of open) console.destroy();
  });

  it('does not keep its place when it could not be opened', async () => {
    await using api = await peopled();
    for (let round = 0; round < 20; round += 1)
      await expect(api.client.console('gamma')).rejects.toMatchObject({ code: 'HOST_VM_UNKNOWN' });
    api.service.declareVm({ spec: 'name: gamma', directory: '/', desired: 'running' });
    (await api.client.console('gamma')).destroy();
  });

  it('is closed by a host that ends, which says so', async () => {
    const api = await peopled();
    const socket = await open(api);
    const console = await api.client.console('beta');
    const closed = once(console, 'error');
    const code = closeOf(socket);
    await api[Symbol.asyncDispose]();
    expect(await code).toBe(1001);
    expect((await closed)[0]).toMatchObject({
      code: 'API_CONSOLE_CLOSED',
      message: expect.stringMatching(/host ends/),
    });
  });

  it('survives what is no WebSocket at all', async () => {
    await using api = await peopled();
    const head = Object.entries(HANDSHAKE).map(([name, value]) => `${name}: ${value}\r\n`);
    await fc.assert(
      fc.asyncProperty(
        fc.uint8Array({ minLength: 2, maxLength: 300 }),
        fc.boolean(),
        async (garbage, early) => {
          const socket = createConnection(api.socketPath).on('error', () => {});
          const opening = Buffer.from(`GET ${PATH} HTTP/1.1\r\nHost: a\r\n${head.join('')}\r\n`);
          socket.write(early ? Buffer.concat([opening, garbage]) : opening);
          await once(socket, 'data');
          socket.end(garbage);
          await once(socket.resume(), 'close');
        },
      ),
      { numRuns: 100 },
    );
    await vi.waitFor(async () => (await api.client.console('alpha')).destroy());
  });
});

describe('a console whose client', () => {
  /** Sends until the host waits for the client, or all is sent; returns how much the guest got rid of. */
  async function flood(
    guest: Duplex,
    { bytesMax, until }: { bytesMax: number; until: () => boolean },
  ): Promise<number> {
    let sent = 0;
    for (; sent < bytesMax && !until(); sent += 64 * KIB) {
      if (guest.write(Buffer.alloc(64 * KIB))) continue;
      const drained = once(guest, 'drain').then(() => true);
      await vi.waitFor(async () => expect((await Promise.race([drained, nextTurn()])) || until()).toBe(true));
    }
    return sent;
  }
  const nextTurn = () => new Promise<false>((resolve) => setImmediate(resolve, false));

  it('does not read is waited for with little in memory, then disconnected', async () => {
    const clock = new ManualClock();
    await using api = await peopled(clock);
    const socket = await open(api);
    socket.pause();
    const guest = guestOf(api);
    const until = () => clock.awaits(CONSOLE_STALL_MAX_MS);
    expect(await flood(guest, { bytesMax: 64 * MIB, until })).toBeLessThan(4 * MIB);
    const gone = once(guest.on('error', () => {}).resume(), 'close');
    clock.advance(CONSOLE_STALL_MAX_MS);
    await gone;
    socket.terminate();
  });

  it('reads gets all of it, however much and however late', async () => {
    const clock = new ManualClock();
    await using api = await peopled(clock);
    const socket = await open(api);
    const guest = guestOf(api);
    let received = 0;
    socket.on('message', (bytes: Buffer) => {
      received += bytes.length;
    });
    socket.pause();
    const sent = await flood(guest, { bytesMax: 64 * MIB, until: () => clock.awaits(CONSOLE_STALL_MAX_MS) });
    clock.advance(CONSOLE_STALL_MAX_MS - 1);
    socket.resume();
    await vi.waitFor(() => expect(received).toBe(sent));
    clock.advance(CONSOLE_STALL_MAX_MS);
    const rest = await flood(guest, { bytesMax: 16 * MIB, until: () => false });
    expect(rest).toBe(16 * MIB);
    await vi.waitFor(() => expect(received).toBe(sent + rest));
    socket.terminate();
  });

  it('does not answer pings is disconnected, and one that answers is not', async () => {
    const clock = new ManualClock();
    await using api = await peopled(clock);
    const dead = await open(api, { autoPong: false });
    const living = await open(api);
    const gone = closeOf(dead);
    const pinged = [once(dead, 'ping'), once(living, 'ping')];
    clock.advance(PING_INTERVAL_MS);
    await Promise.all(pinged);
    // Its pong has been read when a message behind it has been.
    living.send(Buffer.from('x'));
    await once(guestOf(api), 'data');
    clock.advance(PING_INTERVAL_MS);
    await gone;
    expect(living.readyState).toBe(living.OPEN);
    living.terminate();
  });

  it('types more than the guest takes is waited for, and is not taken for dead meanwhile', async () => {
    const clock = new ManualClock();
    await using api = await peopled(clock);
    const console = await api.client.console('alpha');
    const guest = guestOf(api);
    const bytes = Buffer.alloc(8 * MIB, 7);
    let written = false;
    console.write(bytes, () => {
      written = true;
    });
    await vi.waitFor(() => expect(guest.readableLength).toBeGreaterThan(0));
    for (let round = 0; round < 4; round += 1) clock.advance(PING_INTERVAL_MS);
    expect(written).toBe(false);
    let typed = 0;
    for await (const chunk of guest.iterator({ destroyOnReturn: false })) {
      typed += chunk.length;
      if (typed === bytes.length) break;
    }
    expect(written).toBe(true);
    console.destroy();
  });
});
