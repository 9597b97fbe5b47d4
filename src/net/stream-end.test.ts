import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { StreamEnd } from './stream-end.ts';
import { StreamServer } from './stream-server.ts';

const bytes = (text: string) => Buffer.from(text);

let folder = '';
let open: AsyncDisposableStack;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'understudy-stream-'));
  open = new AsyncDisposableStack();
  open.defer(() => rmSync(folder, { recursive: true, force: true }));
});

afterEach(() => open.disposeAsync());

function watch(end: StreamEnd) {
  const seen: Buffer[] = [];
  const client = end.connect({ onOutput: (output) => seen.push(Buffer.from(output)) });
  return { client, seen: () => Buffer.concat(seen).toString() };
}

async function dial(path: string): Promise<{ socket: Socket; seen: () => string }> {
  const socket = connect(path);
  open.defer(() => {
    socket.destroy();
  });
  let seen = '';
  socket.on('data', (chunk) => {
    seen += chunk.toString();
  });
  await new Promise<void>((resolve) => socket.once('connect', () => resolve()));
  return { socket, seen: () => seen };
}

test('every watcher sees the output, a later one what came before', () => {
  const end = new StreamEnd();
  const first = watch(end);
  end.send(bytes('login: '));
  const second = watch(end);
  end.send(bytes('root'));
  first.client.close();
  end.send(bytes('\n'));
  expect([first.seen(), second.seen()]).toEqual(['login: root', 'login: root\n']);
});

test('the scrollback keeps the end of the output and stays bounded', () => {
  const end = new StreamEnd({ scrollbackBytes: 100 });
  for (let number = 0; number < 10_000; number += 1) end.send(bytes(`${number},`));
  const seen = watch(end).seen();
  expect(seen.endsWith('9998,9999,')).toBe(true);
  expect(seen.length).toBeGreaterThanOrEqual(100);
  expect(seen.length).toBeLessThanOrEqual(200);
});

test('any watcher may type, and is asked to wait while input is full', () => {
  const end = new StreamEnd();
  const typed: string[] = [];
  end.receive((input) => typed.push(Buffer.from(input).toString()));
  const room = vi.fn();
  const one = end.connect({ onOutput: () => {}, onRoom: room });
  const two = watch(end).client;
  expect(one.write(bytes('l'))).toBe(true);
  end.pause();
  expect(two.write(bytes('s'))).toBe(false);
  end.resume();
  expect(room).toHaveBeenCalledTimes(1);
  expect(typed).toEqual(['l', 's']);
});

test('what was written stays what it was although its buffer is used again', () => {
  const end = new StreamEnd();
  const typed: Uint8Array[] = [];
  end.receive((input) => typed.push(input));
  const buffer = bytes('ls');
  watch(end).client.write(buffer);
  end.send(buffer);
  buffer.fill(0);
  expect([...typed, watch(end).seen()].map((text) => Buffer.from(text).toString())).toEqual(['ls', 'ls']);
});

test('other processes watch and type through a socket', async () => {
  const end = new StreamEnd();
  const typed: string[] = [];
  end.receive((input) => typed.push(Buffer.from(input).toString()));
  end.send(bytes('login: '));
  const path = join(folder, 'console');
  const server = open.use(await StreamServer.listen(path, end));
  const [one, two] = [await dial(path), await dial(path)];
  one.socket.write('root');
  await vi.waitFor(() => expect(typed.join('')).toBe('root'));
  end.send(bytes('root'));
  await vi.waitFor(() => expect([one.seen(), two.seen()]).toEqual(['login: root', 'login: root']));
  const ended = new Promise((resolve) => two.socket.once('close', resolve));
  await server.close();
  await ended;
});

test('a watcher that does not read is sent away instead of filling memory', async () => {
  const end = new StreamEnd({ scrollbackBytes: 0 });
  const path = join(folder, 'console');
  open.use(await StreamServer.listen(path, end));
  const { socket } = await dial(path);
  socket.pause();
  const gone = new Promise((resolve) => socket.once('close', resolve));
  await new Promise(setImmediate);
  for (let chunk = 0; chunk < 400; chunk += 1) end.send(new Uint8Array(10_000));
  socket.resume();
  await gone;
});
