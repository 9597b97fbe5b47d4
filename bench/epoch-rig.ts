import { join } from 'node:path';
import { assert } from '../src/base/assert.ts';
import { cacheDirectory } from '../src/base/cache-directory.ts';
import type { Clock } from '../src/base/clock.ts';
import { messageOf } from '../src/base/errors.ts';
import { Failpoints } from '../src/base/failpoint.ts';
import { silentLogger } from '../src/base/logger.ts';
import { GIB, MIB, PAGE_BYTES } from '../src/base/units.ts';
import { parseVmSpec } from '../src/config/vm-spec.ts';
import type { VmSpec } from '../src/config/vm-spec-schema.ts';
import { RunDirectory } from '../src/control/run-directory.ts';
import { orAborted } from '../src/demo/abortable-wait.ts';
import { type EpochId, FIRST_EPOCH, nextEpoch } from '../src/epoch/epoch-id.ts';
import type { EpochPolicy } from '../src/epoch/epoch-machine.ts';
import { GuestClock } from '../src/keeper/guest-clock.ts';
import { GuestLinks } from '../src/keeper/guest-links.ts';
import { Instance, type InstanceSetting } from '../src/keeper/instance.ts';
import { attachLinks } from '../src/keeper/promotion.ts';
import { ShadowSession } from '../src/keeper/shadow-session.ts';
import { prepareHost } from '../src/keeper/vm-host.ts';
import { CgroupTree } from '../src/linux/cgroup.ts';
import { Mapping } from '../src/linux/mapping.ts';
import type { DirtyLog } from '../src/memory/dirty-log.ts';
import { countPages, type PageRun } from '../src/memory/page-runs.ts';
import { EpochPipeline } from '../src/replication/epoch-pipeline.ts';
import { EpochStats } from '../src/replication/epoch-stats.ts';
import { BenchError } from './bench-error.ts';

const BOOT_DEADLINE_MS = 180_000;
const CONSOLE_CHARACTERS_MAX = 4096;
/** Below lie the BIOS and tables that firmware and kernel share; above it a hole is memory nobody has used yet. */
const FILL_FROM_PAGE = (16 * MIB) / PAGE_BYTES;
const FILL_PAGES = MIB / PAGE_BYTES;
/** Limit of the Web Crypto API. */
const RANDOM_BYTES_MAX = 65_536;
const READ_BYTES = 256 * MIB;
const READ_DEADLINE_MS = 60_000;

/** One cut, as measured where the product measures it. */
export interface Cut {
  /** From before input is held back until the guest runs again. */
  readonly pauseMs: number;
  /** Of that, finding and re-protecting the written pages. */
  readonly scanMs: number;
  readonly dirtyPages: number;
}

export interface RigOptions {
  readonly name: string;
  readonly memoryMiB: number;
  readonly guest: { kernel: string; initrd: string; cmdline: string; readyMarker: string };
  /** `PAGES:MS` of the guest's memory writer; without it the guest is idle. */
  readonly writer?: string;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

/**
 * A VM and its shadow in this process, made of the parts that a keeper is made of, so that epochs can be started,
 * ended, and watched one by one, and so that the same VM can be given to a peer in between.
 */
export class EpochRig implements AsyncDisposable {
  readonly spec: VmSpec;
  readonly accel: string;
  readonly primary: Instance;
  readonly directory: RunDirectory;
  readonly #options: RigOptions;
  readonly #setting: InstanceSetting;
  readonly #links: GuestLinks;
  readonly #guestClock: GuestClock;
  readonly #failpoints = new Failpoints();
  readonly #owned: AsyncDisposableStack;
  #shadow: ShadowSession | undefined;
  #pipeline: EpochPipeline | undefined;
  #nextEpoch: EpochId = FIRST_EPOCH;
  #instances = 1;

