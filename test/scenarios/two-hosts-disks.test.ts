import { execFileSync } from 'node:child_process';
import { readFileSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { VmEvent } from '../../src/control/vm-event.ts';
import type { RemoteConsole } from '../kit/remote-console.ts';
import { type HostName, otherThan, TwoHosts } from '../kit/two-hosts.ts';

const SECTOR_BYTES = 512;
const DISK_BYTES = 8 * 2 ** 20;
const ROOM_BYTES = 48 * 2 ** 20;
const READ_BYTES = 2 * 2 ** 20;
/** Nobody writes to it by chance. */
const BAD_SECTOR = 8000;
const WRITTEN_AT_LEAST = 5;

/** Has the guest write its numbers, each to a sector of its own, through to both disks, until /tmp/enough exists. */
function beginWriting(console: RemoteConsole): void {
  const dd = (disk: string) =>
    `printf %0${SECTOR_BYTES}d $i | dd of=/dev/${disk} bs=${SECTOR_BYTES} seek=$i conv=fsync,notrunc 2>/dev/null`;
  const write = `${dd('vda')} && ${dd('vdb')} && echo "w:$i;"`;
  console.type(`(i=0; while [ ! -e /tmp/enough ]; do i=$((i+1)); ${write}; done; echo fin""ished) &`);
}

/** The last of some more numbers of which the guest said that they are on its disk. */
async function nextWritten(console: RemoteConsole): Promise<number> {
  let last = 0;
  for (let count = 0; count < WRITTEN_AT_LEAST; count += 1)
    last = Number((await console.take(/w:(\d+);/))[1]);
  return last;
}

/** What is in the qcow2 image, as far as it was flushed. */
function rawOf(hosts: TwoHosts, host: HostName): string {
  const raw = join(hosts.folder, 'content');
  execFileSync('qemu-img', ['convert', '-U', '-O', 'raw', hosts.imagePath(host, 'qcow2'), raw]);
  return raw;
}

/** How many numbers both images of a host have without a gap. */
function numbersOn(hosts: TwoHosts, host: HostName): number {
  return Math.min(numbersIn(hosts.imagePath(host)), numbersIn(rawOf(hosts, host)));
}

function numbersIn(path: string): number {
  const content = readFileSync(path);
  let last = 0;
  const textOf = (sector: number) =>
    content.toString('latin1', sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
  while (Number(textOf(last + 1)) === last + 1) last += 1;
  return last;
}

/** What the guest reads is read on the host of its shadow as well. */
async function untilWarmed(hosts: TwoHosts, console: RemoteConsole): Promise<void> {
  for (const disk of ['vda', 'vdb'])
    console.type(`dd if=/dev/${disk} of=/dev/null bs=64k count=${READ_BYTES / (64 * 1024)} iflag=direct`);
  await hosts.eventually('what the guest reads in the cache of b', async () => {
    const { disks } = await hosts.status('b');
    return disks.every(({ warmedBytes = 0 }) => warmedBytes >= READ_BYTES);
  });
  expect((await hosts.status('a')).shadow?.hintedBytes).toBeGreaterThanOrEqual(2 * READ_BYTES);
}

/** Again and again: nobody may be at the console yet of the host that it is said on first. */
const saying = (words: string) => `for n in $(seq 60); do echo ${words}; sleep 0.5; done`;

/** The guest does this in a moment, wherever it goes on: what was typed is in an epoch when it says so. */
async function begin(line: string): Promise<void> {
  console.type(`(sleep 2; ${line}) & echo be""gun`);
  await console.take(/begun\r?\n/);
}

async function lastSeq(host: HostName): Promise<number> {
  return (await hosts.events(host)).at(-1)?.seq ?? 0;
}

let hosts: TwoHosts;
let console: RemoteConsole;

/** The disk of the host fails that the VM acts on: it goes on where its shadow is. What that says of it. */
async function movesFor(from: HostName): Promise<VmEvent> {
  const to = otherThan(from);
  const promoted = await hosts.until(to, 'promoted');
  console = hosts.console(to);
  expect(await hosts.record()).toMatchObject({ holder: to });
  return promoted;
}

describe('a VM of two hosts with a raw disk and a qcow2 one', () => {
  beforeAll(async () => {
    hosts = await TwoHosts.open({
      ...{ diskBytes: DISK_BYTES, diskRoomBytes: ROOM_BYTES, diskFormats: ['raw', 'qcow2'] },
      badSectors: { a: BAD_SECTOR },
    });
    await hosts.start('a');
    console = hosts.console('a');
    await console.untilShell();
    beginWriting(console);
    await nextWritten(console);
    await hosts.until('a', 'protected');
  });

  afterAll(async () => {
    await hosts?.[Symbol.asyncDispose]();
  });

  it('goes on there with all that its guest was told is written, and comes back the same way', async () => {
    // The VM and what has its qcow2 image, the standby and what has its copy.
    for (const host of ['a', 'b'] as const) expect(hosts.qemusOn(host)).toHaveLength(2);
    await untilWarmed(hosts, console);
    for (const [from, to] of [
      ['a', 'b'],
      ['b', 'a'],
    ] as const) {
      const told = await nextWritten(console);
      hosts.killHost(from);
      await hosts.until(to, 'promoted');
      console = hosts.console(to);
      await nextWritten(console);
      expect(numbersOn(hosts, to)).toBeGreaterThanOrEqual(told);
      await hosts.until(to, 'protected');
      const report = JSON.parse(await hosts.cli(to, 'test-failover', hosts.vm, '--json'));
      expect(report).toMatchObject({ ok: true, reason: null });
    }
    // The first copy there was made over what it had been the last time.
    const filled = await hosts.status('a');
    expect(filled.shadow).toMatchObject({ host: 'b' });
  });

  it('goes on alone when the disk of its shadow is full, and has that again when there is room', async () => {
    const after = await lastSeq('a');
    hosts.diskRoom('b').fill();
    const lost = await hosts.until('a', 'shadow-lost', { after });
    expect(lost.facts.error).toMatch(/copy of a disk.*ENOSPC/);
    await nextWritten(console);
    const failing = await hosts.eventually('why there is none', async () =>
      (await hosts.status('a')).placement?.candidates.find(({ verdict }) => verdict === 'failing'),
    );
    expect(failing.why).toMatch(/ENOSPC.*BLOCK_DISK_FAILED/);
    hosts.diskRoom('b').empty();
    await hosts.until('a', 'protected', { after });
    expect(await hosts.record()).toMatchObject({ holder: 'a' });
  });

  it('goes on where its shadow is when its own disk is full, with no shadow there until there is room', async () => {
    const told = await nextWritten(console);
    hosts.diskRoom('a').fill();
    const { facts } = await movesFor('a');
    const disk = {
      path: expect.stringContaining(join(hosts.folder, 'disks/data.')),
      code: 'BLOCK_DISK_FAILED',
    };
    expect(facts).toMatchObject({ from: 'a', reason: 'disk-failed', disk });
    await nextWritten(console);
    expect(numbersOn(hosts, 'b')).toBeGreaterThanOrEqual(told);
    const codes: unknown[] = [];
    await hosts.eventually('both reasons against a shadow there', async () => {
      const failed = (await hosts.events('b')).filter(({ kind }) => kind === 'shadow-failed');
      codes.push(...failed.map(({ facts: { code } }) => code));
      return codes.includes('KEEPER_HOST_FAILING') && codes.includes('KEEPER_PEER_REFUSED');
    });
    expect((await hosts.events('b')).map(({ kind }) => kind)).not.toContain('shadow-placed');
    hosts.diskRoom('a').empty();
    await hosts.until('b', 'protected');
  });

  it('goes on where its shadow is when its disk cannot be read, and its guest reads it there', async () => {
    await begin(`dd if=/dev/vda bs=4096 skip=1500 count=1 of=/dev/null && ${saying('was""read')}`);
    truncateSync(hosts.imagePath('b'));
    const { facts } = await movesFor('b');
    expect(facts).toMatchObject({ reason: 'disk-failed', disk: { code: 'BLOCK_DISK_FAILED' } });
    await console.take(/wasread/);
    await hosts.until('a', 'protected');
  });

  it('goes on where its shadow is when a sector of its disk cannot be written, with no shadow where that is so', async () => {
    const dd = `dd of=/dev/vda bs=${SECTOR_BYTES} seek=${BAD_SECTOR} conv=fsync,notrunc`;
    await begin(`printf %0${SECTOR_BYTES}d 7 | ${dd} && ${saying('was""written')}`);
    const { facts } = await movesFor('a');
    expect(facts).toMatchObject({ disk: { error: expect.stringContaining('EIO') } });
    await console.take(/waswritten/);
    await hosts.eventually('why it has no shadow', async () =>
      (await hosts.events('b')).some(({ facts: { error } }) => /copy of a disk.*EIO/.test(String(error))),
    );
    expect((await hosts.record())?.mode).toBe('alone');
  });

  it('has all that was ever written when it ends', async () => {
    const told = await nextWritten(console);
    console.type(': > /tmp/enough');
    await console.take(/finished/);
    await hosts.cli('b', 'stop', hosts.vm);
    expect(numbersOn(hosts, 'b')).toBeGreaterThanOrEqual(told);
    for (const host of ['a', 'b'] as const)
      await hosts.eventually(`the end of all QEMUs on ${host}`, () => hosts.qemusOn(host).length === 0);
  });
});
