import { mkdtempSync, readSync, rmSync, statSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { systemClock } from '../base/clock.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import { descriptorOf } from '../linux/socket-descriptor.ts';
import { encodeFrame, FrameDecoder, frameFraming } from './frame-codec.ts';
import { byteFraming, type Framing } from './framing.ts';
import { GuestLink, type GuestLinkOptions } from './guest-link.ts';
import type { NetError } from './net-error.ts';
import { QemuPort } from './qemu-port.ts';
import { StreamEnd } from './stream-end.ts';

const FIRST = 1 as EpochId;
const SECOND = 2 as EpochId;
const bytes = (text: string) => Buffer.from(text);

/** A QEMU's end of a channel, which reads only when told to. */
class Peer {
  readonly socket: Socket;
  readonly #decoder = new FrameDecoder();

  private constructor(socket: Socket) {
    this.socket = socket;
  }

  static async connect(path: string): Promise<Peer> {
    const socket = connect(path).pause();
    socket.on('error', () => {});
    await new Promise<void>((resolve) => socket.once('connect', () => resolve()));
    return new Peer(socket);
  }

  /** Everything that lies in the socket, read past Node as QEMU would. */
  read(): Buffer {
    const chunk = Buffer.alloc(1 << 20);
    const fd = descriptorOf(this.socket);
    try {
      return chunk.subarray(0, fd === undefined ? 0 : readSync(fd, chunk));
    } catch (thrown) {
      if ((thrown as { code?: string }).code === 'EAGAIN') return chunk.subarray(0, 0);
      throw thrown;
    }
  }

  readFrames(): string[] {
    const frames: string[] = [];
    this.#decoder.push(this.read(), (frame) => frames.push(Buffer.from(frame).toString()));
    return frames;
  }

  sendFrames(...frames: string[]): void {
    this.socket.write(Buffer.concat(frames.map((frame) => encodeFrame(bytes(frame)))));
  }

  closed(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.socket.once('close', () => resolve()));
    this.socket.resume();
    return closed;
  }
}

let folder = '';
let open: AsyncDisposableStack;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'understudy-link-'));
  open = new AsyncDisposableStack();
  open.defer(() => rmSync(folder, { recursive: true, force: true }));
});

afterEach(() => open.disposeAsync());

async function portWithPeer(name: string, framing: Framing = frameFraming) {
  const port = open.use(await QemuPort.listen(join(folder, name), { framing }));
  const peer = await Peer.connect(port.path);
  open.defer(() => {
    peer.socket.destroy();
  });
  await port.awaitConnection({ deadlineMs: 5000, clock: systemClock });
  return { port, peer };
}

/** A link whose world is in this process: what left, and a client that sends input. */
function linkToWorld(options: Partial<GuestLinkOptions> = {}) {
  const farEnd = open.use(new StreamEnd({ scrollbackBytes: 0 }));
  const left: string[] = [];
  const room = vi.fn();
  const client = farEnd.connect({
    onOutput: (item) => left.push(Buffer.from(item).toString()),
    onRoom: room,
  });
  const onHeld = vi.fn();
  const disconnected = Promise.withResolvers<NetError | undefined>();
  const link = new GuestLink({
    ...{ name: 'nic0', framing: frameFraming, farEnd, clock: systemClock, onHeld },
    onDisconnected: disconnected.resolve,
    ...options,
  });
  open.use(link);
  return { link, left, client, onHeld, room, disconnected: disconnected.promise };
}

async function protectedLink(options: Partial<GuestLinkOptions> = {}) {
  const world = linkToWorld(options);
  const { port, peer } = await portWithPeer('primary', options.framing);
  world.link.attach(port);
  world.link.holdOutput();
  return { ...world, port, peer };
}

