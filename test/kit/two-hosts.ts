import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { stringify } from 'yaml';
import { ApiClient } from '../../src/api/api-client.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import type { KeeperRecord } from '../../src/control/keeper-record.ts';
import { processesMapping } from '../../src/control/process-identity.ts';
import type { VmEvent } from '../../src/control/vm-event.ts';
import type { VmStatus } from '../../src/control/vm-status.ts';
import { RedisLoad } from '../../src/demo/redis-load.ts';
import type { LeaseRecord } from '../../src/lease/lease-record.ts';
import { readRecord } from '../../src/lease/lease-store.ts';
import { nameOfWorker } from './booted-state.ts';
import { endChild } from './child-end.ts';
import { makeDiskRoom } from './disk-room.ts';
import { HOST_NAMES, HOSTS, type HostName, HostNetwork, otherThan, type Place } from './host-network.ts';
import { processesOn } from './host-usage.ts';
import type { OddClock } from './odd-clock.ts';
import { RemoteConsole } from './remote-console.ts';
import { marked } from './run-mark.ts';
import { SiteEtcd } from './site-etcd.ts';
import type { SmallTmpfs } from './small-tmpfs.ts';
import {
  type DiskFormat,
  GUEST,
  imageNameOf,
  type TwoHostFilesOptions,
  writeSites,
  writeSpec,
} from './two-host-files.ts';

const run = promisify(execFile);
const CLI = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const DAEMON = fileURLToPath(new URL('../../src/host/main.ts', import.meta.url));
const SITE = fileURLToPath(new URL('../../src/keeper/site-main.ts', import.meta.url));
const KEEPER = fileURLToPath(new URL('../../src/keeper/main.ts', import.meta.url));
/** Of every wait; shorter than that of a test, so that what failed is still tidied up. */
const DEADLINE_MS = 90_000;
const POLL_MS = 20;

export { GUEST, type HostName, otherThan };

export interface TwoHostsOptions extends TwoHostFilesOptions {
  /** Runs on this host in every process of understudy before anything else; see `killAt` in kept-vm.ts. */
  readonly plants?: Partial<Record<HostName, string>> | ((hosts: TwoHosts) => Record<HostName, string>);
  /** Where one of them has its own idea of time. */
  readonly clocks?: (hosts: TwoHosts) => Partial<Record<HostName, OddClock>>;
  /** So much room for disks on each host. */
  readonly diskRoomBytes?: number;
  /** Prepares the folder of a host's disks; undone when nothing of the hosts runs any more. */
  readonly prepareDisks?: (host: HostName, folder: string) => Promise<AsyncDisposable>;
  /** A sector of the disk that cannot be written on this host. */
  readonly badSectors?: Partial<Record<HostName, number>>;
}

let made = 0;

/**
 * Two hosts on this machine, each a network namespace with directories of its own, between them a link for epochs, and a
 * network that clients and etcd are on. Real processes, TLS, TAPs and bridges; kernel and memory are shared.
 */
export class TwoHosts implements AsyncDisposable {
  readonly vm: string;
  readonly folder: string;
  readonly memoryFolder: string;
  readonly #network: HostNetwork;
  readonly #etcd: SiteEtcd;
  readonly #options: TwoHostsOptions;
  readonly #owned = new AsyncDisposableStack();
  readonly #sites = new Map<HostName, ChildProcess>();
  readonly #clocks: Partial<Record<HostName, OddClock>>;
  readonly #daemons = new Map<HostName, ChildProcess>();
  readonly #diskRooms = new Map<HostName, SmallTmpfs>();
  #load: RedisLoad | undefined;
  #runId = '';

