import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { connect as connectTcp } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MIB } from '../base/units.ts';
import type { SiteConfig } from '../config/site-config.ts';
import type { PeerLink } from '../replication/peer-link.ts';
import { MESSAGE } from '../replication/peer-messages.ts';
import { dialPeer, openDoor, SecurePeerLink } from './peer-door.ts';
import { twoHosts } from './site-fixture.ts';

const MESSAGES = 600;
const MESSAGE_BYTES = 256 * 1024;

async function pairOfLinks(): Promise<{ near: PeerLink; far: PeerLink }> {
  const { a, b } = await twoHosts(onTestFinished);
  const { promise, resolve } = Promise.withResolvers<PeerLink>();
  const door = await openDoor(a, { port: 0, onLink: (link) => resolve(new SecurePeerLink(link)) });
  onTestFinished(() => door[Symbol.dispose]());
  const dialled = await dialPeer(b(`127.0.0.1:${door.port}`), 'a', { signal: AbortSignal.timeout(20_000) });
  const near = new SecurePeerLink(dialled.link);
  const far = await promise;
  onTestFinished(() => {
    near.close();
    far.close();
  });
  return { near, far };
}

describe('a door to other hosts', () => {
  it('shows a certificate that was renewed since it was opened, and its links stay', async () => {
    const { a, b, pki } = await twoHosts(onTestFinished);
    const links: PeerLink[] = [];
    using door = await openDoor(a, { port: 0, onLink: (link) => links.push(new SecurePeerLink(link)) });
    const signal = AbortSignal.timeout(20_000);
    const first = new SecurePeerLink((await dialPeer(b(`127.0.0.1:${door.port}`), 'a', { signal })).link);
    for (const file of [a.certificate, a.key]) rmSync(file);
    await pki.host('a', ['192.0.2.1']);
    const shown = connectTls({ host: '127.0.0.1', port: door.port, rejectUnauthorized: false });
    shown.on('error', () => {});
    await once(shown, 'secureConnect');
    expect(shown.getPeerCertificate().subjectaltname).toContain('192.0.2.1');
    shown.destroy();
    const second = new SecurePeerLink((await dialPeer(b(`127.0.0.1:${door.port}`), 'a', { signal })).link);
    for (const link of [first, second]) await link.send(MESSAGE.words, [Buffer.from('still there')]);
    await expect.poll(() => links.length).toBe(2);
    for (const link of links) {
      const { value } = await link.messages()[Symbol.asyncIterator]().next();
      expect(String(Buffer.from(value.body))).toBe('still there');
    }
    for (const link of [first, second, ...links]) link.close();
  });

  it('tells at both ends why somebody does not get in, whichever side minds', async () => {
    const { a, b, pki } = await twoHosts(onTestFinished);
    await pki.host('stranger', []);
    const told: string[] = [];
    using door = await openDoor(a, {
      port: 0,
      onLink: (link) => void link.close(),
      onTurnedAway: ({ code, facts }, address) => told.push([address, code, facts.reason].join(' ')),
    });
    const there = b(`127.0.0.1:${door.port}`);
    const codeOf = (site: SiteConfig, peer: string) =>
      dialPeer(site, peer, { signal: AbortSignal.timeout(20_000) }).then(
        ({ link }) => void link.close(),
        ({ code, facts }) => [code, facts.reason].join(' '),
      );
    const stranger = (path: string) => path.replace(/b\.(\w+)$/, 'stranger.$1');
    const unknown = {
      ...there,
      host: 'stranger',
      certificate: stranger(b().certificate),
      key: stranger(b().key),
    };
    expect(await codeOf(unknown, 'a')).toBe('WIRE_REFUSED WIRE_PEER_NAME');
    const mistaken = { ...there, hosts: { elsewhere: there.hosts.a ?? [] } };
    expect(await codeOf(mistaken, 'elsewhere')).toMatch('WIRE_PEER_NAME');
    await expect
      .poll(() => told.map((line) => line.trim()))
      .toEqual(['127.0.0.1 WIRE_PEER_NAME', '127.0.0.1 WIRE_REFUSED WIRE_PEER_NAME']);
    // Negative control: of those who may come nothing is told, nor of those who only look whether the port answers.
    const probe = connectTcp({ host: '127.0.0.1', port: door.port });
    await once(probe, 'connect');
    probe.destroy();
    expect(await codeOf(there, 'a')).toBeUndefined();
    expect(told).toHaveLength(2);
  });
});

describe('a link to the keeper of a shadow', () => {
  it('holds on to no message that was dealt with', async () => {
    const { near, far } = await pairOfLinks();
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    collect();
    const beforeBytes = process.memoryUsage().arrayBuffers;
    let taken = 0;
    const taking = (async () => {
      for await (const { body } of far.messages()) {
        expect(body).toHaveLength(MESSAGE_BYTES);
        taken += 1;
        if (taken === MESSAGES) return;
        // The link stays open: what it keeps, it keeps now.
        if (taken === MESSAGES - 1) {
          await new Promise<void>((resolve) => setImmediate(resolve));
          collect();
          expect(process.memoryUsage().arrayBuffers - beforeBytes).toBeLessThan(64 * MIB);
        }
      }
    })();
    const body = new Uint8Array(MESSAGE_BYTES);
    for (let sent = 0; sent < MESSAGES; sent += 1) await near.send(MESSAGE.pages, [body]);
    await taking;
    expect(taken).toBe(MESSAGES);
  });

  it('ends for who reads it when the other side closes it', async () => {
    const { near, far } = await pairOfLinks();
    await near.send(MESSAGE.words, [Buffer.from('the last words')]);
    near.close();
    const heard: string[] = [];
    for await (const { body } of far.messages()) heard.push(Buffer.from(body).toString());
    expect(heard).toEqual(['the last words']);
  });
});
