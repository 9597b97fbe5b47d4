import { readFileSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../../src/base/clock.ts';
import { seededRandom } from '../../src/base/seeded-random.ts';
import { endProcess } from '../../src/control/process-identity.ts';
import { HostDaemon } from '../kit/host-daemon.ts';
import { KeptVm } from '../kit/kept-vm.ts';
import { DoubleWatch } from '../kit/running-qemus.ts';
import { soaking } from '../kit/soak.ts';

const DEADLINE_MS = 60_000;
const ROUNDS = soaking ? 150 : 8;
const CONNECTIONS = 3;
/** Long enough for a keeper to start, to copy the memory and to be protected, so that all of it is met. */
const GAP_MS = 1500;

/** What a keeper may take of the host's memory for itself; its guest's is shared and does not count. */
const KEEPER_BYTES_MAX = 80e6;

let open: AsyncDisposableStack;

afterEach(() => open.disposeAsync());

function anonymousBytes(pid: number): number {
  const [, kilobytes] = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? [];
  return Number(kilobytes) * 1024;
}

describe('a VM under load that a host owns', () => {
  it.each([
    { shadow: true, what: 'its keepers, its QEMU while it has a shadow, and the host' },
    { shadow: false, what: 'its keepers and the host' },
  ])('loses nothing and is never doubled when $what are killed at random moments', async ({ shadow }) => {
    open = new AsyncDisposableStack();
    const seed = Math.floor(Math.random() * 2 ** 31);
    const random = seededRandom(seed);
    const vm = open.use(await KeptVm.prepare({ shadow }));
    const directories = { folder: vm.folder, memoryFolder: vm.memoryDirectory };
    let daemon = await HostDaemon.start(directories);
    open.defer(() => daemon.end('SIGKILL').then(() => {}));
    const body = { spec: readFileSync(vm.specPath, 'utf8'), directory: '/' };
    await daemon.client.call('declareVm', { body });
    await vm.connect({ clients: CONNECTIONS });
    const goal = shadow ? 'protected' : 'alone';
    await vm.until(goal);
    using watch = new DoubleWatch(vm.memoryDirectory);
    await vm.load.begin();

    const met = new Set<string>();
    const killKeeper = async () => {
      if (vm.found?.keeper !== 'alive') return;
      met.add(`a keeper ${vm.record.shadow === null ? 'without a shadow in sync' : 'with a shadow in sync'}`);
      await vm.killKeeper();
    };
    const killHost = async () => {
      await daemon.end('SIGKILL');
      daemon = await HostDaemon.start(directories);
    };
    // Without a shadow in sync the end of a QEMU is the end of its guest.
    const killQemu = async () => {
      const { acting, shadow } = vm.record;
      if (acting === null || shadow === null) return;
      met.add('a QEMU');
      await endProcess(acting.process, { deadlineMs: DEADLINE_MS, clock });
    };
    const both = async () => {
      await daemon.end('SIGKILL');
      await killKeeper();
      daemon = await HostDaemon.start(directories);
    };
    const ways = [killKeeper, killKeeper, killHost, both, ...(shadow ? [killQemu] : [])];
    for (let round = 0; round < ROUNDS; round++) {
      await clock.sleep(random() * GAP_MS);
      await ways[Math.floor(random() * ways.length)]?.();
      // Who asks for a VM does not have to wait for the next try, which comes later after every failure.
      await daemon.client.call('startVm', { params: { name: vm.name } });
    }

    await vm.until(goal);
    expect(anonymousBytes(vm.record.keeper.pid)).toBeLessThan(KEEPER_BYTES_MAX);
    const report = await vm.load.end();
    const where = `seed ${seed}, killed: ${[...met].join(', ')}`;
    expect(report.errors, where).toEqual([]);
    expect(report.connections, where).toEqual({ total: CONNECTIONS, survived: CONNECTIONS });
    expect(await vm.load.verify(), where).toMatchObject({ lostWrites: 0, examples: [] });
    expect(await vm.isSameGuest(), where).toBe(true);
    expect(watch.hasSeen).toBe(true);
    expect(watch.doubles, where).toEqual([]);
    expect(met.size, 'kinds of kills').toBeGreaterThan(0);
  });
});
