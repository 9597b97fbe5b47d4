import { execFileSync } from 'node:child_process';
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { ensureDemoGuest } from '../../guest/build.ts';
import { cacheDirectory } from '../../src/base/cache-directory.ts';
import { systemClock } from '../../src/base/clock.ts';
import { Failpoints } from '../../src/base/failpoint.ts';
import { jsonLogger } from '../../src/base/logger.ts';
import { parseVmSpec } from '../../src/config/vm-spec.ts';
import type { VmSpec } from '../../src/config/vm-spec-schema.ts';
import type { ConsoleSession } from '../../src/control/keeper-control.ts';
import { RunDirectory } from '../../src/control/run-directory.ts';
import { savedStatePaths } from '../../src/control/run-paths.ts';
import type { VmEvent } from '../../src/control/vm-event.ts';
import type { LinkStatus, VmStatus } from '../../src/control/vm-status.ts';
import { monotonicMs } from '../../src/demo/monotonic-time.ts';
import { RedisLoad } from '../../src/demo/redis-load.ts';
import { Keeper } from '../../src/keeper/keeper.ts';
import type { KeeperOptions, UnsafeKeeper } from '../../src/keeper/keeper-options.ts';
import { ensurePreloadLibrary } from '../../src/memory/preload-library.ts';
import { QemuFinder } from '../../src/qemu/qemu-binary.ts';
import { bootedState, nameOfWorker } from './booted-state.ts';
import { ConsoleText } from './console-text.ts';
import { marked } from './run-mark.ts';

const GUEST_ADDRESS = '10.77.0.2';
const REDIS_PORT = 6379;
/** Of every wait; shorter than that of a test, so that what failed is still tidied up. */
const DEADLINE_MS = 60_000;
const LOG_LINES_SHOWN = 30;

export interface TestVmOptions {
  /** Further lines of the specification. */
  readonly yaml?: string;
  /** Instead of one card in a network namespace of the VM's own. */
  readonly nics?: string;
  /** Instead of the demo guest's. */
  readonly kernel?: string;
  readonly initrd?: string;
  /** Further words of the guest's kernel command line. */
  readonly cmdline?: string;
  readonly unsafe?: UnsafeKeeper;
  /** Gives the start of its keeper up. */
  readonly signal?: AbortSignal;
  /** Clients of Redis, each with one connection for its whole life; 0 for a guest that nobody speaks with. */
  readonly clients?: number;
  /** Boots although it could go on from where another one has booted: for tests of what comes from the boot. */
  readonly boots?: boolean;
  /** Further options of its keeper. */
  readonly keeper?: Partial<KeeperOptions>;
  /** A file system in memory for guest memory; by default a directory of its own below /dev/shm. */
  readonly memoryDirectory?: string;
}

/** A place in a protocol where everything waits. */
export interface Hold {
  /** Resolves once the place is reached. */
  readonly reached: Promise<void>;
  /** Lets it go on. A hold that was not reached any more does nothing. */
  release(): void;
}

type StartKeeper = (
  extra?: Partial<KeeperOptions>,
  directory?: RunDirectory,
) => Promise<{ readonly keeper: Keeper; readonly runDirectory: RunDirectory }>;

let made = 0;

/**
 * A VM of the demo guest, kept in this very process so that failpoints can be armed, in a network namespace of
 * its own. Disposing it leaves nothing behind, whatever the test did to it.
 */
export class TestVm implements AsyncDisposable {
  #keeper: Keeper;
  #runDirectory: RunDirectory;
  readonly #startKeeper: StartKeeper;
  readonly spec: VmSpec;
  readonly netns: string;
  readonly failpoints: Failpoints;
  readonly #directory: string;
  readonly #memoryDirectory: string;
  readonly #load: RedisLoad | undefined;
  readonly #logLines: readonly string[];
  readonly #owned: AsyncDisposableStack;

  private constructor(parts: {
    keeper: Keeper;
    spec: VmSpec;
    startKeeper: StartKeeper;
    runDirectory: RunDirectory;
    netns: string;
    failpoints: Failpoints;
    load: RedisLoad | undefined;
    logLines: readonly string[];
    owned: AsyncDisposableStack;
  }) {
    this.#keeper = parts.keeper;
    this.#runDirectory = parts.runDirectory;
    this.#startKeeper = parts.startKeeper;
    this.spec = parts.spec;
    this.netns = parts.netns;
    this.failpoints = parts.failpoints;
    this.#directory = parts.runDirectory.path;
    this.#memoryDirectory = parts.runDirectory.memoryPath;
    this.#load = parts.load;
    this.#logLines = parts.logLines;
    this.#owned = parts.owned;
  }

