import { execFileSync } from 'node:child_process';
import { closeSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { runMark } from '../../test/kit/run-mark.ts';
import { openTap } from '../linux/tap.ts';
import { NetError } from '../net/net-error.ts';
import { DemoError } from './demo-error.ts';
import { DemoNetwork } from './demo-network.ts';

const name = `${runMark()}-demo-${process.pid}`;
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

  it('says why it is not a TAP, again when passt fails too', async () => {
    const { PATH } = process.env;
    const said: string[] = [];
    process.env.PATH = '/nowhere';
    try {
      open.use(await DemoNetwork.open({ name, onProgress: (step) => said.push(step) }));
    } finally {
      process.env.PATH = PATH;
    }
    expect(said).toEqual([expect.stringMatching(/^No TAP \(ip netns add us-.+ENOENT.*\), using passt$/)]);
  });

  it('names both reasons where neither TAP nor passt can be had', async () => {
    const { PATH } = process.env;
    process.env.PATH = '/nowhere';
    const network = open.use(await DemoNetwork.open({ name }).finally(() => (process.env.PATH = PATH)));
    const missing = new NetError('NET_PASST_MISSING', 'passt is not installed', { hint: 'Install it.' });
    expect(network.explained(missing)).toMatchObject({
      code: 'DEMO_NETWORK_FAILED',
      message: expect.stringMatching(/^no TAP \(ip netns add.+\), and passt is not installed$/),
      hint: expect.stringContaining('Install it.'),
      cause: missing,
    });
    const other = new DemoError('DEMO_VM_LOST', 'it is gone');
    expect(network.explained(other)).toBe(other);
    const wanted = open.use(await DemoNetwork.open({ name, kind: 'passt' }));
    expect(wanted.explained(missing)).toBe(missing);
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
