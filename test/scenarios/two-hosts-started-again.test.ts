import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { RemoteConsole } from '../kit/remote-console.ts';
import { type HostName, TwoHosts } from '../kit/two-hosts.ts';

const SECTOR_BYTES = 512;
const DISK_BYTES = 8 * 2 ** 20;
const NUMBERS_EACH_TIME = 20;

let hosts: TwoHosts;
let console: RemoteConsole;
let written = 0;

/** The guest writes its next numbers, each to a sector of its own, and says so when they are on its disk. */
async function writeMore(): Promise<void> {
  const last = written + NUMBERS_EACH_TIME;
  const dd = `dd of=/dev/vda bs=${SECTOR_BYTES} seek=$i conv=fsync,notrunc 2>/dev/null`;
  console.type(
    `for i in $(seq ${written + 1} ${last}); do printf %0${SECTOR_BYTES}d $i | ${dd}; done; echo "wr""itten:$i;"`,
  );
  await console.take(new RegExp(`written:${last};`));
  written = last;
}

/** How many numbers the image of a host has without a gap. */
function numbersOn(host: HostName): number {
  const content = readFileSync(hosts.imagePath(host)).toString('latin1');
  let last = 0;
  const textOf = (sector: number) => content.slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
  while (Number(textOf(last + 1)) === last + 1) last += 1;
  return last;
}

/** The host of the VM is lost, and it goes on where its shadow is, which gets one of its own. */
async function loses(from: HostName, to: HostName): Promise<void> {
  const told = await hosts.events(to).catch(() => []);
  hosts.killHost(from);
  await hosts.until(to, 'promoted', { after: told.at(-1)?.seq ?? 0 });
  console = hosts.console(to);
  await writeMore();
  await hosts.until(to, 'protected');
}

async function stops(host: HostName): Promise<void> {
  await hosts.cli(host, 'stop', hosts.vm);
  for (const each of ['a', 'b'] as const)
    await hosts.eventually(`the end of all QEMUs on ${each}`, () => hosts.qemusOn(each).length === 0);
}

async function starts(host: HostName, ...words: string[]): Promise<void> {
  await hosts.cli(host, 'run', join(hosts.folder, 'vm.yaml'), '--wait', 'started', ...words);
  console = hosts.console(host);
  await console.untilShell();
}

async function tokenOn(host: HostName): Promise<number> {
  return (await hosts.status(host)).token;
}

describe('a VM of two hosts with a disk that was moved several times, and is started again', () => {
  beforeAll(async () => {
    hosts = await TwoHosts.open({ diskBytes: DISK_BYTES });
    await starts('a');
    await hosts.until('a', 'protected');
    await writeMore();
    await loses('a', 'b');
    for (const from of ['b', 'a'] as const)
      expect(JSON.parse(await hosts.cli(from, 'migrate', hosts.vm, '--json'))).toMatchObject({
        protected: true,
      });
  });

  afterAll(async () => {
    await hosts?.[Symbol.asyncDispose]();
  });

  it('gets its shadow where it had one, with a token above those that its disk has seen anywhere', async () => {
    const before = await tokenOn('b');
    await stops('b');
    await expect(hosts.start('a')).rejects.toThrow('KEEPER_DISKS_ELSEWHERE');
    await starts('b');
    expect(await tokenOn('b')).toBeGreaterThan(before);
    await hosts.until('b', 'protected');
    const failed = (await hosts.events('b')).filter(({ kind }) => kind === 'shadow-failed');
    expect(failed).toEqual([]);
    await writeMore();
  });

  it('loses nothing of its disk when its host is lost after that', async () => {
    await loses('b', 'a');
    expect(numbersOn('a')).toBe(written);
  });

  it('gets it as well when it is begun anew on the other host, which somebody has to say', async () => {
    const before = await tokenOn('a');
    await stops('a');
    await expect(hosts.start('b')).rejects.toThrow('KEEPER_DISKS_ELSEWHERE');
    await starts('b', '--anew');
    expect(await tokenOn('b')).toBeGreaterThan(before);
    await hosts.until('b', 'protected');
    await writeMore();
    await stops('b');
    for (const host of ['a', 'b'] as const) expect(numbersOn(host)).toBe(written);
  });
});
