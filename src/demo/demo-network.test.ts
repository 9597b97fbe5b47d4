import { execFileSync } from 'node:child_process';
import { closeSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openTap } from '../linux/tap.ts';
import { DemoNetwork } from './demo-network.ts';

const name = `demo-network-${process.pid}`;
const netns = `us-${name}`;
let open: AsyncDisposableStack;
beforeEach(() => {
  open = new AsyncDisposableStack();
});
afterEach(() => open.disposeAsync());

const namespaces = () => execFileSync('ip', ['netns', 'list'], { encoding: 'utf8' });

describe('the network of a demo', () => {
  it('is a namespace with a TAP where that is allowed, and is gone afterwards', async () => {
    const network = await DemoNetwork.open({ name });
    expect(network.uplink).toEqual({ kind: 'tap', device: 'us-demo', netns, address: '10.77.0.1/24' });
    expect(network.redis).toEqual({ netns, host: '10.77.0.2', port: 6379 });
    expect(execFileSync('ip', ['-n', netns, '-brief', 'link'], { encoding: 'utf8' })).toMatch(
      /^lo .*<LOOPBACK,UP/,
    );
    await network[Symbol.asyncDispose]();
    expect(namespaces()).not.toContain(netns);
  });

  it('leads a free port of the loopback address to Redis where it is not', async () => {
    const network = open.use(await DemoNetwork.open({ name, kind: 'passt' }));
    const { port } = network.redis;
    expect(network.uplink).toEqual({ kind: 'passt', forward: [{ hostPort: port, guestPort: 6379 }] });
    expect(network.redis).toEqual({ host: '127.0.0.1', port });
    expect(namespaces()).not.toContain(netns);
  });

  it('keeps another demo of the same name away', async () => {
    open.use(await DemoNetwork.open({ name, kind: 'tap' }));
    await expect(DemoNetwork.open({ name, kind: 'tap' })).rejects.toMatchObject({
      code: 'DEMO_NETWORK_FAILED',
    });
    // The namespace of the first is still whole.
    closeSync(openTap({ device: 'us-other', netns }));
  });
});
