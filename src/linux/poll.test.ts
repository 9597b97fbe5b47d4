import { closeSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { expect, onTestFinished, test } from 'vitest';
import { watchReadable } from './event-watch.ts';
import { clearEventFd, openEventFd, pollReadable, readInto, signalEventFd, writeFrom } from './poll.ts';
import { seqpacketPair } from './seqpacket.ts';

function eventFd(): number {
  const fd = openEventFd();
  onTestFinished(() => closeSync(fd));
  return fd;
}

test('poll names the descriptors that can be read, and none after its time', () => {
  const [first, second] = [eventFd(), eventFd()];
  expect(pollReadable([first, second], 0)).toEqual([]);
  expect(pollReadable([first, second], 1)).toEqual([]);
  signalEventFd(second);
  signalEventFd(second);
  expect(pollReadable([first, second], -1)).toEqual([second]);
  clearEventFd(second);
  expect(pollReadable([first, second], 0)).toEqual([]);
});

test('a sleeping worker is woken by an eventfd', async () => {
  const [wake, done] = [eventFd(), eventFd()];
  const source = `
    const { workerData } = require('node:worker_threads');
    import(workerData.module).then(({ pollReadable, signalEventFd }) => {
      if (pollReadable([workerData.wake], 20000).length === 1) signalEventFd(workerData.done);
    });`;
  const module = new URL('./poll.ts', import.meta.url).href;
  const worker = new Worker(source, { eval: true, workerData: { module, wake, done } });
  onTestFinished(async () => void (await worker.terminate()));
  const answered = new Promise<void>((resolve) => {
    const watch = watchReadable(done, () => {
      watch[Symbol.dispose]();
      resolve();
    });
  });
  signalEventFd(wake);
  await answered;
});

test('reading and writing say when they would block and when the other side is gone', () => {
  const { ours, theirFd } = seqpacketPair();
  const event = eventFd();
  const buffer = new Uint8Array(16);
  expect(readInto(event, buffer)).toBeUndefined();
  expect(writeFrom(theirFd, Uint8Array.of(1, 2, 3))).toBe(3);
  expect(readInto(ours.fd, buffer.subarray(4))).toBe(3);
  expect([...buffer.subarray(3, 8)]).toEqual([0, 1, 2, 3, 0]);
  closeSync(theirFd);
  expect(readInto(ours.fd, buffer)).toBe(0);
  expect(() => writeFrom(-1, buffer)).toThrow(expect.objectContaining({ call: 'write', errnoName: 'EBADF' }));
  ours[Symbol.dispose]();
});

test('a watch calls until all is read, and never after it was disposed', async () => {
  const { ours, theirFd } = seqpacketPair();
  onTestFinished(() => {
    ours[Symbol.dispose]();
    closeSync(theirFd);
  });
  const received: number[] = [];
  await new Promise<void>((resolve) => {
    const watch = watchReadable(ours.fd, () => {
      const message = ours.receive();
      if (message.kind === 'message') received.push(...message.bytes);
      if (received.length < 3) return;
      watch[Symbol.dispose]();
      resolve();
    });
    for (const byte of [1, 2, 3]) writeFrom(theirFd, Uint8Array.of(byte));
  });
  writeFrom(theirFd, Uint8Array.of(4));
  await new Promise((resolve) => setImmediate(resolve));
  expect(received).toEqual([1, 2, 3]);
});
