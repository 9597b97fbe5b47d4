import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { CountedWrites } from '../kit/counted-writes.ts';
import { checkDataDisk, DATA_DISK_BYTES, DATA_ON_FIRST_DISK, makeQcowDataDisk } from '../kit/data-disk.ts';
import { type HostName, TwoHosts } from '../kit/two-hosts.ts';

const WRITES_BETWEEN = 20;
const IMAGE = 'data.qcow2';

let hosts: TwoHosts;
let writes: CountedWrites;

async function makeFirstDisk(host: HostName, path: string): Promise<AsyncDisposable> {
  if (host === 'a') await makeQcowDataDisk(join(path, IMAGE));
  return new AsyncDisposableStack();
}

/** The process that has the image of the disk on this host. */
function layerOf(host: HostName): number {
  return Number(readFileSync(join(hosts.runDirectory(host), hosts.vm, 'lower-disk0/pid'), 'utf8'));
}

/** Of what was told there; the host of a shadow may have nothing to tell yet. */
async function lastSeq(host: HostName): Promise<number> {
  const told = await hosts.events(host).catch(() => []);
  return told.at(-1)?.seq ?? 0;
}

describe("a VM of two hosts with Redis' append-only file on a qcow2 disk", () => {
  beforeAll(async () => {
    hosts = await TwoHosts.open({
      ...{ diskBytes: DATA_DISK_BYTES, diskFormats: ['qcow2'], cmdline: DATA_ON_FIRST_DISK },
      prepareDisks: makeFirstDisk,
    });
    await hosts.start('a');
    await hosts.connect(1);
    await hosts.until('a', 'protected');
    writes = new CountedWrites(hosts.load);
  });

  afterAll(async () => {
    writes?.[Symbol.dispose]();
    await hosts?.[Symbol.asyncDispose]();
  });

  it('is moved to the other host while it is written to', async () => {
    await writes.more(WRITES_BETWEEN);
    const moved = JSON.parse(await hosts.cli('a', 'migrate', hosts.vm, '--json'));
    expect(moved).toMatchObject({ from: 'a', to: 'b', protected: true, shadowHost: 'a' });
    await writes.more(WRITES_BETWEEN);
    expect(await hosts.isSameGuest()).toBe(true);
    expect(await hosts.record()).toMatchObject({ holder: 'b', mode: 'in-sync' });
  });

  it('goes on where its shadow is when the process dies that has its image, each time', async () => {
    for (const [from, to] of [
      ['b', 'a'],
      ['a', 'b'],
    ] as const) {
      const after = await lastSeq(to);
      await writes.more(WRITES_BETWEEN);
      process.kill(layerOf(from), 'SIGKILL');
      const { facts } = await hosts.until(to, 'promoted', { after });
      const disk = { path: expect.stringContaining(IMAGE), code: 'BLOCK_DISK_FAILED' };
      expect(facts).toMatchObject({ from, reason: 'disk-failed', disk });
      await writes.more(WRITES_BETWEEN);
      expect(await hosts.isSameGuest()).toBe(true);
      await hosts.until(to, 'protected', { after });
    }
  });

  it('has all that was acknowledged in both images when it ends', async () => {
    writes[Symbol.dispose]();
    expect(await hosts.load.verify()).toMatchObject({ lostWrites: 0 });
    await hosts.cli('b', 'stop', hosts.vm);
    for (const host of ['a', 'b'] as const) {
      await hosts.eventually(`the end of all QEMUs on ${host}`, () => hosts.qemusOn(host).length === 0);
      const image = hosts.imagePath(host, 'qcow2');
      execFileSync('qemu-img', ['check', '-q', image]);
      const verdict = await checkDataDisk(image, 'qcow2');
      expect(verdict.complaints).toEqual([]);
      expect(verdict.writes).toEqual(verdict.writes.map((_, index) => index));
      expect(verdict.writes.length).toBeGreaterThanOrEqual(writes.acknowledged);
    }
  });
});
