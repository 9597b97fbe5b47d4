import { chmodSync, copyFileSync, lchownSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { Cgroup, CgroupTree } from '../linux/cgroup.ts';
import { LinuxError } from '../linux/linux-error.ts';
import type { DirtyLog } from '../memory/dirty-log.ts';
import { openDirtyLog } from '../memory/dirty-log-choice.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { PreloadChannel, type PreloadHello } from '../memory/preload-channel.ts';
import { frameFraming } from '../net/frame-codec.ts';
import { byteFraming, type Framing } from '../net/framing.ts';
import { QemuPort } from '../net/qemu-port.ts';
import { BoundedLog, jsonLossNote } from '../qemu/bounded-log.ts';
import { type InstancePaths, instancePaths } from '../qemu/instance-paths.ts';
import { type Accelerator, buildArguments } from '../qemu/launch-arguments.ts';
import { Machine } from '../qemu/machine.ts';
import { checkMachine } from '../qemu/protectability.ts';
import type { QemuBinary } from '../qemu/qemu-binary.ts';
import { identityOf } from '../qemu/qemu-process.ts';
import { Hindrances } from './hindrances.ts';
import { ensureFilesWithin } from './refusals.ts';
import type { ServedDisks } from './served-disks.ts';

/** QEMU answers on QMP when it has mapped its memory already. */
const HELLO_DEADLINE_MS = 3000;
const CONNECT_DEADLINE_MS = 30_000;

type Role = 'primary' | 'standby';

interface InstanceOptions {
  readonly number: number;
  readonly role: Role;
  readonly signal?: AbortSignal | undefined;
  /** Its memory is there already, from an instance of the same number whose keeper was killed. */
  readonly keptMemory?: boolean;
}

/** What all QEMU processes of one VM have in common. */
export interface InstanceSetting {
  readonly spec: VmSpec;
  readonly accel: Accelerator;
  readonly qemu: QemuBinary;
  readonly preloadLibrary: string;
  readonly runDirectory: string;
  readonly memoryDirectory: string;
  readonly cgroups: CgroupTree | undefined;
  /** Of one that acts; undefined: as much as there is. */
  readonly cpuShareMax?: number | undefined;
  /** See {@link ensureFilesWithin}. */
  readonly directories?: readonly string[] | undefined;
  /** What a guest is told that knows generations of itself. */
  readonly generationId?: string | undefined;
  readonly clock: Clock;
  /** Those that commit with epochs; without them QEMU opens all disks itself. */
  readonly disks?: ServedDisks | undefined;
  /** For tests: see UnsafeKeeper. */
  readonly blamesQemu?: boolean;
}

/**
 * One QEMU process of a VM with all that belongs to it: memory, sockets, dirty log, cgroup. It becomes a
 * primary or stands by; at its promotion nothing of it changes but who acts.
 */
export class Instance implements AsyncDisposable {
  readonly number: number;
  readonly machine: Machine;
  readonly memory: GuestMemory;
  readonly dirtyLog: DirtyLog;
  readonly paths: InstancePaths;
  /** By link name. */
  readonly ports: ReadonlyMap<string, QemuPort>;
  readonly cgroup: Cgroup | undefined;
  readonly #cpuShareMax: number | null;
  readonly hindrances: Hindrances;
  /** Where QEMU has mapped its memory. */
  readonly hello: PreloadHello;
  readonly #owned: AsyncDisposableStack;

  private constructor(parts: Parts) {
    this.number = parts.number;
    this.machine = parts.machine;
    this.memory = parts.memory;
    this.dirtyLog = parts.dirtyLog;
    this.paths = parts.paths;
    this.ports = parts.ports;
    this.cgroup = parts.cgroup;
    this.#cpuShareMax = parts.cpuShareMax;
    this.hindrances = parts.hindrances;
    this.hello = parts.hello;
    this.#owned = parts.owned;
    this.limitCpu(null);
  }

  /**
   * Starts a QEMU. Its guest does not run: a primary waits for `cont`, a standby for device state.
   * @throws QemuError, MemoryError (MEMORY_NO_ROOM, MEMORY_NO_HANDSHAKE, …), NetError, KeeperError KEEPER_FILES_REFUSED;
   * the signal's reason
   */
  static async start(
    setting: InstanceSetting,
    { number, role, signal, keptMemory = false }: InstanceOptions,
  ): Promise<Instance> {
    const { spec, clock, cpuShareMax = null } = setting;
    ensureFilesWithin(spec, setting.directories);
    await using starting = new AsyncDisposableStack();
    const paths = instancePaths({ ...setting, vm: spec.name, instance: number, nicCount: spec.nics.length });
    const owner = spec.qemu.user === undefined ? undefined : identityOf(spec.qemu.user);
    makeDirectories(paths, owner);
    starting.defer(() => rmSync(paths.directory, { recursive: true, force: true }));
    const memory = starting.use(
      keptMemory ? GuestMemory.open(paths.memory) : GuestMemory.create(paths.memory, spec.memoryBytes),
    );
    // Memory that was kept is all there is of a VM until this start has succeeded.
    let owned = !keptMemory;
    starting.defer(() => {
      if (owned) memory.remove();
      rmSync(paths.deviceState, { force: true });
    });
    const preloadLibrary =
      owner === undefined ? setting.preloadLibrary : handOver(setting.preloadLibrary, { paths, owner });
    const ports = new Map<string, QemuPort>();
    for (const { name, path, framing } of portPlan(spec, paths)) {
      ports.set(name, starting.use(await QemuPort.listen(path, { framing, owner })));
    }
    const served = setting.disks?.names ?? [];
    const socketPath = paths.disks;
    if (served.length > 0) starting.use(await setting.disks?.serve({ instance: number, socketPath, owner }));
    const channel = starting.use(new PreloadChannel());
    const hindrances = new Hindrances(clock);
    const context = { channel, paths, role, hindrances, starting, signal };
    const machine = await launch({ ...setting, preloadLibrary }, context);
    const cgroup = makeCgroup(setting, number);
    // One that stays behind is removed before the next start.
    starting.defer(async () => void (await cgroup?.remove({ clock }).catch(ignoreRefusal)));
    // Moves here, because a machine's processes must be gone before its cgroup can be removed.
    starting.use(machine);
    const orAborted = untilAborted(signal);
    await orAborted(cgroup?.addProcess(machine.process.pid).catch(ignoreRefusal));
    await orAborted(channel.awaitHello({ deadlineMs: HELLO_DEADLINE_MS, clock }));
    const { hello } = channel;
    assert(hello !== undefined, 'it was waited for');
    if (role === 'standby' || spec.shadow.enabled) await orAborted(checkMachine(machine, spec, served));
    const { log: dirtyLog } = openDirtyLog({ method: spec.shadow.dirtyLog, memory, channel });
    starting.use(dirtyLog);
    for (const port of ports.values())
      await orAborted(port.awaitConnection({ deadlineMs: CONNECT_DEADLINE_MS, clock }));
    if (role === 'standby') await orAborted(machine.beginIncoming(paths.incoming));
    owned = true;
    const parts = { number, machine, memory, dirtyLog, paths, ports, cgroup, cpuShareMax, hindrances, hello };
    return new Instance({ ...parts, owned: starting.move() });
  }

  /** What lies of it in the directory for memory. */
  get memoryNames(): readonly string[] {
    return [this.paths.memory, this.paths.deviceState].map((path) => basename(path));
  }

  get pid(): number {
    return this.machine.process.pid;
  }

  /** From now on it gets no more than this fraction of a CPU, if the kernel lets us say so; null: as much as its VM may have. */
  limitCpu(fraction: number | null): void {
    this.#setCpuShare(
      Math.min(fraction ?? Number.POSITIVE_INFINITY, this.#cpuShareMax ?? Number.POSITIVE_INFINITY),
    );
  }

  #setCpuShare(fraction: number): void {
    try {
      this.cgroup?.setCpuShare(Number.isFinite(fraction) ? fraction : null);
    } catch (thrown) {
      ignoreRefusal(thrown);
    }
  }

  /** Kills the process, which also works when it is stopped, and returns when the kernel says it is gone. */
  async kill(): Promise<void> {
    this.machine.process.signal('SIGKILL');
    // A limited cgroup would make dying slow as well.
    this.#setCpuShare(Number.POSITIVE_INFINITY);
    await this.machine.process.kill();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    await this.#owned[Symbol.asyncDispose]();
  }
}

