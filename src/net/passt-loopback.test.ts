import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import { isForLoopback } from './loopback-frames.ts';
import type { NetError } from './net-error.ts';
import { PasstUplink } from './passt-uplink.ts';
import { TapUplink } from './tap-uplink.ts';

const GATEWAY = '10.77.0.1';
const GUEST = '10.77.0.2';

let open: AsyncDisposableStack;
beforeEach(() => {
  open = new AsyncDisposableStack();
});
afterEach(() => open[Symbol.asyncDispose]());

const fail = (error: NetError) => {
  throw error;
};

/** A guest that is root: a network namespace whose packets for a loopback leave over its card. */
async function guestOn(hostLoopback: boolean | undefined) {
  const netns = `${marked('loop')}-${process.pid}`;
  const ip = (...words: string[]) => execFileSync('ip', ['-n', netns, ...words]);
  execFileSync('ip', ['netns', 'add', netns]);
  open.defer(() => void execFileSync('ip', ['netns', 'del', netns]));
  const tap = open.use(
    await TapUplink.open({
      nicMac: '52:54:00:12:34:56',
      device: 'tap0',
      netns,
      address: `${GUEST}/24`,
      onLost: fail,
    }),
  );
  execFileSync('ip', ['netns', 'exec', netns, 'sysctl', '-qw', 'net.ipv4.conf.all.route_localnet=1']);
  ip('link', 'set', 'lo', 'up');
  ip('address', 'del', '127.0.0.1/8', 'dev', 'lo');
  ip('route', 'add', '127.0.0.0/8', 'via', GATEWAY);
  const passt = open.use(
    await PasstUplink.open({
      ...{ forward: [], guestAddress: GUEST, gateway: GATEWAY },
      ...{ hostLoopback, clock, onLost: fail },
    }),
  );
  const sentToLoopback = Promise.withResolvers<void>();
  passt.receive((frame) => tap.send(frame));
  tap.receive((frame) => {
    passt.send(frame);
    if (isForLoopback(frame)) sentToLoopback.resolve();
  });
  return { netns, passt, sentToLoopback: sentToLoopback.promise };
}

/** In a process of its own: Node connects later than it is told to, in whatever namespace its thread is by then. */
function callFrom(netns: string, port: number) {
  const script = `require('net').connect(${port}, '127.0.0.1').on('error', () => {}).pipe(process.stdout)`;
  const words = ['netns', 'exec', netns, process.execPath, '-e', script];
  const child = spawn('ip', words, { stdio: ['ignore', 'pipe', 'inherit'] });
  open.defer(async () => {
    const ended = child.exitCode === null ? once(child, 'exit') : undefined;
    child.kill('SIGKILL');
    await ended;
  });
  return child;
}

it.each<[string, boolean | undefined, number]>([
  ['does not get there where it may not', false, 0],
  ['does where nothing keeps it from that (control)', true, 1],
  ['does by default (control)', undefined, 1],
])('a guest of passt that sends frames for 127.0.0.1 of the host %s', async (_, hostLoopback, callers) => {
  const { netns, passt, sentToLoopback } = await guestOn(hostLoopback);
  let called = 0;
  const local = createServer((socket) => {
    called += 1;
    socket.on('error', () => {}).end('secret');
  });
  await once(local.listen(0, '127.0.0.1'), 'listening');
  open.defer(() => void local.close());
  const { port } = local.address() as AddressInfo;
  const caller = callFrom(netns, port);
  await sentToLoopback;
  if (callers > 0) expect(String((await once(caller.stdout, 'data'))[0])).toBe('secret');
  expect(called).toBe(callers);
  // What is kept back has not reached passt, and never will.
  expect(passt.stats().refusedItems > 0).toBe(callers === 0);
});
