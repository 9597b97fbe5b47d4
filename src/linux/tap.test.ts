import { execFileSync } from 'node:child_process';
import { closeSync, readlinkSync } from 'node:fs';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { inNetns } from './netns.ts';
import { pollReadable, readInto, writeFrom } from './poll.ts';
import { openTap } from './tap.ts';

const netns = `${marked('tap-test')}-${process.pid}`;
const device = 'us0';
const ip = (...args: string[]) => execFileSync('ip', args, { encoding: 'utf8', stdio: 'pipe' });
const whereWeAre = () => readlinkSync('/proc/thread-self/ns/net');

beforeAll(() => void ip('netns', 'add', netns));
afterAll(() => void ip('netns', 'delete', netns));

test('a TAP carries Ethernet frames both ways inside its namespace', () => {
  const fd = openTap({ device, netns });
  onTestFinished(() => closeSync(fd));
  ip('-n', netns, 'address', 'add', '10.99.0.1/24', 'dev', device);
  ip('-n', netns, 'link', 'set', device, 'up');
  writeFrom(fd, whoHas([10, 99, 0, 1]));

  // Other frames may come first: the kernel greets the network when a link goes up.
  const frame = new Uint8Array(2048);
  let answer: Uint8Array | undefined;
  while (answer === undefined && pollReadable([fd], 10_000).length > 0) {
    const length = readInto(fd, frame) ?? 0;
    if (frame[12] === 0x08 && frame[13] === 0x06 && frame[21] === 2) answer = frame.slice(0, length);
  }
  expect(answer?.subarray(28, 32)).toEqual(Uint8Array.of(10, 99, 0, 1));
});

test('the thread is back in its own namespace after a TAP was opened, and after it failed', () => {
  const home = whereWeAre();
  const fd = openTap({ device, netns });
  onTestFinished(() => closeSync(fd));
  expect(whereWeAre()).toBe(home);
  expect(() => openTap({ device, netns })).toThrow(
    expect.objectContaining({ call: 'ioctl TUNSETIFF', errnoName: 'EBUSY' }),
  );
  expect(whereWeAre()).toBe(home);
  expect(() => ip('link', 'show', device)).toThrow();
});

test('the device goes away with its descriptor', () => {
  const fd = openTap({ device, netns });
  expect(ip('-n', netns, 'link', 'show', device)).toContain(device);
  closeSync(fd);
  expect(() => ip('-n', netns, 'link', 'show', device)).toThrow();
});

test('a task runs inside the namespace, and its exception comes out of it', () => {
  const home = whereWeAre();
  expect(inNetns(netns, whereWeAre)).not.toBe(home);
  expect(() =>
    inNetns(netns, () => {
      throw new Error('task failed');
    }),
  ).toThrow('task failed');
  expect(whereWeAre()).toBe(home);
});

test('a namespace that does not exist is named', () => {
  expect(() => openTap({ device, netns: 'no-such-namespace' })).toThrow(
    expect.objectContaining({
      errnoName: 'ENOENT',
      facts: expect.objectContaining({ path: '/run/netns/no-such-namespace' }),
    }),
  );
});

/** An ARP request from 10.99.0.2, see RFC 826. */
function whoHas(address: readonly number[]): Uint8Array {
  const sender = [2, 0, 0, 0, 0, 2];
  const everyone = [255, 255, 255, 255, 255, 255];
  const request = [0, 1, 8, 0, 6, 4, 0, 1, ...sender, 10, 99, 0, 2, 0, 0, 0, 0, 0, 0, ...address];
  return Uint8Array.from([...everyone, ...sender, 8, 6, ...request]);
}