type Parts = Pick<
  Instance,
  'number' | 'machine' | 'memory' | 'dirtyLog' | 'paths' | 'ports' | 'cgroup' | 'hindrances' | 'hello'
> & {
  readonly cpuShareMax: number | null;
  readonly owned: AsyncDisposableStack;
};

function makeCgroup({ cgroups, spec }: InstanceSetting, number: number): Cgroup | undefined {
  try {
    return cgroups?.create(`${spec.name}-${number}`);
  } catch (thrown) {
    return ignoreRefusal(thrown);
  }
}

/** Of the kernel, about a cgroup: no share of a CPU is worth a start, kill or promotion that does not happen. */
function ignoreRefusal(thrown: unknown): undefined {
  if (!(thrown instanceof LinuxError)) throw thrown;
}

interface LaunchContext {
  readonly channel: PreloadChannel;
  readonly paths: InstancePaths;
  readonly role: Role;
  readonly hindrances: Hindrances;
  readonly starting: AsyncDisposableStack;
  readonly signal: AbortSignal | undefined;
}

function launch(
  setting: InstanceSetting,
  { channel, paths, role, hindrances, starting, signal }: LaunchContext,
): Promise<Machine> {
  const { spec, clock } = setting;
  const qmpLog = starting.use(new BoundedLog(join(paths.directory, 'qmp.log'), { lossNote: jsonLossNote }));
  return Machine.start({
    launch: {
      binary: setting.qemu.path,
      args: buildArguments(spec, { ...setting, role, paths, served: setting.disks?.names }),
      environment: {
        ...channel.environment(paths.memory, setting.preloadLibrary),
        UNDERSTUDY_KEEPER_PID: String(process.pid),
        UNDERSTUDY_KEEPER_END: 'stop',
      },
      extraFds: [channel.childFd],
      user: spec.qemu.user,
      logPath: paths.log,
    },
    qmpPath: paths.qmp,
    clock,
    commandDeadlineMs: spec.shadow.hangTimeoutMs,
    ...(setting.blamesQemu !== true && { hindranceOf: (pid) => hindrances.watchOf(pid) }),
    qmpLog: (line) => qmpLog.append(Buffer.from(line)),
    ...(signal !== undefined && { signal }),
  });
}

