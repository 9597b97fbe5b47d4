import { mkdtempSync, rmSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { seededRandom } from '../../src/base/seeded-random.ts';
import { CountedWrites } from '../kit/counted-writes.ts';
import {
  checkDataDisk,
  DATA_DISK_BYTES,
  DATA_ON_FIRST_DISK,
  type DataDiskVerdict,
  makeDataDisk,
  takeOut,
} from '../kit/data-disk.ts';
import { ForgetfulDisk } from '../kit/forgetful-disk.ts';
import { KeptVm } from '../kit/kept-vm.ts';
import { TestVm, until } from '../kit/test-vm.ts';
import { type HostName, TwoHosts } from '../kit/two-hosts.ts';

const IMAGE = 'data.img';
const POWER_LOSSES = 3;
const WRITES_BETWEEN = 5;
const UNCUT_BYTES = 200_000;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-file-systems-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** Sound, with each write that was acknowledged, in order, and none that was not sent. */
function expectAll({ complaints, writes }: DataDiskVerdict, acknowledged: number): void {
  expect(complaints).toEqual([]);
  expect(writes).toEqual(writes.map((_, index) => index));
  expect(writes.length).toBeGreaterThanOrEqual(acknowledged);
  expect(writes.length).toBeLessThanOrEqual(acknowledged + 1);
}

/** What a host that has lost its power has on its disk. */
async function checkContent(content: Buffer): Promise<DataDiskVerdict> {
  const hostDisk = join(folder, 'host-disk');
  const image = join(folder, IMAGE);
  await writeFile(hostDisk, content);
  for (const suffix of ['', '.journal']) {
    await takeOut(`${IMAGE}${suffix}`, { from: hostDisk, to: `${image}${suffix}` });
  }
  return await checkDataDisk(image);
}

/** The disks of two hosts, and when their power was taken for lost. */
class HostDisks {
  readonly #disks = new Map<HostName, ForgetfulDisk>();
  readonly losses: { readonly host: HostName; readonly moment: number; readonly acknowledged: number }[] = [];

  async mount(host: HostName, path: string): Promise<ForgetfulDisk> {
    const disk = await ForgetfulDisk.mountedAt(path);
    this.#disks.set(host, disk);
    if (host === 'a') await makeDataDisk(join(path, IMAGE));
    return disk;
  }

  of(host: HostName): ForgetfulDisk {
    const disk = this.#disks.get(host);
    if (disk === undefined) throw new Error(`host ${host} has no disk`);
    return disk;
  }

  /** At one moment: nothing happens in between. */
  losePower(hosts: readonly HostName[], { acknowledged }: CountedWrites): void {
    for (const host of hosts) this.losses.push({ host, moment: this.of(host).now, acknowledged });
  }
}

describe('a VM of two hosts with an append-only file, whose commits are durable', () => {
  it('has all that was acknowledged on either host whenever the power of both fails, and where it goes on', async () => {
    const disks = new HostDisks();
    {
      await using hosts = await TwoHosts.open({
        ...{ diskBytes: DATA_DISK_BYTES, cmdline: DATA_ON_FIRST_DISK },
        spec: { shadow: { hosts: ['a', 'b'], commit: 'durable' } },
        prepareDisks: (host, path) => disks.mount(host, path),
      });
      await hosts.start('a');
      await hosts.connect(1);
      await hosts.until('a', 'protected');
      using writes = new CountedWrites(hosts.load);
      for (let count = 0; count < POWER_LOSSES; count += 1) {
        await writes.more(WRITES_BETWEEN);
        disks.losePower(['a', 'b'], writes);
      }
      await hosts.endSite('a');
      hosts.killHost('a');
      await hosts.until('b', 'promoted');
      await writes.more(WRITES_BETWEEN);
      disks.losePower(['b'], writes);
    }
    const random = seededRandom(1);
    const luck = () => random() < 0.5;
    for (const { host, moment, acknowledged } of disks.losses)
      expectAll(await checkContent(disks.of(host).afterPowerLoss(moment, luck)), acknowledged);
    await expectLiarFound(disks);
  });
});

/** Would the same check notice a disk that says that it has flushed, and has not? */
async function expectLiarFound(disks: HostDisks): Promise<void> {
  const ofB = disks.losses.filter(({ host }) => host === 'b');
  const [first, last] = [ofB[0], ofB.at(-1)];
  if (first === undefined || last === undefined) throw new Error('host b has lost its power');
  const options = { since: first.moment, luck: () => false };
  const { writes } = await checkContent(disks.of(last.host).afterPowerLossOfLiar(last.moment, options));
  expect(writes.length).toBeLessThan(last.acknowledged);
}

describe('a VM with an append-only file whose keeper is killed, and then the next one', () => {
  it('goes on with it, and leaves all that was acknowledged on its disk', async () => {
    const path = join(folder, IMAGE);
    await makeDataDisk(path);
    await using vm = await KeptVm.start({
      ...{ clients: 1, cmdline: DATA_ON_FIRST_DISK },
      disks: [{ path, format: 'raw' }],
      spec: { shadow: { commit: 'durable' } },
    });
    using writes = new CountedWrites(vm.load);
    await writes.more(WRITES_BETWEEN);
    await vm.killKeeper();
    await vm.startKeeper();
    expect(await vm.kinds()).toContain('inherited');
    await writes.more(WRITES_BETWEEN);
    await vm.until('protected');
    await writes.more(WRITES_BETWEEN);
    await vm.killKeeper();
    expectAll(await checkDataDisk(path), writes.acknowledged);
  });
});

const SCRIPT =
  'mkdir /data/many; for i in $(seq 100); do echo $i > /data/many/$i; done; sync; echo fin""ished';

/**
 * What is left of the disk of a VM whose QEMU was killed while an epoch had not been cut for long, and what its guest, which went
 * on, had on it then.
 */
async function afterKill(): Promise<{ verdict: DataDiskVerdict; had: string[] }> {
  let had: string[] = [];
  const path = join(folder, IMAGE);
  await makeDataDisk(path);
  {
    const yaml = `disks: [{path: ${path}, format: raw}]`;
    await using vm = await TestVm.start({ clients: 0, yaml, cmdline: DATA_ON_FIRST_DISK });
    using console = vm.openConsole();
    await console.take(/understudy-guest: ready[\s\S]*\/ # /);
    console.type('echo known > /data/known; sync; echo syn""ced');
    await console.take(/synced/);
    const promoted = vm.nextEvent('promoted');
    const hold = vm.holdAt('cut.before-pause');
    await hold.reached;
    console.type(SCRIPT);
    await until(() => (vm.status.disks[0]?.epochs?.heldBytes ?? 0) > UNCUT_BYTES);
    vm.signalPrimary('SIGKILL');
    hold.release();
    await promoted;
    // What was typed since the last epoch is typed again.
    await console.take(/finished\r?\n/);
    console.type('echo "fi""les:$(echo $(ls /data));"');
    had = (await console.take(/files:([^;]*);/))[1]?.split(' ') ?? [];
    await vm.untilProtected();
  }
  return { verdict: await checkDataDisk(path), had: had.toSorted() };
}

describe('a file system that is in use when its QEMU is killed', () => {
  it('is as the guest that goes on has it', async () => {
    const { verdict, had } = await afterKill();
    expect(had).toContain('many');
    expect(verdict).toEqual({ complaints: [], files: had, writes: [] });
  });
});
