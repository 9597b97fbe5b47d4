import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { RemoteConsole } from '../kit/remote-console.ts';
import { TwoHosts } from '../kit/two-hosts.ts';

const SECTOR_BYTES = 512;
const DISK_BYTES = 8 * 2 ** 20;
const WRITTEN_AT_LEAST = 5;

/** Has the guest write its numbers, each to a sector of its own, through to the disk, until /tmp/enough exists. */
function beginWriting(console: RemoteConsole): void {
  const dd = `dd of=/dev/vda bs=${SECTOR_BYTES} seek=$i conv=fsync,notrunc 2>/dev/null`;
  const write = `printf %0${SECTOR_BYTES}d $i | ${dd} && echo "w:$i;"`;
  console.type(`(i=0; while [ ! -e /tmp/enough ]; do i=$((i+1)); ${write}; done; echo fin""ished) &`);
}

/** The last of some more numbers of which the guest said that they are on its disk. */
async function nextWritten(console: RemoteConsole): Promise<number> {
  let last = 0;
  for (let count = 0; count < WRITTEN_AT_LEAST; count += 1)
    last = Number((await console.take(/w:(\d+);/))[1]);
  return last;
}

/** How many numbers an image has without a gap. */
function numbersIn(path: string): number {
  const content = readFileSync(path);
  let last = 0;
  const textOf = (sector: number) =>
    content.toString('latin1', sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
  while (Number(textOf(last + 1)) === last + 1) last += 1;
  return last;
}

describe('a VM of two hosts with a disk', () => {
  it('goes on there with all that its guest was told is written, and comes back the same way', async () => {
    await using hosts = await TwoHosts.open({ diskBytes: DISK_BYTES });
    await hosts.start('a');
    let console = hosts.console('a');
    await console.untilShell();
    beginWriting(console);
    await nextWritten(console);
    await hosts.until('a', 'protected');
    for (const [from, to] of [
      ['a', 'b'],
      ['b', 'a'],
    ] as const) {
      const told = await nextWritten(console);
      hosts.killHost(from);
      await hosts.until(to, 'promoted');
      console = hosts.console(to);
      await nextWritten(console);
      expect(numbersIn(hosts.imagePath(to))).toBeGreaterThanOrEqual(told);
      await hosts.until(to, 'protected');
      const report = JSON.parse(await hosts.cli(to, 'test-failover', hosts.vm, '--json'));
      expect(report).toMatchObject({ ok: true, reason: null });
    }
    // The first copy there was made over what it had been the last time.
    const filled = await hosts.status('a');
    expect(filled.shadow).toMatchObject({ host: 'b' });
    console.type(': > /tmp/enough');
    await console.take(/finished/);
    await hosts.cli('a', 'stop', hosts.vm);
    const last = numbersIn(hosts.imagePath('a'));
    expect(last).toBeGreaterThan(4 * WRITTEN_AT_LEAST);
  });
});
