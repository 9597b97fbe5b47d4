import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock } from '../base/clock.ts';
import { type EpochId, NO_EPOCH, nextEpoch } from '../epoch/epoch-id.ts';
import { inNetns } from '../linux/netns.ts';
import type { FarEnd } from './far-end.ts';
import { frameFraming } from './frame-codec.ts';
import { freePort } from './free-port.ts';
import { GuestLink } from './guest-link.ts';
import type { NetError } from './net-error.ts';
import { NoUplink } from './no-uplink.ts';
import { PasstUplink, type PasstUplinkOptions } from './passt-uplink.ts';
import { QemuPort } from './qemu-port.ts';
import { TapUplink } from './tap-uplink.ts';

const ECHO_PORT = 7777;
const ECHOED_AT_ONCE = 4000;
const nicMac = '52:54:00:12:34:56';
const fail = (error: NetError) => {
  throw error;
};

let folder = '';
let open: AsyncDisposableStack;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'understudy-uplink-'));
  open = new AsyncDisposableStack();
  open.defer(() => rmSync(folder, { recursive: true, force: true }));
});

afterEach(() => open.disposeAsync());

/** A network namespace of this test, with nothing but what the test puts in. */
function namespace(suffix: string): string {
  const name = `${marked('net')}-${process.pid}-${suffix}`;
  execFileSync('ip', ['netns', 'add', name]);
  open.defer(() => {
    execFileSync('ip', ['netns', 'del', name]);
  });
  return name;
}

/** A TCP echo server inside a namespace: the listening socket stays where it was made. */
async function echoServer(netns: string): Promise<void> {
  const server = createServer((socket) => socket.on('error', () => {}).pipe(socket));
  const listening = once(server, 'listening');
  inNetns(netns, () => server.listen(ECHO_PORT));
  await listening;
  open.defer(() => {
    server.close();
  });
}

/**
 * Sends `sent` to an echo server and returns as much of what comes back. Goes on to a piece when the one before is back: where
 * much is under way in both directions at once, passt of 2023-03-09 (Debian 12) passes over data, sends it 2 s later, and
 * may never acknowledge what the guest sent meanwhile.
 */
async function echoed(socket: Socket, sent: string): Promise<string> {
  open.defer(() => {
    socket.destroy();
  });
  let back = '';
  const done = Promise.withResolvers<void>();
  socket.on('error', done.reject);
  socket.on('close', () =>
    done.reject(new Error(`closed after ${back.length} of ${sent.length} characters`)),
  );
  const sendPiece = () => socket.write(sent.slice(back.length, back.length + ECHOED_AT_ONCE));
  socket.on('data', (chunk) => {
    back += chunk.toString();
    if (back.length >= sent.length) done.resolve();
    else if (back.length % ECHOED_AT_ONCE === 0) sendPiece();
  });
  sendPiece();
  await done.promise;
  return back;
}

