import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { HandClock } from '../base/hand-clock-fixture.ts';
import { TokenBucket } from '../base/token-bucket.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import { encodeFrame, FrameDecoder, frameFraming } from './frame-codec.ts';
import { GuestLink, type GuestLinkOptions } from './guest-link.ts';
import { QemuPort } from './qemu-port.ts';
import { StreamEnd } from './stream-end.ts';

const FIRST = 1 as EpochId;
const FRAME_BYTES = 1000;
/** Ten frames at once, and then one each 10 ms. */
const RATE = 100_000;
const frames = Array.from({ length: 50 }, (_, index) => `${index}`.padEnd(FRAME_BYTES));

let open: AsyncDisposableStack;

beforeEach(() => {
  open = new AsyncDisposableStack();
});
afterEach(() => open.disposeAsync());

async function pacedLink(options: Partial<GuestLinkOptions> = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-pace-'));
  open.defer(() => rmSync(folder, { recursive: true, force: true }));
  const farEnd = open.use(new StreamEnd({ scrollbackBytes: 0 }));
  const left: string[] = [];
  const client = farEnd.connect({ onOutput: (item) => left.push(Buffer.from(item).toString()) });
  const hand = new HandClock();
  const pace = new TokenBucket(hand.clock);
  const link = new GuestLink({
    ...{ name: 'nic0', framing: frameFraming, farEnd, clock: systemClock, pace },
    ...{ onHeld: () => {}, onDisconnected: () => {} },
    ...options,
  });
  open.use(link);
  const attachNew = async (name: string) => {
    const port = open.use(await QemuPort.listen(join(folder, name), { framing: frameFraming }));
    const qemu = connect(port.path);
    open.defer(() => void qemu.destroy());
    await new Promise<void>((resolve) => qemu.once('connect', () => resolve()));
    await port.awaitConnection({ deadlineMs: 5000, clock: systemClock });
    link.attach(port);
    return qemu;
  };
  const qemu = await attachNew('primary');
  return { link, pace, hand, left, client, qemu, attachNew };
}

function send(qemu: Socket, items: readonly string[]): void {
  qemu.write(Buffer.concat(items.map((item) => encodeFrame(Buffer.from(item)))));
}

function framesTo(qemu: Socket): string[] {
  const got: string[] = [];
  const decoder = new FrameDecoder();
  qemu.on('data', (chunk) => decoder.push(chunk, (frame) => got.push(Buffer.from(frame).toString())));
  return got;
}

test('output leaves at its pace, whole and in order; without a limit at once', async () => {
  const { link, pace, hand, left, qemu } = await pacedLink();
  send(qemu, frames);
  link.drainOutput();
  expect(left).toEqual(frames);

  left.length = 0;
  pace.limit(RATE);
  send(qemu, frames);
  link.drainOutput();
  expect(left).toEqual(frames.slice(0, 10));
  hand.go(100);
  expect(left.length).toBeGreaterThanOrEqual(18);
  expect(left.length).toBeLessThanOrEqual(21);
  hand.go(1000);
  expect(left).toEqual(frames);
  expect(link.traffic.sentItems).toBe(2 * frames.length);
});

test('the end of a limit lets all go that waited', async () => {
  const { link, pace, left, qemu } = await pacedLink();
  pace.limit(RATE);
  send(qemu, frames);
  link.drainOutput();
  expect(left).toHaveLength(10);
  pace.limit(null);
  expect(left).toEqual(frames);
});

test('input arrives at its pace, whole and in order', async () => {
  const { pace, hand, client, qemu, link } = await pacedLink();
  const got = framesTo(qemu);
  pace.limit(RATE);
  for (const frame of frames) client.write(Buffer.from(frame));
  await vi.waitFor(() => expect(got).toHaveLength(10));
  expect(link.stats().queuedItems).toBe(40);
  for (let tens = 0; tens < 60; tens += 1) {
    hand.go(10);
    await new Promise(setImmediate);
  }
  await vi.waitFor(() => expect(got).toEqual(frames));
});

test('who sends faster than it may waits soon, but not where epochs stop it, and nothing is lost', async () => {
  const { link, pace, hand, left, qemu } = await pacedLink();
  const many = Array.from({ length: 4000 }, (_, index) => `${index}`.padEnd(FRAME_BYTES));
  pace.limit(RATE);
  send(qemu, many);
  const settled = async (): Promise<number> => {
    let before = -1;
    for (let now = link.stats().heldBytes; now !== before; now = link.stats().heldBytes) {
      before = now;
      for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setTimeout(resolve, 1));
    }
    return before;
  };
  await vi.waitFor(() => expect(link.stats().heldBytes).toBeGreaterThan(64 * 1024));
  expect(await settled()).toBeLessThan(500_000);
  // A shadow comes into being.
  link.holdOutput();
  await vi.waitFor(() => expect(link.stats().heldBytes).toBe(4_000_000 - left.length * FRAME_BYTES));
  link.passOutput();
  hand.go(60_000);
  expect(left).toEqual(many);
});

test('no item leaves before its commit, nor without the right to, however much may leave', async () => {
  let may = true;
  const { link, pace, hand, left, qemu } = await pacedLink({ mayRelease: () => may });
  pace.limit(RATE);
  link.holdOutput();
  send(qemu, frames);
  link.drainOutput();
  link.seal(FIRST);
  hand.go(10_000);
  expect(left).toEqual([]);
  link.commit(FIRST);
  expect(left).toEqual(frames.slice(0, 10));
  may = false;
  hand.go(10_000);
  expect(left).toEqual(frames.slice(0, 10));
  may = true;
  link.releaseDue();
  hand.go(10_000);
  expect(left).toEqual(frames);
});

test('what was committed and waits outlives a takeover, and what was not committed does not', async () => {
  const { link, pace, hand, left, qemu, attachNew } = await pacedLink();
  pace.limit(RATE);
  link.holdOutput();
  send(qemu, frames);
  link.drainOutput();
  link.seal(FIRST);
  link.commit(FIRST);
  send(qemu, ['never happened']);
  link.drainOutput();
  link.detach();
  link.pauseInput();
  link.rollBack(FIRST, []);
  const shadow = await attachNew('shadow');
  link.resumeInput();
  hand.go(1000);
  expect(left).toEqual(frames);
  link.passOutput();
  send(shadow, ['after it']);
  link.drainOutput();
  hand.go(1000);
  expect(left).toEqual([...frames, 'after it']);
});