  private constructor(options: TwoHostsOptions) {
    made += 1;
    this.#options = options;
    this.#network = new HostNetwork(`${marked('two')}-${process.pid}-${made}`);
    this.vm = `${nameOfWorker()}-${made}`;
    this.folder = mkdtempSync(join(tmpdir(), 'us-two-'));
    this.memoryFolder = mkdtempSync(`/dev/shm/${marked('two')}-`);
    this.#etcd = new SiteEtcd({
      ...{ folder: this.folder, network: this.#network },
      eventually: (what, look) => this.eventually(what, look),
    });
    this.#clocks = options.clocks?.(this) ?? {};
    this.#owned.defer(() => {
      for (const path of [this.folder, this.memoryFolder]) rmSync(path, { recursive: true, force: true });
    });
    this.#owned.use(this.#network);
  }

  /** Networks, etcd, certificates, and on each host the process that takes shadows in. */
  static async open(options: TwoHostsOptions = {}): Promise<TwoHosts> {
    const hosts = new TwoHosts(options);
    try {
      await hosts.#network.lay();
      for (const name of HOST_NAMES) await hosts.#prepareDisks(name);
      hosts.#owned.defer(() => hosts.#endAll());
      await hosts.#writeFiles();
      await hosts.startEtcd();
      for (const name of HOST_NAMES) await hosts.startSite(name);
      return hosts;
    } catch (thrown) {
      await hosts[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  /** The VM runs on host a, its shadow is in sync on host b, and clients are connected. */
  static async withVm(options: TwoHostsOptions & { clients?: number } = {}): Promise<TwoHosts> {
    const hosts = await TwoHosts.open(options);
    try {
      await hosts.start('a');
      await hosts.connect(options.clients ?? 3);
      await hosts.until('a', 'protected');
      return hosts;
    } catch (thrown) {
      await hosts[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  get load(): RedisLoad {
    if (this.#load === undefined) throw new Error('clients come with `connect`');
    return this.#load;
  }

  async start(host: HostName): Promise<void> {
    await this.cli(host, 'run', join(this.folder, 'vm.yaml'), '--wait', 'started');
  }

  /** As a host does that keeps the states of its VMs, which `understudy run` does not. @throws Error with what it said */
  async startKept(host: HostName): Promise<void> {
    const words = ['--source', join(this.folder, 'vm.yaml'), '--state', this.stateOf(host)];
    const child = spawn('ip', this.#on(host, [process.execPath, KEEPER, ...words]), {
      env: this.environment(host),
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    child.stdin.end(readFileSync(join(this.folder, 'vm.yaml')));
    const [line] = await once(createInterface({ input: child.stdout }), 'line');
    if (!JSON.parse(String(line)).ok) throw new Error(String(line));
    child.stdout.destroy();
    child.unref();
  }

  stateOf(host: HostName): string {
    return join(this.folder, host, 'state');
  }

  async connect(clients: number): Promise<void> {
    const netns = this.netns('lan');
    const load = this.#owned.use(await RedisLoad.start({ netns, ...GUEST, clock }));
    await load.connect(clients);
    this.#load = load;
    this.#runId = await this.#readRunId();
  }

  /** Neither the guest nor Redis in it has begun anew. */
  async isSameGuest(): Promise<boolean> {
    return (await this.#readRunId()) === this.#runId;
  }

  /** A command of understudy, as somebody on this host gives it. @throws Error with what it said */
  async cli(host: HostName, ...words: string[]): Promise<string> {
    const { stdout } = await run('ip', this.#on(host, [process.execPath, CLI, ...words]), {
      env: this.environment(host),
      timeout: DEADLINE_MS,
    });
    return stdout;
  }

  /** The exit code of a command that somebody ends with Ctrl-C once it has said what it waits for. */
  async interrupted(host: HostName, ...words: string[]): Promise<number | null> {
    const child = spawn('ip', this.#on(host, [process.execPath, CLI, ...words]), {
      env: this.environment(host),
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    const exited = once(child, 'exit');
    child.stderr.once('data', () => child.kill('SIGINT')).resume();
    return (await exited)[0];
  }

  async status(host: HostName): Promise<VmStatus> {
    return JSON.parse(await this.cli(host, 'status', this.vm, '--json'));
  }

  async events(host: HostName): Promise<VmEvent[]> {
    const path = join(this.runDirectory(host), this.vm, 'events.jsonl');
    return readFileSync(path, 'utf8')
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line));
  }

  /** Waits for an event of this kind on a host, after number `after`. */
  async until(host: HostName, kind: string, { after = 0 }: { after?: number } = {}): Promise<VmEvent> {
    return await this.eventually(`${kind} on ${host}`, async () =>
      (await this.events(host)).find((event) => event.kind === kind && event.seq > after),
    );
  }

  async eventually<Value>(
    what: string,
    look: () => Promise<Value | undefined> | Value | undefined,
  ): Promise<Value> {
    const endMs = clock.nowMs() + DEADLINE_MS;
    for (;;) {
      try {
        const found = await look();
        if (found !== undefined && found !== false) return found;
      } catch (thrown) {
        if ((thrown as { code?: unknown }).code !== 'ENOENT') throw thrown;
      }
      if (clock.nowMs() > endMs) throw new Error(`waited in vain for ${what}\n${this.#logs()}`);
      await clock.sleep(POLL_MS);
    }
  }

  /** What is on record in etcd about who acts. */
  async record(): Promise<LeaseRecord | undefined> {
    const value = await this.#etcd.read(`understudy/lease/${this.vm}/record`);
    return value === undefined ? undefined : readRecord(this.vm, value);
  }

  keeperPid(host: HostName): number {
    return this.#keeperRecord(host).keeper.pid;
  }

  qemuPids(host: HostName): number[] {
    return processesMapping(this.memoryOf(host))
      .map(({ pid }) => pid)
      .filter((pid) => readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('qemu'));
  }

  /** What `diskRoomBytes` asked for. */
  diskRoom(host: HostName): SmallTmpfs {
    const room = this.#diskRooms.get(host);
    if (room === undefined) throw new Error('there is as much room for disks as there is');
    return room;
  }

  /** Undefined while it is not running. */
  sitePid(host: HostName): number | undefined {
    return this.#sites.get(host)?.pid;
  }

  /** As a host ends whose plug is pulled, as far as this VM goes: keeper and QEMU at once. */
  killHost(host: HostName): void {
    const pids = [this.keeperPid(host), ...this.qemuPids(host)];
    for (const pid of pids) process.kill(pid, 'SIGKILL');
  }

  /** What this host had of VMs is gone, as after a reboot. */
  loseMemory(host: HostName): void {
    for (const entry of readdirSync(this.memoryOf(host)))
      rmSync(join(this.memoryOf(host), entry), { recursive: true, force: true });
  }

  // What can happen to the network and to etcd is explained there.
  readonly cutPeers: HostNetwork['cutPeers'] = (from, paths) => this.#network.cutPeers(from, paths);
  readonly resetPeers = (): Promise<void> => this.#network.resetPeers();
  readonly cutLan = (host: HostName): Promise<void> => this.#network.cutLan(host);
  readonly silence = (host: HostName): Promise<void> => this.#network.silence(host);
  readonly mend = (): Promise<void> => this.#network.mend();
  readonly startEtcd = (): Promise<void> => this.#etcd.start();
  readonly restartEtcd = (): Promise<void> => this.#etcd.restart();
  readonly signalEtcd = (signal: NodeJS.Signals): void => this.#etcd.signal(signal);

  async startSite(host: HostName): Promise<void> {
    const site = [process.execPath, SITE];
    const child = spawn('ip', this.#on(host, this.#clocks[host]?.elsewhen(site) ?? site), {
      env: this.environment(host),
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    this.#sites.set(host, child);
    const [line] = await once(createInterface({ input: child.stdout }), 'line');
    if (!JSON.parse(String(line)).ok) throw new Error(String(line));
    child.stdout.destroy();
  }

  /** No shadow finds a place on this host until `startSite`. */
  async endSite(host: HostName): Promise<void> {
    await endChild(this.#sites.get(host));
    this.#sites.delete(host);
  }

  /** The daemon that owns the VMs which are declared on this host. */
  async startDaemon(host: HostName): Promise<ApiClient> {
    const config = join(this.folder, `host-${host}.yaml`);
    writeFileSync(config, stringify({ reconcile: { intervalMs: 500 } }));
    const log = openSync(join(this.folder, `host-${host}.log`), 'a');
    const child = spawn('ip', this.#on(host, [process.execPath, DAEMON, '--config', config]), {
      env: this.environment(host),
      stdio: ['ignore', 'ignore', log],
    });
    closeSync(log);
    this.#daemons.set(host, child);
    const client = new ApiClient({ socketPath: join(this.runDirectory(host), 'host.sock'), clock });
    await this.eventually(`the daemon of ${host}`, async () => {
      if (child.exitCode !== null) throw new Error(this.daemonLog(host));
      return await client.call('getHealth', {}).then(
        () => true,
        () => undefined,
      );
    });
    return client;
  }

  async killDaemon(host: HostName): Promise<void> {
    await endChild(this.#daemons.get(host));
    this.#daemons.delete(host);
  }

  daemonLog(host: HostName): string {
    return readFileSync(join(this.folder, `host-${host}.log`), 'utf8');
  }

  /** The specification of the VM, as text. */
  get spec(): string {
    return readFileSync(join(this.folder, 'vm.yaml'), 'utf8');
  }

  /** At which a host is reached by the other one. */
  addressesOf(host: HostName): readonly string[] {
    return HOSTS[host].peers;
  }

  /** The image of the VM's disk on this host. All hosts call it by the same name. */
  imagePath(host: HostName, format: DiskFormat = 'raw'): string {
    return join(this.folder, host, 'disks', imageNameOf(format));
  }

  /** Processes of QEMU on this host: VMs, standbys, and what serves images that are not raw. */
  qemusOn(host: HostName): readonly unknown[] {
    return processesOn(this.runDirectory(host)).filter(({ kind }) => kind === 'qemu');
  }

  /** Joins the console of the VM on this host. */
  console(host: HostName): RemoteConsole {
    const words = this.#on(host, [process.execPath, CLI, 'console', this.vm]);
    return this.#owned.use(new RemoteConsole(spawn('ip', words, { env: this.environment(host) })));
  }

  netns(place: Place): string {
    return this.#network.netns(place);
  }

  runDirectory(host: HostName): string {
    return join(this.folder, host, 'run');
  }

  memoryOf(host: HostName): string {
    return join(this.memoryFolder, host);
  }

  environment(host: HostName): NodeJS.ProcessEnv {
    const { plants = {} } = this.#options;
    const plant = (typeof plants === 'function' ? plants(this) : plants)[host];
    const plantUrl = `data:text/javascript,${encodeURIComponent(plant ?? '')}`;
    return {
      ...process.env,
      UNDERSTUDY_RUN_DIR: this.runDirectory(host),
      UNDERSTUDY_MEMORY_DIR: this.memoryOf(host),
      UNDERSTUDY_STATE_DIR: this.stateOf(host),
      UNDERSTUDY_SITE: this.sitePath(host),
      ...this.#clocks[host]?.environment,
      ...(plant !== undefined && { NODE_OPTIONS: `--import ${JSON.stringify(plantUrl)}` }),
    };
  }

  sitePath(host: HostName): string {
    return join(this.folder, `site-${host}.yaml`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned.disposeAsync();
  }

  async #prepareDisks(host: HostName): Promise<void> {
    const folder = join(this.folder, host, 'disks');
    mkdirSync(join(folder, '..'), { recursive: true });
    const room = await makeDiskRoom(folder, {
      ...{ roomBytes: this.#options.diskRoomBytes, badSector: this.#options.badSectors?.[host] },
      image: { path: this.imagePath(host), sizeBytes: this.#options.diskBytes ?? 0 },
      owned: this.#owned,
    });
    if (room !== undefined) this.#diskRooms.set(host, room);
    const prepared = await this.#options.prepareDisks?.(host, folder);
    if (prepared !== undefined) this.#owned.use(prepared);
  }

  async #writeFiles(): Promise<void> {
    for (const name of HOST_NAMES) {
      mkdirSync(this.runDirectory(name), { recursive: true, mode: 0o700 });
      mkdirSync(this.memoryOf(name), { mode: 0o700 });
    }
    mkdirSync(join(this.folder, 'disks'));
    await writeSites(this.folder, this.#options);
    await writeSpec(this.folder, { ...this.#options, vm: this.vm });
  }

  /** Whatever runs on either host, by what is on record and by the memory that it has open. */
  async #endAll(): Promise<void> {
    for (const child of [...this.#daemons.values(), ...this.#sites.values()]) await endChild(child);
    await this.#etcd[Symbol.asyncDispose]();
    for (const name of HOST_NAMES) {
      // Also a keeper that waits for the shadow that it is for, and has nothing yet.
      const pids = [...processesMapping(this.memoryOf(name)), ...processesOn(this.runDirectory(name))];
      for (const { pid } of pids) {
        try {
          process.kill(pid, 'SIGKILL');
        } catch {
          // It ended by itself.
        }
      }
      await this.eventually('the end of all processes', () =>
        processesMapping(this.memoryOf(name)).length === 0 ? true : undefined,
      );
      await this.cli(name, 'stop', this.vm, '--force').catch(() => {});
    }
  }

  /**
   * Unlike `nsenter`, this shows a /sys without cgroups: those of a VM have the same names on both hosts. As it has mounts of
   * its own, each host sees its own disks in the same place.
   */
  #on(host: HostName, words: readonly string[]): string[] {
    const bind = 'mount --rbind "$1" "$2" && shift 2 && exec "$@"';
    const places = [join(this.folder, host, 'disks'), join(this.folder, 'disks')];
    return ['netns', 'exec', this.netns(host), 'sh', '-c', bind, 'sh', ...places, ...words];
  }

  #keeperRecord(host: HostName): KeeperRecord {
    return JSON.parse(readFileSync(join(this.runDirectory(host), this.vm, 'keeper.json'), 'utf8'));
  }

  /** Another one for each boot of the guest. */
  guestId(): Promise<string> {
    return this.#readRunId();
  }

  async #readRunId(): Promise<string> {
    const info = String(await this.load.command('INFO', 'server'));
    return /run_id:(\w+)/.exec(info)?.[1] ?? '';
  }

  #logs(): string {
    return HOST_NAMES.map((name) => {
      try {
        const log = readFileSync(join(this.runDirectory(name), this.vm, 'keeper.log'), 'utf8');
        return `--- ${name}\n${log.slice(-3000)}`;
      } catch {
        return `--- ${name}: nothing`;
      }
    }).join('\n');
  }
}
