import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { type DemoGuest, ensureDemoGuest } from '../../guest/build.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { ControlClient } from '../../src/control/control-client.ts';
import { KeeperProcess } from '../../src/control/keeper-process.ts';
import { endProcess, identityOf, waitForEnd } from '../../src/control/process-identity.ts';
import { controlSocketOf, eventsPathOf, RunDirectory } from '../../src/control/run-directory.ts';
import { DemoNetwork } from '../../src/demo/demo-network.ts';
import { RedisLoad } from '../../src/demo/redis-load.ts';

const DEADLINE_MS = 60_000;

let folder: string;
let guest: DemoGuest;
let open: AsyncDisposableStack;

beforeAll(async () => {
  guest = await ensureDemoGuest();
});
beforeEach(() => {
  open = new AsyncDisposableStack();
  folder = mkdtempSync(join(tmpdir(), 'us-lost-'));
  vi.stubEnv('UNDERSTUDY_RUN_DIR', join(folder, 'run'));
  vi.stubEnv('UNDERSTUDY_MEMORY_DIR', mkdtempSync('/dev/shm/us-lost-'));
  open.defer(() => {
    for (const path of [folder, process.env.UNDERSTUDY_MEMORY_DIR ?? '']) rmSync(path, { recursive: true });
    vi.unstubAllEnvs();
  });
});
afterEach(() => open.disposeAsync());

interface LostVm {
  readonly load: RedisLoad;
  startKeeper(): Promise<KeeperProcess>;
  /** SIGKILL for the keeper; resolves when it is gone. */
  killKeeper(): Promise<void>;
  until(phase: string): Promise<void>;
  kinds(): Promise<string[]>;
}

/** A Redis VM under load, kept by a process that can be killed. */
async function protectedRedis({ clients = 3 } = {}): Promise<LostVm> {
  const name = `lost-${process.pid}`;
  const network = open.use(await DemoNetwork.open({ name, kind: 'tap' }));
  const path = join(folder, 'spec.yaml');
  const boot = { kernel: guest.kernel, initrd: guest.initrd, cmdline: `${guest.cmdline} ${network.cmdline}` };
  const nics = [{ uplink: network.uplink }];
  writeFileSync(path, JSON.stringify({ name, memory: '128MiB', accel: 'tcg', boot, nics }));
  open.defer(async () => {
    const keeper = RunDirectory.find(name)?.record?.keeper;
    if (keeper !== undefined) await endProcess(keeper, { deadlineMs: DEADLINE_MS, clock });
    await RunDirectory.sweep(name, { clock });
  });
  const connect = () => ControlClient.connect(controlSocketOf(name), { vm: name, clock });
  const vm = {
    async startKeeper() {
      const keeper = new KeeperProcess(path, { vm: name });
      await keeper.started();
      keeper.release();
      return keeper;
    },
    async killKeeper() {
      const keeper = RunDirectory.find(name)?.record?.keeper;
      if (keeper === undefined) throw new Error('there is no keeper to kill');
      await endProcess(keeper, { deadlineMs: DEADLINE_MS, clock });
    },
    async until(phase: string) {
      const signal = AbortSignal.timeout(DEADLINE_MS);
      for (;;) {
        using control = await connect();
        if ((await control.status()).phase === phase) return;
        await clock.sleep(20, signal);
      }
    },
    async kinds() {
      using control = await connect();
      const kinds: string[] = [];
      for await (const { kind } of control.events({ since: 0, follow: false })) kinds.push(kind);
      return kinds;
    },
  };
  await vm.startKeeper();
  const load = open.use(await RedisLoad.start({ ...network.redis, clock }));
  await load.connect(clients);
  await vm.until('protected');
  return { ...vm, load };
}

