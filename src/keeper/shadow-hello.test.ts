import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import type { PeerLink } from '../replication/peer-link.ts';
import { linkWithin } from '../replication/peer-link-fixture.ts';
import { encodeWords, MESSAGE, PEER_PROTOCOL, type PeerWords } from '../replication/peer-messages.ts';
import { digestFiles } from './file-digests.ts';
import { type AskedShadow, checkTwin, readHello } from './shadow-hello.ts';
import type { VmHost } from './vm-host.ts';

type Hello = Extract<PeerWords, { kind: 'hello' }>;

const HERE = { qemu: { version: '7.2.22' }, accel: 'tcg' } as VmHost;

/** What the keeper of a VM says first whose files are those of this host, with a change. */
function helloOf(kernel: string, change: Partial<Hello> = {}): Hello {
  const spec = { name: 'vm', memory: '128MiB', boot: { kernel }, shadow: { hosts: ['a', 'b'] } };
  return {
    ...{ kind: 'hello', protocol: PEER_PROTOCOL, vm: 'vm', copy: 1, token: 1, epoch: 1 },
    ...{ rightToken: 1, presencePort: 1, pulseKey: '00'.repeat(32), disks: [] },
    ...{ spec: { text: JSON.stringify(spec), source: '/vm.yaml' }, files: {} },
    ...{ qemuVersion: HERE.qemu.version, accel: HERE.accel },
    ...change,
  };
}

function kernelFile(): string {
  const folder = mkdtempSync(join(tmpdir(), 'us-hello-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'kernel');
  writeFileSync(path, 'the kernel of this host');
  return path;
}

async function heard(change: Partial<Hello> = {}): Promise<AskedShadow> {
  const { near, far } = linkWithin();
  onTestFinished(() => close(near, far));
  const hello = helloOf(kernelFile(), change);
  void near.send(MESSAGE.words, [encodeWords(hello)]);
  return await readHello(far, { vm: 'vm', peer: 'a', signal: AbortSignal.timeout(20_000) });
}

function close(...links: readonly PeerLink[]): void {
  for (const link of links) link.close();
}

describe('a host that asks for a place for a shadow', () => {
  it('with the same releases and the same files gets one', async () => {
    const asked = await heard();
    const files = await digestFiles(asked.spec);
    await checkTwin({ ...asked, hello: { ...asked.hello, files } }, HERE);
    expect(Object.keys(files)).toEqual(['kernel']);
  });

  it('and speaks another protocol is told which one this host speaks', async () => {
    await expect(heard({ protocol: PEER_PROTOCOL + 1 })).rejects.toMatchObject({
      code: 'KEEPER_PEER_REFUSED',
      message: expect.stringMatching(
        `it speaks protocol ${PEER_PROTOCOL + 1}, and this host ${PEER_PROTOCOL}$`,
      ),
    });
  });

  it('and speaks another protocol, with other words, is told so too; with those of this one it is garbled (control)', async () => {
    const other = (protocol: number) => heard({ protocol, disks: undefined } as unknown as Partial<Hello>);
    await expect(other(PEER_PROTOCOL - 1)).rejects.toMatchObject({
      code: 'KEEPER_PEER_REFUSED',
      message: expect.stringMatching(`it speaks protocol ${PEER_PROTOCOL - 1}, and`),
    });
    await expect(other(PEER_PROTOCOL)).rejects.toMatchObject({ code: 'REPLICATION_PEER_GARBLED' });
  });

  it.each<[string, Partial<Hello>, RegExp]>([
    ['another QEMU', { qemuVersion: '9.2.0' }, /it runs QEMU 9\.2\.0, and this host has 7\.2\.22/],
    ['another accelerator', { accel: 'kvm' }, /runs with kvm, and this host has tcg/],
    ['another kernel', { files: { kernel: '0'.repeat(64) } }, /the kernel of vm is another file/],
    ['no kernel', { files: {} }, /the kernel of vm is another file/],
    ['a file that is not used here', { files: { initrd: '0'.repeat(64) } }, /the (?:kernel|initrd) of vm/],
  ])('and has %s is told that', async (_what, change, message) => {
    await expect(checkTwin(await heard(change), HERE)).rejects.toMatchObject({
      code: 'KEEPER_PEER_REFUSED',
      message: expect.stringMatching(message),
    });
  });
});