describe('output', () => {
  test('passes while there is no shadow', async () => {
    const { link, left } = linkToWorld();
    const { port, peer } = await portWithPeer('primary');
    link.attach(port);
    peer.sendFrames('a', 'b');
    link.drainOutput();
    expect(left).toEqual(['a', 'b']);
  });

  test('of an epoch leaves with its commit, and says that it waits', async () => {
    const { link, left, peer, onHeld } = await protectedLink();
    peer.sendFrames('a', 'b');
    link.drainOutput();
    expect(onHeld).toHaveBeenCalledTimes(1);
    link.seal(FIRST);
    peer.sendFrames('c');
    link.drainOutput();
    expect(onHeld).toHaveBeenCalledTimes(2);
    expect(link.sealedOutput(FIRST).map((item) => Buffer.from(item).toString())).toEqual(['a', 'b']);
    expect(left).toEqual([]);
    link.commit(FIRST);
    expect(left).toEqual(['a', 'b']);
  });

  test('counts as sent when it leaves, and input as received when it arrives, over all QEMUs', async () => {
    const { link, peer, client } = await protectedLink();
    peer.sendFrames('abc', 'de');
    link.drainOutput();
    client.write(bytes('1234'));
    expect(link.traffic).toEqual({ sentItems: 0, sentBytes: 0, receivedItems: 1, receivedBytes: 4 });
    link.seal(FIRST);
    link.commit(FIRST);
    const before = { sentItems: 2, sentBytes: 5, receivedItems: 1, receivedBytes: 4 };
    expect(link.traffic).toEqual(before);
    peer.sendFrames('never happened');
    link.drainOutput();
    link.detach();
    link.pauseInput();
    link.rollBack(FIRST, []);
    link.attach((await portWithPeer('shadow')).port);
    link.resumeInput();
    expect(link.traffic).toEqual(before);
  });

  test('that QEMU wrote before it stopped is all taken in by a drain, also with reading paused', async () => {
    const { link, peer } = await protectedLink({ limits: { heldBytes: 1000 } });
    const frames = Array.from({ length: 100 }, (_, index) => `${index}`.padEnd(1000));
    peer.sendFrames(...frames);
    expect(peer.socket.writableLength).toBe(0);
    link.drainOutput();
    expect(link.stats().heldItems).toBe(100);
    peer.sendFrames(...frames);
    link.drainOutput();
    expect(link.stats()).toMatchObject({ heldItems: 200, heldBytes: 200_000 });
  });

  test('stays in the socket during a cut, and a drain takes only what was there before it made room', async () => {
    let sendMore = () => {};
    const held = vi.fn(() => sendMore());
    const { link, peer } = await protectedLink({ framing: byteFraming, onHeld: held });
    peer.socket.write('before');
    await vi.waitFor(() => expect(link.stats().heldBytes).toBe(6));
    link.seal(FIRST);
    expect(link.leaveUnread()).toBe(true);
    peer.socket.write('until the stop');
    // What Node is told meanwhile, e.g. by a commit, does not make it read.
    link.commit(FIRST);
    for (let turn = 0; turn < 20; turn += 1) await new Promise(setImmediate);
    expect(link.stats().heldBytes).toBe(0);
    sendMore = () => peer.socket.write('into the room');
    link.drainOutput();
    link.seal(SECOND);
    expect(link.sealedOutput(SECOND).map((item) => Buffer.from(item).toString())).toEqual(['until the stop']);
    for (let turn = 0; turn < 20; turn += 1) await new Promise(setImmediate);
    expect(link.stats().heldBytes).toBe('until the stop'.length);
    sendMore = () => {};
    link.readOn();
    await vi.waitFor(() => expect(link.stats().heldBytes).toBe('until the stopinto the room'.length));
    expect(link.leaveUnread()).toBe(true);
    expect(link.leaveUnread()).toBe(false);
  });

  test('is read on after a cut also where reading was paused before or during it', async () => {
    const { link, left, peer } = await protectedLink({ limits: { heldBytes: 1000 } });
    const frames = Array.from({ length: 400 }, (_, index) => `${index}`.padEnd(1000));
    peer.sendFrames(...frames);
    for (let epoch = 1; left.length < frames.length; epoch += 1) {
      await new Promise(setImmediate);
      link.leaveUnread();
      await new Promise(setImmediate);
      if (epoch % 2 === 0) link.drainOutput();
      link.seal(epoch as EpochId);
      if (epoch % 3 === 0) link.commit(epoch as EpochId);
      await new Promise(setImmediate);
      link.readOn();
      if (epoch % 3 !== 0) link.commit(epoch as EpochId);
    }
    expect(left).toEqual(frames);
  });

  test('that waits in too large a number makes QEMU wait, and nothing is lost', async () => {
    const { link, left, peer } = await protectedLink({ limits: { heldBytes: 100_000 } });
    const frames = Array.from({ length: 3000 }, (_, index) => `${index}`.padEnd(1000));
    let written = false;
    peer.socket.write(Buffer.concat(frames.map((frame) => encodeFrame(bytes(frame)))), () => {
      written = true;
    });
    await vi.waitFor(() => expect(link.stats().heldBytes).toBeGreaterThan(100_000));
    expect(written).toBe(false);
    for (let epoch = 1; left.length < frames.length; epoch += 1) {
      await new Promise(setImmediate);
      link.seal(epoch as EpochId);
      // What waits stays near the limit: one read of the socket may come on top.
      expect(link.stats().heldBytes).toBeLessThan(400_000);
      link.commit(epoch as EpochId);
    }
    expect(left).toEqual(frames);
  });

  test('leaves at once when protection ends', async () => {
    const { link, left, peer } = await protectedLink();
    peer.sendFrames('a');
    link.drainOutput();
    link.seal(FIRST);
    peer.sendFrames('b');
    link.drainOutput();
    link.passOutput();
    link.abort(FIRST);
    expect(left).toEqual(['a', 'b']);
  });

  test('of a QEMU that is fenced off is not looked at', async () => {
    const { link, left, peer } = await protectedLink();
    peer.sendFrames('before the fence');
    link.detach();
    peer.sendFrames('after the fence');
    link.drainOutput();
    await peer.closed();
    link.passOutput();
    expect(left).toEqual([]);
  });

  test('leaves uncommitted when a test takes the gate away', async () => {
    const { link, left, peer } = await protectedLink({ unsafe: { releaseUncommitted: true } });
    peer.sendFrames('a');
    link.drainOutput();
    expect(left).toEqual(['a']);
  });
});