describe('a VM whose keeper is killed', () => {
  it('ends with it: its QEMUs are not left to run for ever, though nobody clears them away', async () => {
    const vm = await protectedRedis({ clients: 1 });
    const processes = RunDirectory.list()[0]?.record?.processes ?? [];
    expect(processes).toHaveLength(2);
    await vm.killKeeper();
    for (const qemu of processes)
      expect(await waitForEnd(qemu, { deadlineMs: DEADLINE_MS, clock })).toBe(true);
  });

  it('goes on from its shadow with the next keeper: nothing acknowledged is lost, and its connections live on', async () => {
    const vm = await protectedRedis();
    await vm.load.begin();
    for (let round = 0; round < 3; round++) {
      await clock.sleep(200 + Math.random() * 500);
      const before = RunDirectory.list()[0]?.record?.processes ?? [];
      await vm.killKeeper();
      await vm.startKeeper();
      for (const { pid } of before) expect(identityOf(pid)).toBeUndefined();
      expect(await vm.kinds()).toContain('inherited');
      await vm.until('protected');
    }
    const report = await vm.load.end();
    expect(report.connections).toMatchObject({ survived: 3, total: 3 });
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
  });

  it('goes on though the next keeper is killed as well, wherever that one has come to', async () => {
    const vm = await protectedRedis({ clients: 1 });
    await vm.load.begin();
    await clock.sleep(300);
    await vm.killKeeper();
    for (let round = 0; round < 3; round++) {
      const starting = vm.startKeeper().catch(() => {});
      await clock.sleep(Math.random() * 250);
      const [found] = RunDirectory.list();
      // Not any more once it acts without a shadow: what is lost then is lost by two failures.
      if (found?.keeper === 'alive' && found.record?.shadow !== null) await vm.killKeeper();
      await starting;
      if (RunDirectory.list()[0]?.keeper === 'alive') break;
    }
    if (RunDirectory.list()[0]?.keeper !== 'alive') await vm.startKeeper();
    await vm.until('protected');
    expect((await vm.load.end()).connections).toMatchObject({ survived: 1 });
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
  });

  it('begins anew, and says so, when what was left is damaged', async () => {
    const vm = await protectedRedis({ clients: 1 });
    await vm.killKeeper();
    const memory = process.env.UNDERSTUDY_MEMORY_DIR ?? '';
    for (const name of readdirSync(memory, { recursive: true, encoding: 'utf8' })) {
      if (/epochs-\d+\/epoch-\d+$/.test(name)) corrupt(join(memory, name));
    }
    await vm.startKeeper();
    expect(await vm.kinds()).toEqual(expect.arrayContaining(['inherit-failed', 'alone']));
    expect(await vm.kinds()).not.toContain('inherited');
    await vm.until('protected');
  });

  it('begins anew with another specification', async () => {
    const vm = await protectedRedis({ clients: 1 });
    await vm.killKeeper();
    const path = join(folder, 'spec.yaml');
    writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), memory: '160MiB' }));
    await vm.startKeeper();
    expect(await vm.kinds()).not.toContain('inherited');
    await vm.until('protected');
    expect(readdirSync(process.env.UNDERSTUDY_MEMORY_DIR ?? '')).toHaveLength(1);
  });
});

describe('a VM whose keeper has a fault', () => {
  it('is ended as a whole, and nothing takes over meanwhile', async () => {
    const plant = join(folder, 'fault.mjs');
    const isKeeper = "process.argv[1]?.endsWith('keeper/main.ts')";
    writeFileSync(plant, `if (${isKeeper}) process.on('SIGUSR2', () => { throw new Error('planted'); });`);
    vi.stubEnv('NODE_OPTIONS', `--import ${plant}`);
    await protectedRedis({ clients: 1 });
    const { name, record } = RunDirectory.list()[0] ?? {};
    if (name === undefined || record === undefined) throw new Error('there is no VM');
    process.kill(record.keeper.pid, 'SIGUSR2');
    for (const each of [record.keeper, ...record.processes])
      expect(await waitForEnd(each, { deadlineMs: DEADLINE_MS, clock })).toBe(true);
    expect(RunDirectory.find(name)?.record?.failed).toBe(true);
    const events = readFileSync(eventsPathOf(name), 'utf8').trim().split('\n');
    const kinds = events.map((line) => JSON.parse(line).kind);
    expect(kinds).toContain('protected');
    for (const kind of ['primary-lost', 'promoted', 'shadow-lost']) expect(kinds).not.toContain(kind);
  });
});

function corrupt(path: string): void {
  const file = openSync(path, 'r+');
  // In the contents of its pages, and after a header that is whole.
  writeSync(file, Buffer.alloc(64, 0x5a), 0, 64, 4096 + 128);
  closeSync(file);
}