interface Owner {
  readonly uid: number;
  readonly gid: number;
}

/**
 * What we make stays in a directory of ours: whoever owns a directory can put links into the places of its files, and
 * we, as root, would follow them. QEMU's user gets one below it.
 */
function makeDirectories(paths: InstancePaths, owner: Owner | undefined): void {
  mkdirSync(paths.directory, { mode: 0o700 });
  mkdirSync(paths.qemuDirectory, { mode: 0o700 });
  if (owner === undefined) return;
  lchownSync(paths.qemuDirectory, owner.uid, owner.gid);
  chmodSync(paths.directory, 0o711);
}

/**
 * Gives a QEMU that runs as another user what it opens by itself; the rest it inherits. The library is copied,
 * because our cache is usually closed to others. Returns where the copy is.
 */
function handOver(preloadLibrary: string, { paths, owner }: { paths: InstancePaths; owner: Owner }): string {
  const copy = join(paths.directory, 'preload.so');
  copyFileSync(preloadLibrary, copy);
  chmodSync(copy, 0o755);
  // QEMU may not make files in the directory that this one lies in.
  writeFileSync(paths.deviceState, '', { mode: 0o600 });
  for (const path of [paths.memory, paths.deviceState]) lchownSync(path, owner.uid, owner.gid);
  return copy;
}

/** Waits that the signal ends, with its reason; what was waited for ends with the process that it came from. */
function untilAborted(signal: AbortSignal | undefined) {
  return async <Value>(wait: Promise<Value> | undefined): Promise<Value | undefined> => {
    if (signal === undefined) return wait;
    const aborted = Promise.withResolvers<never>();
    const abort = () => aborted.reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    if (signal.aborted) abort();
    try {
      return await Promise.race([aborted.promise, wait]);
    } finally {
      signal.removeEventListener('abort', abort);
    }
  };
}

function* portPlan(
  spec: VmSpec,
  paths: InstancePaths,
): Generator<{ name: string; path: string; framing: Framing }> {
  for (const [index, path] of paths.nics.entries())
    yield { name: `nic${index}`, path, framing: frameFraming };
  if (spec.console) yield { name: 'console', path: paths.console, framing: byteFraming };
  if (spec.agent) yield { name: 'agent', path: paths.agent, framing: byteFraming };
}