describe('input', () => {
  test('is not handed over between pause and resume', async () => {
    const { link, client, peer } = await protectedLink();
    client.write(bytes('a'));
    expect(peer.readFrames()).toEqual(['a']);
    link.pauseInput();
    client.write(bytes('b'));
    expect(peer.readFrames()).toEqual([]);
    link.resumeInput();
    expect(peer.readFrames()).toEqual(['b']);
  });

  test.each([
    { known: 'before the stop', readFirst: true, again: ['c'] },
    { known: 'only while the VM stood still', readFirst: false, again: ['b', 'c'] },
  ])(
    'that QEMU was known to have read $known reaches the shadow as it should',
    async ({ readFirst, again }) => {
      const { link, client, peer } = await protectedLink();
      client.write(bytes('a'));
      expect(peer.readFrames()).toEqual(['a']);
      client.write(bytes('b'));
      if (readFirst) expect(peer.readFrames()).toEqual(['b']);
      link.pauseInput();
      if (!readFirst) expect(peer.readFrames()).toEqual(['b']);
      link.seal(FIRST);
      link.resumeInput();
      client.write(bytes('c'));
      link.commit(FIRST);

      link.detach();
      link.rollBack(FIRST, []);
      client.write(bytes('d'));
      const shadow = await portWithPeer('shadow');
      link.attach(shadow.port);
      expect(shadow.peer.readFrames()).toEqual([...again, 'd']);
      expect(link.stats().replayedItems).toBe(again.length);
    },
  );

  test('of an epoch that is aborted is covered by the next one', async () => {
    const { link, client, peer } = await protectedLink();
    client.write(bytes('a'));
    peer.readFrames();
    link.pauseInput();
    link.seal(FIRST);
    link.abort(FIRST);
    link.resumeInput();
    link.seal(SECOND);
    expect(link.stats().loggedItems).toBe(1);
    link.commit(SECOND);
    expect(link.stats().loggedItems).toBe(0);
  });

  test('is lost at a cut when a test makes the log forget', async () => {
    const { link, client } = await protectedLink({ unsafe: { forgetInputAtCut: true } });
    client.write(bytes('in no device state'));
    link.pauseInput();
    link.seal(FIRST);
    link.commit(FIRST);
    link.detach();
    link.rollBack(FIRST, []);
    const shadow = await portWithPeer('shadow');
    link.attach(shadow.port);
    expect(shadow.peer.readFrames()).toEqual([]);
  });

  test('that QEMU does not read makes the world wait, and goes on when it does', async () => {
    const { link, client, peer, room } = await protectedLink({ limits: { loggedBytes: 1_000_000 } });
    link.passOutput();
    let sent = 0;
    while (client.write(new Uint8Array(10_000))) sent += 1;
    expect(sent).toBeLessThan(100);
    expect(room).not.toHaveBeenCalled();
    let got = 0;
    while (room.mock.calls.length === 0) {
      got += peer.read().length;
      await new Promise(setImmediate);
    }
    expect(got).toBeGreaterThan(500_000);
  });

  test('of a byte channel goes over in chunks, the next one only when QEMU has read the one before', async () => {
    const { link, client, peer } = await protectedLink({ framing: byteFraming });
    const text = 'x'.repeat(600);
    client.write(bytes(text));
    expect(peer.read().length).toBe(256);
    await vi.waitFor(() => expect(peer.read().length).toBe(256));
    link.pauseInput();
    link.seal(FIRST);
    link.commit(FIRST);
    link.detach();
    link.rollBack(FIRST, []);
    const shadow = await portWithPeer('shadow', byteFraming);
    link.attach(shadow.port);
    expect(shadow.peer.read().length).toBe(0);
    link.resumeInput();
    expect(shadow.peer.read().length).toBe(600 - 512);
  });
});

