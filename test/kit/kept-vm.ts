import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { addAbortSignal } from 'node:stream';
import { ensureDemoGuest } from '../../guest/build.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { parseVmSpec } from '../../src/config/vm-spec.ts';
import { ControlClient } from '../../src/control/control-client.ts';
import { KeeperProcess } from '../../src/control/keeper-process.ts';
import type { KeeperRecord } from '../../src/control/keeper-record.ts';
import type { KeeperWishes } from '../../src/control/keeper-wishes.ts';
import { endProcess } from '../../src/control/process-identity.ts';
import { controlSocketOf, type FoundVm, RunDirectory } from '../../src/control/run-directory.ts';
import { runPaths } from '../../src/control/run-paths.ts';
import type { VmEvent } from '../../src/control/vm-event.ts';
import type { VmStatus } from '../../src/control/vm-status.ts';
import { DemoNetwork } from '../../src/demo/demo-network.ts';
import { RedisLoad } from '../../src/demo/redis-load.ts';
import { writeGuest } from '../../src/qemu/machine-fixture.ts';
import { QemuFinder } from '../../src/qemu/qemu-binary.ts';
import { QemuProcess } from '../../src/qemu/qemu-process.ts';
import { bootedState, nameOfWorker } from './booted-state.ts';
import { marked } from './run-mark.ts';

/** Of every wait; shorter than that of a test, so that what failed is still tidied up. */
const DEADLINE_MS = 60_000;

interface KeptVmOptions {
  readonly clients?: number;
  /** False for a VM that is to stay without a shadow. */
  readonly shadow?: boolean;
  readonly disks?: readonly object[];
  /** Further words of the guest's kernel command line. */
  readonly cmdline?: string;
  /** Other fields of its specification. */
  readonly spec?: Readonly<Record<string, unknown>>;
  /** Runs in its first keeper before anything else; see `killAt` and `unsafely`. */
  readonly plant?: string;
}

interface KeeperStart {
  readonly plant?: string | undefined;
  readonly wishes?: KeeperWishes | undefined;
}

let made = 0;

/**
 * A Redis VM under load, kept by a process that can be killed. Run directory and guest memory are its own, and this
 * process' environment says so until it is disposed of: one at a time.
 */
export class KeptVm implements AsyncDisposable {
  readonly name: string;
  readonly folder: string;
  readonly memoryDirectory: string;
  readonly specPath: string;
  readonly #network: DemoNetwork;
  readonly #owned: AsyncDisposableStack;
  #load: RedisLoad | undefined;
  /** Redis makes it up when it starts: another one would mean that the guest, or Redis in it, began anew. */
  #runId = '';

  private constructor(parts: {
    name: string;
    folder: string;
    memoryDirectory: string;
    network: DemoNetwork;
    owned: AsyncDisposableStack;
  }) {
    this.name = parts.name;
    this.folder = parts.folder;
    this.memoryDirectory = parts.memoryDirectory;
    this.specPath = join(parts.folder, 'spec.yaml');
    this.#network = parts.network;
    this.#owned = parts.owned;
  }

  /** Everything but a keeper: `startKeeper` and `connect`, or a host, come next. */
  static async prepare(options: KeptVmOptions = {}): Promise<KeptVm> {
    const { shadow = true, disks = [], spec = {} } = options;
    const guest = await ensureDemoGuest();
    made += 1;
    const name = nameOfWorker();
    await using preparing = new AsyncDisposableStack();
    const folder = mkdtempSync(join(tmpdir(), 'us-kept-'));
    const memoryDirectory = mkdtempSync(`/dev/shm/${marked('kept')}-`);
    const before = { ...process.env };
    preparing.defer(() => {
      process.env = before;
      for (const path of [folder, memoryDirectory]) rmSync(path, { recursive: true, force: true });
    });
    process.env.UNDERSTUDY_RUN_DIR = join(folder, 'run');
    process.env.UNDERSTUDY_MEMORY_DIR = memoryDirectory;
    process.env.UNDERSTUDY_STATE_DIR = join(folder, 'state');
    const network = preparing.use(await DemoNetwork.open({ name: `${name}-${made}`, kind: 'tap' }));
    preparing.defer(async () => {
      const keeper = RunDirectory.find(name)?.record?.keeper;
      if (keeper !== undefined) await endProcess(keeper, { deadlineMs: DEADLINE_MS, clock });
      await RunDirectory.sweep(name, { clock });
    });
    const vm = new KeptVm({ name, folder, memoryDirectory, network, owned: preparing.move() });
    const cmdline = `${guest.cmdline} ${network.cmdline} ${options.cmdline ?? ''}`;
    const boot = { kernel: guest.kernel, initrd: guest.initrd, cmdline };
    const nics = [{ uplink: network.uplink }];
    const rest = { boot, nics, disks, ...(!shadow && { shadow: { enabled: false } }), ...spec };
    writeFileSync(vm.specPath, JSON.stringify({ name, memory: '128MiB', accel: 'tcg', ...rest }));
    return vm;
  }

