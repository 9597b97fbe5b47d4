import { closeSync, writeSync } from 'node:fs';
import { expect, test } from 'vitest';
import { seqpacketPair } from './seqpacket.ts';
import { unreadBytes, unsentBytes } from './socket-queue.ts';

test('messages arrive whole, apart and in order, and then the end', () => {
  const { ours, theirFd } = seqpacketPair();
  using socket = ours;
  expect(socket.receive()).toEqual({ kind: 'empty' });
  writeSync(theirFd, Uint8Array.of(1, 2));
  writeSync(theirFd, Uint8Array.of(3));
  expect(socket.receive()).toEqual({ kind: 'message', bytes: Uint8Array.of(1, 2), fds: [] });
  expect(socket.receive()).toEqual({ kind: 'message', bytes: Uint8Array.of(3), fds: [] });
  expect(socket.receive()).toEqual({ kind: 'empty' });
  writeSync(theirFd, Uint8Array.of(4));
  closeSync(theirFd);
  expect(socket.receive()).toEqual({ kind: 'message', bytes: Uint8Array.of(4), fds: [] });
  expect(socket.receive()).toEqual({ kind: 'closed' });
});

test('a message that is too long is an error, not half a message', () => {
  const { ours, theirFd } = seqpacketPair();
  using socket = ours;
  writeSync(theirFd, new Uint8Array(5000));
  expect(() => socket.receive()).toThrow(expect.objectContaining({ code: 'LINUX_MESSAGE_CUT' }));
  closeSync(theirFd);
});

test('the queues of a socket tell what was not read yet', () => {
  const { ours, theirFd } = seqpacketPair();
  using socket = ours;
  expect([unsentBytes(theirFd), unreadBytes(socket.fd)]).toEqual([0, 0]);
  writeSync(theirFd, new Uint8Array(300));
  expect(unsentBytes(theirFd)).toBeGreaterThanOrEqual(300);
  expect(unreadBytes(socket.fd)).toBe(300);
  socket.receive();
  expect([unsentBytes(theirFd), unreadBytes(socket.fd)]).toEqual([0, 0]);
  closeSync(theirFd);
});

test('a closed descriptor is told apart from an empty queue', () => {
  expect(() => unsentBytes(-1)).toThrow(
    expect.objectContaining({ call: 'ioctl SIOCOUTQ', errnoName: 'EBADF' }),
  );
});