describe('the port', () => {
  test('is for its owner only', async () => {
    const { port } = await portWithPeer('primary');
    expect(statSync(port.path).mode & 0o777).toBe(0o600);
  });

  test('refuses a second QEMU while one is connected, and takes a new one after it', async () => {
    const { port, peer } = await portWithPeer('primary');
    const second = await Peer.connect(port.path);
    await second.closed();
    expect(port.isConnected).toBe(true);
    peer.socket.destroy();
    await vi.waitFor(() => expect(port.isConnected).toBe(false));
    const third = await Peer.connect(port.path);
    await port.awaitConnection({ deadlineMs: 5000, clock: systemClock });
    third.socket.destroy();
  });

  test('cuts off whoever sends garbage, and says so', async () => {
    const { left, peer, link, disconnected } = await protectedLink();
    link.passOutput();
    peer.socket.write(Buffer.concat([encodeFrame(bytes('good')), bytes('GET / HTTP/1.1\r\n\r\n')]));
    expect(await disconnected).toMatchObject({ code: 'NET_FRAME_INVALID' });
    await peer.closed();
    expect(left).toEqual(['good']);
  });

  test('says when QEMU is gone', async () => {
    const { peer, disconnected } = await protectedLink();
    peer.socket.destroy();
    expect(await disconnected).toBeUndefined();
  });

  test('gives up waiting for a QEMU at the deadline', async () => {
    const port = open.use(await QemuPort.listen(join(folder, 'lonely'), { framing: frameFraming }));
    await expect(port.awaitConnection({ deadlineMs: 1, clock: systemClock })).rejects.toMatchObject({
      code: 'NET_NO_CONNECTION',
    });
  });

  test('names the path that it cannot listen on', async () => {
    const path = join(folder, 'no such folder', 'port');
    await expect(QemuPort.listen(path, { framing: frameFraming })).rejects.toMatchObject({
      code: 'NET_LISTEN_FAILED',
      facts: { path },
    });
  });
});