  /** Waits until its guest runs and is protected, and until Redis answers if there are clients. */
  static async start(options: TestVmOptions = {}): Promise<TestVm> {
    const { clients = 1 } = options;
    made += 1;
    const name = nameOfWorker();
    const netnsName = `us-${name}-${made}`;
    const spec = await specOf(options, { name, netns: netnsName });
    const machine = { spec, accel: 'tcg', qemu: await new QemuFinder().find(spec.qemu.binary) } as const;
    const begun = await beginning(options, machine);
    await using starting = new AsyncDisposableStack();
    useDirectories(starting, options.memoryDirectory);
    const netns = makeNetns(starting, netnsName);
    const openDirectory = () =>
      RunDirectory.open(name, { clock: systemClock, othersMayPass: spec.qemu.user !== undefined });
    const runDirectory = await openDirectory();
    const logLines: string[] = [];
    const failpoints = new Failpoints();
    const startKeeper: StartKeeper = async (extra = {}, directory) => {
      const held = directory ?? (await openDirectory());
      try {
        const keeper = await Keeper.start({
          ...machine,
          preloadLibrary: await ensurePreloadLibrary({ cacheDir: cacheDirectory() }),
          runDirectory: held,
          log: jsonLogger((line) => logLines.push(line), Date.now),
          clock: systemClock,
          failpoints,
          ...(options.unsafe !== undefined && { unsafe: options.unsafe }),
          ...(options.signal !== undefined && { signal: options.signal }),
          ...options.keeper,
          ...extra,
        });
        return { keeper, runDirectory: held };
      } catch (thrown) {
        held[Symbol.dispose]();
        throw thrown;
      }
    };
    const { keeper } = await startKeeper(begun, runDirectory);
    let started: TestVm | undefined;
    starting.defer(async () => {
      await (started?.keeper ?? keeper).stop({ graceful: false, termination: 'remove' });
      (started === undefined ? runDirectory : started.#runDirectory)[Symbol.dispose]();
    });
    const load = clients > 0 ? starting.use(await loadIn(netns, clients)) : undefined;
    const vm = new TestVm({
      keeper,
      spec,
      startKeeper,
      runDirectory,
      netns,
      failpoints,
      load,
      logLines,
      owned: starting.move(),
    });
    started = vm;
    try {
      if (keeper.status().shadowWanted) await vm.untilProtected();
      return vm;
    } catch (thrown) {
      await vm[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  get keeper(): Keeper {
    return this.#keeper;
  }

  /** Another keeper for the same VM, after the one before has ended. */
  async startAgain(options: Partial<KeeperOptions> = {}): Promise<void> {
    this.#runDirectory[Symbol.dispose]();
    const { keeper, runDirectory } = await this.#startKeeper(options);
    this.#keeper = keeper;
    this.#runDirectory = runDirectory;
  }

  get load(): RedisLoad {
    if (this.#load === undefined) throw new Error('this VM was started without clients');
    return this.#load;
  }

  /** Other clients than those of the start, e.g. after the guest has lost their connections by a reboot. */
  async newLoad(): Promise<RedisLoad> {
    return this.#owned.use(await loadIn(this.netns, 1));
  }

  get status(): VmStatus {
    return this.keeper.status();
  }

  get primaryPid(): number {
    return this.#pidOf(this.status.primary);
  }

  get standbyPid(): number {
    return this.#pidOf(this.status.shadow);
  }

  /** What was said on QMP with the QEMU that acts, but for the commands of every epoch. */
  get primaryQmpLog(): string {
    return this.qmpLog(this.status.primary);
  }

  /** The same with this QEMU. */
  qmpLog(instance: { instance: number } | null): string {
    return readFileSync(join(this.#directory, String(instance?.instance), 'qmp.log'), 'utf8');
  }

  /** The file that is the memory of this QEMU's guest. */
  memoryPath(instance: { instance: number } | null): string {
    return join(this.#memoryDirectory, `us-${this.status.name}-${instance?.instance}.ram`);
  }

  /** The file that this QEMU writes its device state to. */
  deviceStatePath(instance: { instance: number } | null): string {
    return this.memoryPath(instance).replace(/ram$/, 'state');
  }

  /** The files that hold staged epochs for the memory of this QEMU's guest. */
  epochPaths(instance: { instance: number } | null): string[] {
    const folder = join(this.#memoryDirectory, `epochs-${instance?.instance}`);
    return readdirSync(folder)
      .filter((name) => name.startsWith('epoch-'))
      .map((name) => join(folder, name));
  }

  /** Everything that this VM has on the machine: processes, network devices, cgroups, files. */
  get traces(): string[] {
    const pids = this.keeper.eventsSince(0).map(({ facts }) => facts.pid);
    const links = execFileSync('ip', ['-n', this.netns, '-o', 'link'], { encoding: 'utf8' });
    const cgroups = cgroupFolders().filter((path) => basename(path).startsWith(`${this.status.name}-`));
    return [
      ...pids.map((pid) => `/proc/${pid}`).filter((path) => existsSync(path)),
      ...links.split('\n').filter((line) => line.includes('us-tap')),
      ...cgroups,
      ...readdirSync(this.#memoryDirectory).map((name) => join(this.#memoryDirectory, name)),
      ...readdirSync(this.#directory, { withFileTypes: true })
        .filter((entry) => entry.isDirectory() || entry.isSocket())
        .map((entry) => join(this.#directory, entry.name)),
    ];
  }

  link(name: string): LinkStatus {
    const found = this.status.links.find((link) => link.name === name);
    if (found === undefined) throw new Error(`the VM has no link ${name}`);
    return found;
  }

  /** Signals the QEMU that acts; returns the time on `monotonicMs`. */
  signalPrimary(signal: NodeJS.Signals): number {
    process.kill(this.primaryPid, signal);
    return monotonicMs();
  }

  /** Everything waits at the next hit of a failpoint, or the next one for which `when` holds. */
  holdAt(failpoint: string, when = () => true): Hold {
    const reached = Promise.withResolvers<void>();
    const released = Promise.withResolvers<void>();
    const disarm = this.failpoints.arm(failpoint, () => {
      if (!when()) return;
      disarm();
      reached.resolve();
      return released.promise;
    });
    const release = () => {
      disarm();
      released.resolve();
    };
    // After a test that failed, nothing may wait for it any more.
    this.#owned.defer(release);
    return { reached: this.#within(reached.promise, `failpoint ${failpoint}`), release };
  }

  /**
   * The next epoch in which the guest sent something waits before its commit: the shadow does not hold it yet,
   * and nothing of its output may have left.
   */
  holdOutputCommit(): Hold {
    // While the VM stands still all that is held belongs to the epoch that is being cut.
    let isCut = false;
    const disarm = this.failpoints.arm('cut.before-resume', () => {
      if (this.link('nic0').heldItems === 0) return;
      isCut = true;
      disarm();
    });
    return this.holdAt('commit.before-acknowledge', () => isCut);
  }

  /** Runs `act` at the next hit of a failpoint, once; resolves when it has. */
  atNext(failpoint: string, act: () => void): Promise<void> {
    const done = Promise.withResolvers<void>();
    const disarm = this.failpoints.arm(failpoint, () => {
      disarm();
      try {
        act();
        done.resolve();
      } catch (thrown) {
        done.reject(thrown);
      }
    });
    return this.#within(done.promise, `failpoint ${failpoint}`);
  }

  /** The next event of this kind, from now on. */
  nextEvent(kind: string): Promise<VmEvent> {
    const { promise, resolve } = Promise.withResolvers<VmEvent>();
    const off = this.keeper.onEvent((event) => event.kind === kind && resolve(event));
    return this.#within(promise, `event ${kind}`).finally(off);
  }

  async untilProtected(): Promise<void> {
    if (this.status.phase !== 'protected') await this.nextEvent('protected');
  }

  /** Kinds of all events so far. */
  get eventKinds(): string[] {
    return this.keeper.eventsSince(0).map(({ kind }) => kind);
  }

  openConsole(): GuestConsole {
    return new GuestConsole(this.keeper);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned[Symbol.asyncDispose]();
  }

  #pidOf(instance: { pid: number | null } | null): number {
    if (instance === null || instance.pid === null) throw new Error(`there is none: ${this.status.phase}`);
    return instance.pid;
  }

  async #within<Value>(promise: Promise<Value>, what: string): Promise<Value> {
    const late = Promise.withResolvers<never>();
    const cancel = systemClock.after(DEADLINE_MS, () =>
      late.reject(new Error(`no ${what} in ${DEADLINE_MS} ms:\n${this.#lastLines()}`)),
    );
    // Who waits only later must not meet it as an unhandled rejection.
    const result = Promise.race([promise, late.promise]).finally(cancel);
    result.catch(() => {});
    return result;
  }

  #lastLines(): string {
    return this.#logLines.slice(-LOG_LINES_SHOWN).join('');
  }
}

/** Where cgroups of ours may be, for each mounted hierarchy. */
function cgroupFolders(): string[] {
  const roots = ['/sys/fs/cgroup', ...readdirSync('/sys/fs/cgroup').map((name) => `/sys/fs/cgroup/${name}`)];
  return roots
    .map((root) => join(root, 'understudy'))
    .filter((path) => existsSync(path))
    .flatMap((path) => readdirSync(path).map((name) => join(path, name)));
}

/** Looks again and again until it holds, for what no event tells. */
export async function until(holds: () => boolean): Promise<void> {
  const endMs = systemClock.nowMs() + DEADLINE_MS;
  while (!holds()) {
    if (systemClock.nowMs() > endMs) throw new Error(`does not hold after ${DEADLINE_MS} ms: ${holds}`);
    await systemClock.sleep(2);
  }
}

/** Where it begins: with the boot, or if there are clients, who wait for its end, from where another one has booted. */
async function beginning(
  { boots = false, clients = 1, cmdline, kernel, initrd, keeper }: TestVmOptions,
  machine: Pick<KeeperOptions, 'spec' | 'qemu' | 'accel'>,
): Promise<Partial<KeeperOptions>> {
  const isDemo = kernel === undefined && initrd === undefined;
  if (boots || clients === 0 || !isDemo || keeper?.savedIn !== undefined) return {};
  const { name } = machine.spec;
  const directory = await bootedState(machine, async (place) => {
    const savedIn = savedStatePaths(place, name);
    await using vm = await TestVm.start({
      clients: 0,
      keeper: { savedIn },
      ...(cmdline !== undefined && { cmdline }),
    });
    await (await loadIn(vm.netns, 0))[Symbol.asyncDispose]();
    await vm.keeper.stop({ graceful: true, termination: 'snapshot' });
  });
  return directory === undefined ? {} : { savedIn: savedStatePaths(directory, name), startFrom: 'snapshot' };
}

async function loadIn(netns: string, clients: number): Promise<RedisLoad> {
  const load = await RedisLoad.start({ netns, host: GUEST_ADDRESS, port: REDIS_PORT, clock: systemClock });
  try {
    await load.connect(clients);
    return load;
  } catch (thrown) {
    await load[Symbol.asyncDispose]();
    throw thrown;
  }
}

/** The serial console of a VM: what it says, and waiting for a piece of it. */
export class GuestConsole implements Disposable {
  readonly #session: ConsoleSession;
  readonly #text = new ConsoleText();

  constructor(keeper: Keeper) {
    this.#session = keeper.openConsole({
      onOutput: (bytes) => this.#text.add(Buffer.from(bytes).toString('latin1')),
    });
  }

  type(line: string): void {
    this.#session.write(Buffer.from(`${line}\n`));
  }

  /** The guest has booted as far as to its shell, which waits for a line. */
  async untilShell(): Promise<void> {
    // The echo of the line looks different.
    this.type('echo sh""ell');
    await this.take(/\nshell\r\n/);
  }

  /** Waits for a piece of text, and takes it and all before it out. */
  take(pattern: RegExp): Promise<RegExpExecArray> {
    return this.#text.take(pattern, { deadlineMs: DEADLINE_MS });
  }

  [Symbol.dispose](): void {
    this.#session.close();
  }
}

/** Run directory and guest memory of this process lie in directories of their own until the VM is disposed. */
function useDirectories(owned: AsyncDisposableStack, memoryDirectory: string | undefined): void {
  const before = { ...process.env };
  const folder = mkdtempSync(join(tmpdir(), 'us-vm-'));
  const memory = memoryDirectory ?? mkdtempSync(`/dev/shm/${marked('vm')}-`);
  // For a QEMU that runs as another user.
  for (const path of [folder, memory]) chmodSync(path, 0o755);
  owned.defer(() => {
    process.env = before;
    rmSync(folder, { recursive: true, force: true });
    if (memoryDirectory === undefined) rmSync(memory, { recursive: true, force: true });
  });
  process.env.UNDERSTUDY_RUN_DIR = join(folder, 'run');
  process.env.UNDERSTUDY_MEMORY_DIR = memory;
}

function makeNetns(owned: AsyncDisposableStack, name: string): string {
  execFileSync('ip', ['netns', 'add', name]);
  owned.defer(() => {
    execFileSync('ip', ['netns', 'del', name]);
  });
  execFileSync('ip', ['-n', name, 'link', 'set', 'lo', 'up']);
  return name;
}

async function specOf(options: TestVmOptions, { name, netns }: { name: string; netns: string }) {
  const guest = await ensureDemoGuest();
  const network = `us.ip=${GUEST_ADDRESS}/24 us.gw=10.77.0.1`;
  const uplink = `{kind: tap, device: us-tap, netns: ${netns}, address: 10.77.0.1/24}`;
  const lines = [
    `name: ${name}`,
    'memory: 128MiB',
    'boot:',
    `  kernel: ${options.kernel ?? guest.kernel}`,
    `  initrd: ${options.initrd ?? guest.initrd}`,
    `  cmdline: ${JSON.stringify(`${guest.cmdline} ${network} ${options.cmdline ?? ''}`)}`,
    options.nics ?? `nics: [{uplink: ${uplink}}]`,
    options.yaml ?? '',
  ];
  return parseVmSpec(lines.join('\n'), { source: `${name}.yaml` });
}
