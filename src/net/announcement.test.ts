import { execFileSync } from 'node:child_process';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import { AnnouncedUplink } from './announced-uplink.ts';
import { announcementFrames, ClaimedAddresses } from './announcement.ts';
import { frameFraming } from './frame-codec.ts';
import { GuestLink } from './guest-link.ts';
import { TapUplink } from './tap-uplink.ts';

const MAC = '52:54:00:12:34:56';
const OTHER_MAC = '02:00:00:00:00:99';
const IPV4 = '0a630002';
const IPV6 = 'fd990000000000000000000000000002';
/** Of an announcement: the first and five more. */
const ROUNDS = 6;

let open: AsyncDisposableStack;
beforeEach(() => {
  open = new AsyncDisposableStack();
});
afterEach(() => open.disposeAsync());

/** Two ports of a bridge in a network of their own, which has an address itself. */
async function bridged() {
  const netns = `${marked('say')}-${process.pid}`;
  const ip = (...words: string[]) => execFileSync('ip', ['-n', netns, ...words], { encoding: 'utf8' });
  execFileSync('ip', ['netns', 'add', netns]);
  open.defer(() => void execFileSync('ip', ['netns', 'del', netns]));
  ip('link', 'add', 'us-br', 'type', 'bridge');
  ip('address', 'add', '10.99.0.1/24', 'dev', 'us-br');
  ip('address', 'add', 'fd99::1/64', 'dev', 'us-br', 'nodad');
  ip('link', 'set', 'us-br', 'up');
  const port = async (device: string) =>
    open.use(
      await TapUplink.open({
        device,
        netns,
        nicMac: MAC,
        bridge: 'us-br',
        onLost: (error) => expect.fail(error.message),
      }),
    );
  return { ip, uplink: await port('us-say'), other: await port('us-hear') };
}

function announced(uplink: TapUplink, { mayLeave = (): boolean => true } = {}) {
  return open.use(
    new AnnouncedUplink({ uplink, mac: MAC, clock, known: [IPV4, IPV6], onClaim: () => {}, mayLeave }),
  );
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await clock.sleep(5);
}

describe('a nic that has moved', () => {
  it('is announced again and again on its new uplink, under the address that it had', async () => {
    const { uplink, other } = await bridged();
    const heard: string[] = [];
    other.receive((frame) => void heard.push(Buffer.from(frame).toString('hex')));
    announced(uplink).announce();
    const wanted = announcementFrames(MAC, [IPV4, IPV6]).map((frame) => Buffer.from(frame).toString('hex'));
    for (const frame of wanted) {
      await until(() => heard.filter((one) => one === frame).length === ROUNDS);
      expect(frame.slice(12, 24)).toBe(MAC.replaceAll(':', ''));
    }
  });

  it('is found where it is by a kernel that knew it elsewhere, by IPv4 and by IPv6', async () => {
    const { ip, uplink } = await bridged();
    const addresses = ['10.99.0.2', 'fd99::2'];
    for (const address of addresses)
      ip('neighbour', 'replace', address, 'lladdr', OTHER_MAC, 'nud', 'stale', 'dev', 'us-br');
    const known = (address: string) => ip('neighbour', 'show', address, 'dev', 'us-br');
    for (const address of addresses) expect(known(address)).toContain(OTHER_MAC);
    announced(uplink).announce();
    for (const address of addresses) await until(() => known(address).includes(MAC));
    // The switch has learnt its port.
    expect(ip('-json', 'link', 'show', 'master', 'us-br')).toContain('us-say');
  });

  it('says nothing where nothing may leave', async () => {
    const { uplink, other } = await bridged();
    const heard: string[] = [];
    other.receive((frame) => void heard.push(Buffer.from(frame).toString('hex')));
    announced(uplink, { mayLeave: () => false }).announce();
    const marker = Buffer.alloc(60, 2).fill(0xff, 0, 6);
    uplink.send(marker);
    await until(() => heard.includes(marker.toString('hex')));
    const spoken = announcementFrames(MAC, [IPV4, IPV6]).map((frame) => Buffer.from(frame).toString('hex'));
    expect(heard.filter((frame) => spoken.includes(frame))).toEqual([]);
  });

  it('loses no frame that comes before its guest runs there', async () => {
    const { uplink, other } = await bridged();
    const link = open.adopt(
      new GuestLink({
        ...{ name: 'nic0', framing: frameFraming, farEnd: announced(uplink), clock },
        ...{ onHeld: () => {}, onDisconnected: () => {} },
      }),
      (made) => made[Symbol.dispose](),
    );
    const before = link.stats().queuedItems;
    for (const value of [1, 2, 3]) other.send(Buffer.alloc(60, value).fill(0xff, 0, 6));
    await until(() => link.stats().queuedItems >= before + 3);
  });
});

describe('the addresses of a guest', () => {
  it('are those that it claims itself, not those that it forwards or asks for', () => {
    const heard = new ClaimedAddresses(MAC);
    const [, arp = new Uint8Array(), advertisement = new Uint8Array()] = announcementFrames(MAC, [
      IPV4,
      IPV6,
    ]);
    const probe = Buffer.from(arp);
    probe.fill(0, 28, 32);
    const forwarded = Buffer.from(arp);
    forwarded.fill(2, 22, 28);
    const packet = Buffer.from(advertisement);
    packet[20] = 17;
    for (const frame of [probe, forwarded, packet, ...announcementFrames(OTHER_MAC, [IPV4])])
      heard.note(frame);
    expect(heard.all).toEqual([]);
    heard.note(arp);
    heard.note(advertisement);
    expect(heard.all).toEqual([IPV4, IPV6]);
  });

  it('are few and well formed, whatever it sends', () => {
    const [, arp = new Uint8Array()] = announcementFrames(MAC, [IPV4]);
    const claim = fc.uint8Array({ minLength: 4, maxLength: 4 }).map((address) => {
      const frame = Buffer.from(arp);
      frame.set(address, 28);
      return frame;
    });
    fc.assert(
      fc.property(
        fc.array(fc.oneof(claim, fc.uint8Array({ maxLength: 120 })), { maxLength: 80 }),
        (frames) => {
          const heard = new ClaimedAddresses(MAC);
          for (const frame of frames) heard.note(frame);
          expect(heard.all.length).toBeLessThanOrEqual(32);
          for (const frame of announcementFrames(MAC, heard.all))
            expect(frame.length).toBeGreaterThanOrEqual(60);
        },
      ),
    );
  });
});