  /** Waits until its guest runs and Redis answers, and until it is protected where it has a shadow. */
  static async start(options: KeptVmOptions = {}): Promise<KeptVm> {
    const vm = await KeptVm.prepare(options);
    try {
      await vm.startKeeper({ ...options, wishes: await vm.#beginning(options) });
      await vm.connect(options);
      await vm.until(options.shadow === false ? 'alone' : 'protected');
      return vm;
    } catch (thrown) {
      await vm[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  /** Its first keeper goes on from where another VM of this machine has booted; see bootedState. */
  async #beginning({ disks = [] }: KeptVmOptions): Promise<KeeperWishes> {
    if (disks.length > 0) return {};
    const spec = parseVmSpec(readFileSync(this.specPath, 'utf8'), { source: this.specPath });
    const machine = { spec, accel: 'tcg', qemu: await new QemuFinder().find(spec.qemu.binary) } as const;
    const directory = await bootedState(machine, async (stateDirectory) => {
      const keeper = await this.startKeeper({ wishes: { stateDirectory } });
      await (await RedisLoad.start({ ...this.#network.redis, clock }))[Symbol.asyncDispose]();
      using control = await this.#control();
      await control.stop({ graceful: true, termination: 'snapshot' });
      await keeper.exited;
    });
    return directory === undefined ? {} : { stateDirectory: directory, startFrom: 'snapshot' };
  }

  get load(): RedisLoad {
    if (this.#load === undefined) throw new Error('there are no clients yet');
    return this.#load;
  }

  async connect({ clients = 3 }: Pick<KeptVmOptions, 'clients'> = {}): Promise<void> {
    this.#load = this.#owned.use(await RedisLoad.start({ ...this.#network.redis, clock }));
    await this.#load.connect(clients);
    this.#runId = await this.#askRunId();
  }

  /** Whether it is the guest that it was when its clients connected. */
  async isSameGuest(): Promise<boolean> {
    return (await this.#askRunId()) === this.#runId;
  }

  /** Redis may have to boot first. */
  async untilAnswered(): Promise<void> {
    const signal = AbortSignal.timeout(DEADLINE_MS);
    for (;;) {
      const answered = await this.load.command('PING').catch(() => undefined);
      if (answered !== undefined) return;
      await clock.sleep(100, signal);
    }
  }

  /**
   * A QEMU that nobody keeps, which must never be: on the memory of the one that acts, where its guest stands still, or on
   * memory of its own, where its guest runs.
   */
  async secondQemu(how: 'on-same-memory' | 'running'): Promise<QemuProcess> {
    const { acting } = this.record;
    const same = join(runPaths(this.name).memory, `us-${this.name}-${acting?.instance}.ram`);
    const memory = how === 'running' ? join(this.memoryDirectory, 'second.ram') : same;
    const kernel = join(this.folder, 'second-guest');
    writeGuest(kernel, 'counting');
    const qemu = await QemuProcess.launch({
      binary: 'qemu-system-x86_64',
      args: [
        ...['-nodefaults', '-display', 'none', '-name', 'guest=second,debug-threads=on', '-m', '128M'],
        ...['-machine', 'q35,memory-backend=ram', '-accel', 'tcg', '-kernel', kernel, '-qmp', 'stdio'],
        ...['-object', `memory-backend-file,id=ram,size=128M,mem-path=${memory},share=on`],
        ...(how === 'running' ? [] : ['-S']),
      ],
      logPath: join(this.folder, 'second.log'),
    });
    // The greeting: by now its memory is mapped.
    await new Promise<void>((resolve) => qemu.onOutput(() => resolve()));
    return qemu;
  }

  /** @throws what keeps it from starting */
  async startKeeper({ plant, wishes }: KeeperStart = {}): Promise<KeeperProcess> {
    const keeper = this.spawnKeeper({ plant, wishes });
    try {
      await keeper.started();
    } finally {
      keeper.release();
    }
    return keeper;
  }

  spawnKeeper({ plant, wishes = {} }: KeeperStart = {}): KeeperProcess {
    if (plant === undefined) return new KeeperProcess(this.specPath, { vm: this.name, wishes });
    const path = join(this.folder, 'plant.mjs');
    writeFileSync(path, `if (process.argv[1]?.endsWith('keeper/main.ts')) {\n${plant}\n}\n`);
    const before = process.env.NODE_OPTIONS;
    process.env.NODE_OPTIONS = `--import ${path}`;
    try {
      return new KeeperProcess(this.specPath, { vm: this.name, wishes });
    } finally {
      if (before === undefined) delete process.env.NODE_OPTIONS;
      else process.env.NODE_OPTIONS = before;
    }
  }

  /** Types a line on the console, and waits for what it makes the guest say. */
  async shell(line: string, said: RegExp): Promise<void> {
    using control = await ControlClient.connect(controlSocketOf(this.name), { vm: this.name, clock });
    const console = addAbortSignal(AbortSignal.timeout(DEADLINE_MS), await control.console());
    // What came before is shown as well: this line comes after its echo.
    console.write(`${line}\n`);
    let text = '';
    for await (const bytes of console) {
      text += bytes;
      if (said.test(text)) break;
    }
  }

  get found(): FoundVm | undefined {
    return RunDirectory.find(this.name);
  }

  get record(): KeeperRecord {
    const record = this.found?.record;
    if (record === undefined) throw new Error(`there is no record of ${this.name}`);
    return record;
  }

  /** SIGKILL for the keeper; resolves when it is gone. */
  async killKeeper(): Promise<void> {
    await endProcess(this.record.keeper, { deadlineMs: DEADLINE_MS, clock });
  }

  /** The kernel has sent the signal when the keeper is gone; QEMU's threads take it a moment later. */
  async untilStandsStill(): Promise<void> {
    const signal = AbortSignal.timeout(DEADLINE_MS);
    while (this.found?.orphan === undefined) await clock.sleep(2, signal);
  }

  async until(...phases: readonly string[]): Promise<VmStatus> {
    const signal = AbortSignal.timeout(DEADLINE_MS);
    for (;;) {
      const status = await this.status().catch(() => undefined);
      if (status !== undefined && phases.includes(status.phase)) return status;
      await clock.sleep(20, signal);
    }
  }

  /** The present keeper has promoted a shadow. */
  async untilPromoted(): Promise<void> {
    const signal = AbortSignal.timeout(DEADLINE_MS);
    while ((await this.status()).promotions === 0) await clock.sleep(10, signal);
  }

  /** Types a line on the serial console and waits until it shows this. */
  async typeOnConsole(line: string, wanted: RegExp): Promise<void> {
    using control = await this.#control();
    const console = await control.console();
    console.write(`${line}\n`);
    let shown = '';
    for await (const bytes of addAbortSignal(AbortSignal.timeout(DEADLINE_MS), console)) {
      shown += String(bytes);
      if (wanted.test(shown)) return;
    }
    throw new Error(`the console ended, and showed no ${wanted}: ${shown}`);
  }

  async status(): Promise<VmStatus> {
    using control = await this.#control();
    return await control.status();
  }

  async promote(): Promise<void> {
    using control = await this.#control();
    await control.promote();
  }

  async unprotect(): Promise<void> {
    using control = await this.#control();
    await control.unprotect();
  }

  /** Of the present keeper. */
  async events(): Promise<readonly VmEvent[]> {
    using control = await this.#control();
    const events: VmEvent[] = [];
    for await (const event of control.events({ since: 0, follow: false })) events.push(event);
    return events;
  }

  async kinds(): Promise<string[]> {
    return (await this.events()).map(({ kind }) => kind);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned[Symbol.asyncDispose]();
  }

  #control(): Promise<ControlClient> {
    return ControlClient.connect(controlSocketOf(this.name), { vm: this.name, clock });
  }

  async #askRunId(): Promise<string> {
    const info = String(await this.load.command('INFO', 'server'));
    return /run_id:(\w+)/.exec(info)?.[1] ?? info;
  }
}

const sourceUrl = (path: string) => JSON.stringify(new URL(`../../src/${path}`, import.meta.url).href);

/** A plant for a keeper that is killed at the n-th hit of a failpoint. */
export function killAt(failpoint: string, nth = 1): string {
  return `
    const { Failpoints } = await import(${sourceUrl('base/failpoint.ts')});
    let hits = 0;
    Failpoints.prototype.hit = function (name) {
      if (name === ${JSON.stringify(failpoint)} && ++hits === ${nth}) process.kill(process.pid, 'SIGKILL');
    };`;
}

/** A plant for a keeper without some of its protections; see `UnsafeKeeper`. */
export function unsafely(unsafe: object): string {
  return `
    const { Keeper } = await import(${sourceUrl('keeper/keeper.ts')});
    const start = Keeper.start;
    Keeper.start = (options) => start.call(Keeper, { ...options, unsafe: ${JSON.stringify(unsafe)} });`;
}