  private constructor(options: RigOptions, parts: RigParts) {
    this.#options = options;
    this.#setting = parts.setting;
    this.#links = parts.links;
    this.#owned = parts.owned;
    this.spec = parts.setting.spec;
    this.accel = parts.setting.accel;
    this.primary = parts.primary;
    this.directory = parts.directory;
    parts.onHeld.notify = () => this.#pipeline?.noteHeldOutput();
    const agent = parts.links.agent?.connect({ onOutput: (bytes) => this.#guestClock.receive(bytes) });
    const { clock } = options;
    this.#guestClock = new GuestClock({ clock, ...this.spec.clock, send: (bytes) => agent?.write(bytes) });
    this.#guestClock.start();
  }

  /** Boots the guest and resolves when it is up. @throws BenchError BENCH_GUEST_FAILED */
  static async start(options: RigOptions): Promise<EpochRig> {
    const spec = specOf(options);
    const { clock } = options;
    await using starting = new AsyncDisposableStack();
    const directory = starting.use(await RunDirectory.open(spec.name, { clock }));
    const cacheDir = cacheDirectory();
    const host = await prepareHost(spec, { cacheDir, directory: directory.path, clock, log: silentLogger });
    const cgroups = CgroupTree.detect();
    const setting: InstanceSetting = {
      ...host,
      spec,
      runDirectory: directory.path,
      memoryDirectory: directory.memoryPath,
      cgroups: cgroups.kind === 'usable' ? cgroups.tree : undefined,
      clock,
    };
    const onHeld = { notify: () => {} };
    const links = starting.use(
      await GuestLinks.open({
        spec,
        clock,
        onHeld: () => onHeld.notify(),
        onUplinkLost: () => {},
        onGarbled: () => {},
        unsafe: undefined,
      }),
    );
    const primary = starting.use(await Instance.start(setting, { number: 1, role: 'primary' }));
    record(directory, spec, [primary]);
    attachLinks(links.all, primary);
    await boot(primary, links, options);
    return new EpochRig(options, { setting, directory, links, primary, onHeld, owned: starting.move() });
  }

  get machine() {
    return this.primary.machine;
  }

  /** A second QEMU that waits for what its primary sends. */
  async startStandby(): Promise<Instance> {
    this.#instances += 1;
    const standby = await Instance.start(this.#setting, { number: this.#instances, role: 'standby' });
    record(this.directory, this.spec, [this.primary, standby]);
    return standby;
  }

  /** Gives the VM a shadow that holds a copy of its memory. */
  async protect(): Promise<void> {
    assert(this.#shadow === undefined, 'a rig has one shadow');
    const standby = await this.startStandby();
    const fill = {
      primary: this.primary,
      epochsInFlightMax: this.spec.shadow.epochsInFlightMax,
      epochsDirectory: join(this.#setting.memoryDirectory, `epochs-${standby.number}`),
      failpoints: this.#failpoints,
      signal: this.#options.signal,
    };
    this.#shadow = await ShadowSession.open(standby, fill);
    standby.limitCpu(this.spec.shadow.standbyCpuShare);
    await this.#shadow.fill(fill);
  }

  /** Ends the shadow. The VM runs on alone. */
  async unprotect(): Promise<void> {
    const shadow = this.#shadow;
    this.#shadow = undefined;
    await shadow?.[Symbol.asyncDispose]();
    for (const link of this.#links.all) link.passOutput();
  }

  /** Lets epochs be cut for so long. The first cut, which takes what was written since the last time, is left out. */
  async epochs(forMs: number, policy: Partial<EpochPolicy> = {}): Promise<Cut[]> {
    const { clock, signal } = this.#options;
    const shadow = this.#shadow;
    assert(shadow !== undefined, 'epochs need a shadow');
    const failed = new AbortController();
    const cuts: Cut[] = [];
    const seen = { scanMs: 0, dirtyPages: 0 };
    const fail = (cause: unknown) => failed.abort(epochsFailed(cause));
    const pipeline = new EpochPipeline({
      source: {
        machine: this.machine,
        memory: this.primary.memory,
        dirtyLog: timed(this.primary.dirtyLog, clock, seen),
        links: this.#links.all,
        participants: [],
        disks: [],
        deviceStatePath: this.primary.paths.deviceState,
        mayContinue: () => true,
        hasPanicked: () => false,
      },
      store: shadow.image,
      policy: { ...this.spec.shadow, ...policy },
      firstEpoch: this.#nextEpoch,
      clock,
      failpoints: this.#failpoints,
      onCommit: () => {},
      onPrimaryLost: fail,
      onShadowLost: fail,
      stats: new EpochStats(),
      onPause: (pauseMs) => {
        this.#guestClock.notePause(pauseMs);
        cuts.push({ pauseMs, ...seen });
        seen.scanMs = 0;
        seen.dirtyPages = 0;
      },
    });
    this.#pipeline = pipeline;
    pipeline.start();
    try {
      await clock.sleep(forMs, AbortSignal.any([signal, failed.signal])).catch(() => {});
    } finally {
      await pipeline.halt();
      this.#pipeline = undefined;
      this.#nextEpoch = nextEpoch(pipeline.openEpoch);
      // What is still being applied would disturb what is measured next.
      if (!failed.signal.aborted) await shadow.settle();
    }
    signal.throwIfAborted();
    failed.signal.throwIfAborted();
    return cuts.slice(1);
  }

  /**
   * Makes all memory resident, as if the guest had used it all: fills what it has not used yet with bytes that do not
   * compress, and lets QEMU read all of it, which brings it into QEMU's page tables. The shadow need not have these
   * bytes: the guest's kernel clears a page before it hands it out. `unique`: no two pages get the same ones.
   */
  async makeResident({ unique = false } = {}): Promise<void> {
    const { memory } = this.primary;
    await this.machine.stop();
    using noise = Mapping.anonymous(FILL_PAGES * PAGE_BYTES);
    const refill = () => {
      for (let at = 0; at < noise.bytes.length; at += RANDOM_BYTES_MAX)
        crypto.getRandomValues(noise.bytes.subarray(at, at + RANDOM_BYTES_MAX));
    };
    refill();
    for (const run of holes(memory.dataRuns(), memory.pageCount)) {
      const end = run.firstPage + run.pageCount;
      for (let firstPage = run.firstPage; firstPage < end; firstPage += FILL_PAGES) {
        if (unique) refill();
        memory.writeRuns([{ firstPage, pageCount: Math.min(FILL_PAGES, end - firstPage) }], noise);
      }
    }
    for (const { start, size } of guestPhysicalRanges(this.spec.memoryBytes)) {
      for (let val = start; val < start + size; val += READ_BYTES) {
        const piece = { val, size: Math.min(READ_BYTES, start + size - val), filename: '/dev/null' };
        await this.machine.qmp.execute('pmemsave', piece, { deadlineMs: READ_DEADLINE_MS });
      }
    }
    await this.machine.cont();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#guestClock.stop();
    await this.#shadow?.[Symbol.asyncDispose]();
    await this.#owned[Symbol.asyncDispose]();
  }
}

interface RigParts {
  readonly setting: InstanceSetting;
  readonly directory: RunDirectory;
  readonly links: GuestLinks;
  readonly primary: Instance;
  readonly onHeld: { notify: () => void };
  readonly owned: AsyncDisposableStack;
}

function specOf({ name, memoryMiB, guest, writer }: RigOptions): VmSpec {
  const { kernel, initrd, cmdline } = guest;
  const words = [cmdline, 'us.ip=10.77.0.2/24', ...(writer === undefined ? [] : [`us.writer=${writer}`])];
  const spec = {
    name,
    memory: `${memoryMiB}MiB`,
    boot: { kernel, initrd, cmdline: words.join(' ') },
    // A card like any VM has, and nobody at the other end: an idle guest stays idle.
    nics: [{ uplink: { kind: 'none' } }],
  };
  // JSON is YAML.
  return parseVmSpec(JSON.stringify(spec), { source: `${name}.yaml` });
}

/** For whoever has to clean up should this process be killed: `understudy stop NAME`. */
function record(directory: RunDirectory, spec: VmSpec, instances: readonly Instance[]): void {
  directory.record({
    spec,
    processes: instances.map((instance) => instance.pid),
    cgroups: instances.flatMap((instance) => instance.cgroup?.directory ?? []),
  });
}

async function boot(primary: Instance, links: GuestLinks, options: RigOptions): Promise<void> {
  const { name, guest, clock, signal } = options;
  const { promise: up, resolve, reject } = Promise.withResolvers<void>();
  // It is not waited for when `cont` fails or the person interrupts.
  up.catch(() => {});
  let said = '';
  links.console?.connect({
    onOutput: (bytes) => {
      said = `${said}${Buffer.from(bytes).toString('latin1')}`.slice(-CONSOLE_CHARACTERS_MAX);
      if (said.includes(guest.readyMarker)) resolve();
    },
  });
  const fail = (how: string) =>
    reject(
      new BenchError('BENCH_GUEST_FAILED', `the guest of ${name} ${how}: ${said.slice(-400)}`, {
        hint: 'See whether it boots at all: understudy doctor --probe.',
      }),
    );
  const cancel = clock.after(BOOT_DEADLINE_MS, () => fail(`was not up after ${BOOT_DEADLINE_MS / 1000} s`));
  void primary.machine.process.exited.then(() => fail('ended while it booted'));
  try {
    await primary.machine.cont();
    await orAborted(up, signal);
  } finally {
    cancel();
  }
}

/** The same log; what its collections take and find is added to `seen`: one cut may collect more than once. */
function timed(log: DirtyLog, clock: Clock, seen: { scanMs: number; dirtyPages: number }): DirtyLog {
  return {
    method: log.method,
    atomic: log.atomic,
    collect: () => {
      const startMs = clock.nowMs();
      const runs = log.collect();
      seen.scanMs += clock.nowMs() - startMs;
      seen.dirtyPages += countPages(runs);
      return runs;
    },
    peek: (limitPages) => log.peek(limitPages),
    mark: (runs) => log.mark(runs),
    adopt: (copy) => log.adopt(copy),
    [Symbol.dispose]: () => {},
  };
}

function holes(data: readonly PageRun[], pageCount: number): PageRun[] {
  const found: PageRun[] = [];
  let at = FILL_FROM_PAGE;
  for (const run of [...data, { firstPage: pageCount, pageCount: 0 }]) {
    if (run.firstPage > at) found.push({ firstPage: at, pageCount: run.firstPage - at });
    at = Math.max(at, run.firstPage + run.pageCount);
  }
  return found;
}

/** Where a q35 machine shows its memory to the guest (QEMU pc_q35_init): what does not fit below PCI lies above 4 GiB. */
function guestPhysicalRanges(memoryBytes: number): { start: number; size: number }[] {
  if (memoryBytes < 0xb000_0000) return [{ start: 0, size: memoryBytes }];
  const lowBytes = 2 * GIB;
  return [
    { start: 0, size: lowBytes },
    { start: 4 * GIB, size: memoryBytes - lowBytes },
  ];
}

function epochsFailed(cause: unknown): BenchError {
  return new BenchError('BENCH_GUEST_FAILED', `an epoch could not be cut: ${messageOf(cause)}`, {
    hint: 'The machine may be out of memory, or QEMU was killed. Try again.',
    cause,
  });
}