/** Node connects in a later turn of its loop, outside of any namespace: this takes a process inside it. */
async function echoedFrom(
  netns: string,
  { address, sent }: { address: string; sent: string },
): Promise<string> {
  const script = `const s = require('net').connect(${ECHO_PORT}, '${address}'); process.stdin.pipe(s).pipe(process.stdout)`;
  const client = spawn('ip', ['netns', 'exec', netns, process.execPath, '-e', script], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  open.defer(() => {
    client.kill();
  });
  client.stdin.end(sent);
  return text(client.stdout);
}

/** A link that commits an epoch whenever output waits. */
async function committingLink(name: string, farEnd: FarEnd): Promise<{ link: GuestLink; port: QemuPort }> {
  let epoch: EpochId = NO_EPOCH;
  const cut = () => {
    epoch = nextEpoch(epoch);
    link.pauseInput();
    link.drainOutput();
    link.seal(epoch);
    link.resumeInput();
    link.commit(epoch);
  };
  const options = { name, framing: frameFraming, farEnd, clock: systemClock };
  const link = new GuestLink({
    ...options,
    onHeld: () => setImmediate(cut),
    onDisconnected: () => {},
  });
  const port = open.use(await QemuPort.listen(join(folder, name), { framing: frameFraming }));
  open.use(link);
  link.attach(port);
  link.holdOutput();
  return { link, port };
}

describe('a TAP', () => {
  test('carries TCP between two networks through two links that hold output for commits', async () => {
    const [left, right] = [namespace('a'), namespace('b')];
    const onLost = fail;
    const tapA = open.use(
      await TapUplink.open({ device: 'us-a', netns: left, nicMac, address: '10.78.0.1/24', onLost }),
    );
    const tapB = open.use(
      await TapUplink.open({ device: 'us-b', netns: right, nicMac, address: '10.78.0.2/24', onLost }),
    );
    const [a, b] = [await committingLink('a', tapA), await committingLink('b', tapB)];
    const [endA, endB] = [connect(a.port.path), connect(b.port.path)];
    endA.pipe(endB).pipe(endA);
    open.defer(() => {
      endA.destroy();
      endB.destroy();
    });
    await echoServer(right);
    const sent = 'over and over again '.repeat(20_000);
    expect(await echoedFrom(left, { address: '10.78.0.2', sent })).toBe(sent);
    expect(a.link.stats().releasedItems).toBeGreaterThan(100);
    expect(b.link.stats()).toMatchObject({ heldItems: 0, refusedItems: 0, droppedItems: 0 });
  });

  test('joins a bridge, and is gone when it is closed', async () => {
    const netns = namespace('a');
    const ip = (...words: string[]) => execFileSync('ip', ['-n', netns, ...words], { encoding: 'utf8' });
    ip('link', 'add', 'us-br', 'type', 'bridge');
    const tap = await TapUplink.open({ device: 'us-a', netns, nicMac, bridge: 'us-br', onLost: fail });
    expect(ip('link', 'show', 'dev', 'us-a')).toContain('master us-br');
    await tap.close();
    expect(ip('-brief', 'link')).not.toContain('us-a');
    tap.send(new Uint8Array(60));
    expect(tap.stats()).toEqual({ sentItems: 0, refusedItems: 1 });
  });

  test.each([
    ['52:54:00:12:34:56', 'fe:54:00:12:34:56'],
    ['fe:54:00:12:34:56', 'fa:54:00:12:34:56'],
  ])(
    'that leads to the nic %s is %s whenever it is made: a guest that knows it goes on sending to it',
    async (mac, own) => {
      const netns = namespace('a');
      for (let made = 0; made < 2; made += 1) {
        await using _tap = await TapUplink.open({ device: 'us-a', netns, nicMac: mac, onLost: fail });
        const [link] = JSON.parse(
          execFileSync('ip', ['-n', netns, '-json', 'link', 'show', 'us-a'], { encoding: 'utf8' }),
        );
        expect(link.address).toBe(own);
      }
    },
  );

  test.each([
    ['a bridge that does not exist', { bridge: 'us-nowhere' }],
    ['an address that is none', { address: '10.78.0.256/24' }],
  ])('says what is wrong with %s, and leaves no device behind', async (_, wrong) => {
    const netns = namespace('a');
    await expect(
      TapUplink.open({ device: 'us-a', netns, nicMac, onLost: fail, ...wrong }),
    ).rejects.toMatchObject({
      code: 'NET_TAP_FAILED',
    });
    expect(execFileSync('ip', ['-n', netns, '-brief', 'link'], { encoding: 'utf8' })).not.toContain('us-a');
  });

  test('says so when a name is taken or a namespace does not exist', async () => {
    const netns = namespace('a');
    open.use(await TapUplink.open({ device: 'us-a', netns, nicMac, onLost: fail }));
    for (const other of [netns, 'us-no-such-namespace']) {
      await expect(
        TapUplink.open({ device: 'us-a', netns: other, nicMac, onLost: fail }),
      ).rejects.toMatchObject({
        code: 'NET_TAP_FAILED',
      });
    }
  });

  test('that somebody deletes is reported lost', async () => {
    const netns = namespace('a');
    const lost = Promise.withResolvers<NetError>();
    const tap = open.use(await TapUplink.open({ device: 'us-a', netns, nicMac, onLost: lost.resolve }));
    tap.receive(() => {});
    execFileSync('ip', ['-n', netns, 'link', 'del', 'us-a']);
    expect(await lost.promise).toMatchObject({ code: 'NET_UPLINK_LOST' });
  });

  test('drops what it cannot take, and counts it', async () => {
    const netns = namespace('a');
    const tap = open.use(await TapUplink.open({ device: 'us-a', netns, nicMac, onLost: fail }));
    tap.send(new Uint8Array(60));
    tap.send(new Uint8Array(5));
    expect(tap.stats()).toEqual({ sentItems: 1, refusedItems: 1 });
  });
});

describe('passt', () => {
  const options: Omit<PasstUplinkOptions, 'forward'> = {
    guestAddress: '10.78.0.2',
    gateway: '10.78.0.1',
    clock: systemClock,
    onLost: fail,
  };

  test('leads a port of the loopback address to the guest, without a TAP on the host', async () => {
    // The guest is the kernel of a namespace behind a TAP.
    const netns = namespace('guest');
    const tap = open.use(
      await TapUplink.open({ device: 'us-guest', netns, nicMac, address: '10.78.0.2/24', onLost: fail }),
    );
    const hostPort = await freePort();
    const passt = open.use(
      await PasstUplink.open({ ...options, forward: [{ hostPort, guestPort: ECHO_PORT }] }),
    );
    tap.receive((frame) => passt.send(frame));
    const answered = Promise.withResolvers<void>();
    passt.receive((frame) => {
      answered.resolve();
      tap.send(frame);
    });
    // passt knows where to send connections once the guest has sent something, as every guest does at boot.
    execFileSync('ip', ['netns', 'exec', netns, 'bash', '-c', 'echo > /dev/udp/10.78.0.1/9']);
    await answered.promise;
    await echoServer(netns);
    const sent = 'over and over again '.repeat(20_000);
    expect(await echoed(connect(hostPort, '127.0.0.1'), sent)).toBe(sent);
    await passt.close();
    const { refusedItems } = passt.stats();
    passt.send(new Uint8Array(60));
    expect(passt.stats().refusedItems).toBe(refusedItems + 1);
  });

  test('that stood still while the guest sent a lot still knows where a frame begins', async () => {
    const passt = open.use(await PasstUplink.open({ ...options, forward: [] }));
    const { pid } = passt;
    if (pid === undefined) throw new Error('passt runs');
    const whoHasGateway = Buffer.from(
      `ffffffffffff525400123456${'0806'}0001080006040001${'5254001234560a4e0002'}${'0000000000000a4e0001'}`,
      'hex',
    );
    // Of a protocol that passt passes over, but for the length.
    const others = Array.from({ length: 4000 }, (_, index) => {
      const frame = Buffer.alloc(14 + ((index * 7919) % 61));
      whoHasGateway.copy(frame, 0, 0, 12);
      return frame;
    });
    for (let round = 0; round < 10; round += 1) {
      process.kill(pid, 'SIGSTOP');
      for (const frame of others) passt.send(frame);
      const answered = Promise.withResolvers<Uint8Array>();
      passt.receive(answered.resolve);
      passt.send(whoHasGateway);
      process.kill(pid, 'SIGCONT');
      expect(Buffer.from(await answered.promise).toString('hex', 0, 14)).toMatch(/^525400123456.{12}0806$/);
    }
    expect(passt.stats()).toEqual({ sentItems: 10 * 4001, refusedItems: 0 });
  });

  test('says which port is taken', async () => {
    const server = createServer().listen(0, '127.0.0.1');
    open.defer(() => {
      server.close();
    });
    await once(server, 'listening');
    const { port: hostPort } = server.address() as { port: number };
    await expect(
      PasstUplink.open({ ...options, forward: [{ hostPort, guestPort: ECHO_PORT }] }),
    ).rejects.toMatchObject({ code: 'NET_PORT_TAKEN', facts: { hostPorts: [hostPort] } });
  });

  test('that is not installed is named as missing', async () => {
    const binary = join(folder, 'passt');
    await expect(PasstUplink.open({ ...options, forward: [], binary })).rejects.toMatchObject({
      code: 'NET_PASST_MISSING',
    });
  });

  test('that does not start is quoted', async () => {
    const gateway = 'not an address';
    await expect(PasstUplink.open({ ...options, forward: [], gateway })).rejects.toMatchObject({
      code: 'NET_PASST_FAILED',
      message: expect.stringContaining('not an address'),
    });
  });

  test('that dies is reported lost', async () => {
    const lost = Promise.withResolvers<NetError>();
    const passt = open.use(await PasstUplink.open({ ...options, forward: [], onLost: lost.resolve }));
    if (passt.pid === undefined) throw new Error('passt runs');
    process.kill(passt.pid, 'SIGKILL');
    expect(await lost.promise).toMatchObject({ code: 'NET_UPLINK_LOST' });
  });
});

test('a nic without an uplink counts what it drops', () => {
  const uplink = new NoUplink();
  uplink.send();
  expect(uplink.stats()).toEqual({ sentItems: 0, refusedItems: 1 });
});
