import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
} from 'node:fs';
import { type AddressInfo, connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { ensureDemoGuest } from '../../guest/build.ts';
import { limitsSchema } from '../../src/api/access-resources.ts';
import { ApiClient } from '../../src/api/api-client.ts';
import type { HostEvent } from '../../src/api/resources.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { ControlClient } from '../../src/control/control-client.ts';
import { endProcess } from '../../src/control/process-identity.ts';
import { controlSocketOf, RunDirectory } from '../../src/control/run-directory.ts';
import type { VmStatus } from '../../src/control/vm-status.ts';
import { CgroupTree } from '../../src/linux/cgroup.ts';
import { freePort } from '../../src/net/free-port.ts';
import { CertificateStore } from '../../src/pki/certificate-store.ts';
import { HostDaemon, hostEnvironment } from '../kit/host-daemon.ts';
import { marked } from '../kit/run-mark.ts';

const DEADLINE_MS = 60_000;
const GUESTS_LOOPBACK = '127.0.0.1';

const open = new AsyncDisposableStack();
let folder: string;
let daemon: HostDaemon;
/** An administrator of the tenant, over TLS by token. */
let acme: ApiClient;
let boot: string;
/** Of the loopback of this machine; leads to Redis in the VM of the tenant. */
let hostPort: number;

beforeAll(async () => {
  folder = realpathSync(mkdtempSync(join(tmpdir(), 'us-tenant-')));
  const memoryFolder = mkdtempSync(`/dev/shm/${marked('tenant')}-`);
  open.defer(() => {
    vi.unstubAllEnvs();
    for (const path of [folder, memoryFolder]) rmSync(path, { recursive: true, force: true });
  });
  for (const [name, value] of Object.entries(hostEnvironment(folder, memoryFolder))) vi.stubEnv(name, value);
  open.defer(endAllVms);
  const pki = new CertificateStore(join(folder, 'pki'), { wallMs: clock.wallMs });
  await pki.init();
  const { certificate, key } = await pki.host('alpha', []);
  const words = ['--listen', '127.0.0.1:0', '--tls-cert', certificate, '--tls-key', key];
  daemon = open.use(await HostDaemon.start({ folder, memoryFolder, words }));
  const guest = await ensureDemoGuest();
  mkdirSync(join(folder, 'acme'));
  for (const file of ['kernel', 'initrd'] as const) copyFileSync(guest[file], join(folder, 'acme', file));
  const { address, gateway } = network();
  boot = `boot: {kernel: kernel, initrd: initrd, cmdline: '${guest.cmdline} us.ip=${address} us.gw=${gateway}'}`;
  acme = await adminOf('acme');
});
afterAll(() => open[Symbol.asyncDispose]());

/** Of a new tenant, whose VMs have no shadow unless they ask for one. */
async function adminOf(tenant: string): Promise<ApiClient> {
  const { client, tlsAddress } = daemon;
  await client.call('createTenant', { body: { name: tenant } });
  const { version } = await client.call('getPolicy', { params: { name: tenant } });
  const limits = limitsSchema.parse({ directories: [join(folder, tenant)], cpuShareMax: 1.5 });
  await client.call('setPolicy', {
    params: { name: tenant },
    headers: { 'if-match': `"${version}"` },
    body: { defaults: { shadow: { enabled: false } }, limits },
  });
  const asked = { name: 'ada', role: 'admin', tenant } as const;
  const { token } = await client.call('createToken', { body: asked });
  const ca = readFileSync(join(folder, 'pki/ca.crt'));
  return new ApiClient({ url: `https://${tlsAddress}`, credentials: { ca, token }, clock });
}

/** What passt takes from this machine, and tells the guest where one asks. */
function network(): { address: string; gateway: string } {
  const json = (...words: string[]) => JSON.parse(execFileSync('ip', ['-j', '-4', ...words]).toString());
  const [{ gateway, dev }] = json('route', 'show', 'default');
  const [{ addr_info: addresses }] = json('address', 'show', 'dev', dev);
  return { address: `${addresses[0].local}/${addresses[0].prefixlen}`, gateway };
}

async function endAllVms(): Promise<void> {
  for (const { name, record } of RunDirectory.list()) {
    if (record !== undefined) await endProcess(record.keeper, { deadlineMs: DEADLINE_MS, clock });
    await RunDirectory.sweep(name, { clock });
  }
}

/** How many CPUs' time its QEMU may use; undefined: as much as there is. Of cgroups of either version. */
function cpuShareOf(vm: string): number | undefined {
  const [group] = RunDirectory.find(vm)?.record?.cgroups ?? [];
  if (group === undefined) return undefined;
  const read = (file: string) => readFileSync(join(group, file), 'utf8').trim();
  const [quota, period] = existsSync(join(group, 'cpu.max'))
    ? read('cpu.max').split(' ')
    : [read('cpu.cfs_quota_us'), read('cpu.cfs_period_us')];
  return quota === 'max' || quota === '-1' ? undefined : Number(quota) / Number(period);
}

async function statusOf(vm: string): Promise<VmStatus> {
  using control = await ControlClient.connect(controlSocketOf(vm), { vm, clock });
  return await control.status();
}

/** What listens on the loopback of this machine only, as a database might. */
class LocalService implements AsyncDisposable {
  readonly secret: string;
  readonly #server: Server;
  callers = 0;

  private constructor(secret: string) {
    this.secret = secret;
    this.#server = createServer((socket) => {
      this.callers += 1;
      socket.on('error', () => {}).end(`${secret}\n`);
    });
  }

  static async start(secret: string): Promise<LocalService> {
    const service = new LocalService(secret);
    service.#server.listen(0, '127.0.0.1');
    await once(service.#server, 'listening');
    return service;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    await once(this.#server, 'close');
  }
}

/** The shell on a VM's serial console. */
class Shell implements Disposable {
  readonly #console: Duplex;
  readonly #closed = new AbortController();
  #seen = '';
  #asked = 0;

  private constructor(console: Duplex) {
    this.#console = console;
    console.on('error', (error) => {
      this.#seen += `[${error}]`;
    });
    console.on('close', () => this.#closed.abort(new Error('the console was closed')));
    console.on('data', (bytes: Buffer) => {
      this.#seen += bytes;
    });
  }

  /** Resolves when the guest is ready for it. */
  static async join(client: ApiClient, vm: string): Promise<Shell> {
    const shell = new Shell(await client.console(vm));
    await shell.#until(/understudy-guest: ready[\s\S]*\/ # /);
    return shell;
  }

  /** What a command says. */
  async run(command: string): Promise<string> {
    this.#asked += 1;
    this.#seen = '';
    // What the terminal shows of the line itself is not yet the sum.
    this.#console.write(`${command}; echo end-$((1000+${this.#asked}))-\n`);
    return await this.#until(new RegExp(`end-${1000 + this.#asked}-`));
  }

  async #until(end: RegExp): Promise<string> {
    const signal = AbortSignal.any([this.#closed.signal, AbortSignal.timeout(DEADLINE_MS)]);
    try {
      while (!end.test(this.#seen)) await once(this.#console, 'data', { signal });
    } catch (cause) {
      throw new Error(`no ${end} on the console, but: ${this.#seen}`, { cause });
    }
    return this.#seen;
  }

  [Symbol.dispose](): void {
    this.#console.destroy();
  }
}

describe('a VM that an administrator of a tenant declares over the API', () => {
  it('is refused where it names a file outside of the directories of its policy', async () => {
    const outside = { spec: `name: inside\nmemory: 128MiB\naccel: tcg\n${boot}\n`, directory: '/etc' };
    await expect(acme.call('declareVm', { body: outside })).rejects.toMatchObject({
      code: 'HOST_SPEC_REFUSED',
    });
  });

  it('runs with the defaults of its policy, and does not reach the loopback of the host', async () => {
    await using reached = await LocalService.start('kept-from-guests');
    await using allowed = await LocalService.start('open-to-guests');
    hostPort = await freePort();
    const spec = (name: string, forward: readonly object[]) =>
      `name: ${name}\nmemory: 128MiB\naccel: tcg\n${boot}\nnics: [{uplink: {kind: passt, hostLoopback: true, forward: ${JSON.stringify(forward)}}}]\n`;
    const directory = join(folder, 'acme');
    await acme.call('declareVm', {
      body: { spec: spec('inside', [{ hostPort, guestPort: 6379 }]), directory },
    });
    // The host's own VM says the same and is taken at its word.
    const own = `${spec('control', [])}shadow: {enabled: false}\n`;
    await daemon.client.call('declareVm', { body: { spec: own, directory } });
    const [inside, control] = await Promise.all([
      Shell.join(await untilRuns(acme, 'inside'), 'inside'),
      Shell.join(await untilRuns(daemon.client, 'control'), 'control'),
    ]);
    using _both = new DisposableStack();
    for (const shell of [inside, control]) _both.use(shell);
    expect(await statusOf('inside')).toMatchObject({ shadow: null });
    // Where there are no groups nothing can be limited, and its keeper says so.
    const limited = CgroupTree.detect().kind === 'usable' ? 1.5 : undefined;
    expect([cpuShareOf('inside'), cpuShareOf('control')]).toEqual([limited, undefined]);
    // Its uplink works: what is forwarded to it arrives.
    expect(await redis('PING')).toBe('+PONG\r\n');

    const { gateway } = network();
    // Ended from outside: passt may lose the end of a connection that both sides end at once.
    const ask = (host: string, port: number) => `timeout 4 nc ${host} ${port} < /dev/null`;
    // A guest that is root has any address leave over its card, also that of a loopback.
    const everyWay = (port: number) =>
      [
        ask(gateway, port),
        'echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet',
        'ip address del 127.0.0.1/8 dev lo',
        `ip route add 127.0.0.1 via ${gateway}`,
        ask(GUESTS_LOOPBACK, port),
      ].join('; ');
    // Each waits for what does not come: both at a time.
    const [kept, led] = await Promise.all([
      inside.run(everyWay(reached.port)),
      control.run(everyWay(allowed.port)),
    ]);
    expect(kept).not.toContain(reached.secret);
    expect(reached.callers).toBe(0);
    // Negative control: all of this leads there where nothing keeps a guest from it.
    expect(led.split(allowed.secret)).toHaveLength(3);
    expect(allowed.callers).toBe(2);
  });
});

/** The VM of the test before it. It has no shadow, so that a keeper that is killed leaves a QEMU that stands still. */
describe('a VM of a tenant whose files were swapped for links since it was started', () => {
  const kernel = () => join(folder, 'acme/kernel');
  const swap = () => {
    renameSync(kernel(), `${kernel()}.kept`);
    symlinkSync('/etc/passwd', kernel());
  };
  const putBack = () => renameSync(`${kernel()}.kept`, kernel());
  const observed = async () => (await acme.call('getVm', { params: { name: 'inside' } })).observed;

  it('stands still when its keeper is killed, rather than go on with them, and goes on when they are back', async () => {
    const { primary } = await statusOf('inside');
    expect(await redis('SET mark made-before')).toBe('+OK\r\n');
    const after = await lastEvent();
    swap();
    process.kill((await observed()).keeperPid ?? 0, 'SIGKILL');
    expect((await nextEvent('start-failed', after)).facts).toMatchObject({ code: 'HOST_SPEC_REFUSED' });
    expect(await observed()).toMatchObject({ problem: { code: 'HOST_SPEC_REFUSED' } });
    // Nothing has touched it, and nothing is lost.
    await vi.waitFor(() => expect(stateOf(primary?.pid ?? 0)).toBe('T'), {
      timeout: DEADLINE_MS,
      interval: 20,
    });
    putBack();
    await acme.call('startVm', { params: { name: 'inside' }, body: {} });
    await nextEvent('taken-back', after);
    await untilRuns(acme, 'inside');
    expect(await redis('GET mark')).toContain('made-before');
  });

  it('is not restarted with them by its keeper, which ends it and says why', async () => {
    const { primary } = await statusOf('inside');
    swap();
    const after = await lastEvent();
    process.kill(primary?.pid ?? 0, 'SIGKILL');
    expect((await nextEvent('failed', after)).facts).toMatchObject({ code: 'KEEPER_FILES_REFUSED' });
    expect((await nextEvent('start-failed', after)).facts).toMatchObject({ code: 'HOST_SPEC_REFUSED' });
    putBack();
    await acme.call('startVm', { params: { name: 'inside' }, body: {} });
    await untilRuns(acme, 'inside');
    // Control: with its own files its keeper restarts it.
    process.kill((await statusOf('inside')).primary?.pid ?? 0, 'SIGKILL');
    await nextEvent('restarted-cold', after);
  });
});

async function lastEvent(): Promise<number> {
  return (await acme.call('listEvents', { query: { limit: 1000 } })).events.at(-1)?.id ?? 0;
}

/** Of the tenant's VM. */
async function nextEvent(kind: string, after: number): Promise<HostEvent> {
  const all = acme.events({ vm: 'inside', after, signal: AbortSignal.timeout(DEADLINE_MS) });
  for await (const event of all) if (event.kind === kind) return event;
  throw new Error('events never end');
}

/** `T`: stopped. proc(5) */
function stateOf(pid: number): string | undefined {
  return /\) (\S) /.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))?.[1];
}

/** What Redis in the tenant's VM answers. passt takes a connection before it knows whether there is a guest for it. */
async function redis(command: string): Promise<string> {
  const signal = AbortSignal.timeout(DEADLINE_MS);
  for (;;) {
    const socket = connect(hostPort, '127.0.0.1').on('error', () => {});
    const { promise, resolve } = Promise.withResolvers<string>();
    socket.on('data', (bytes) => resolve(String(bytes))).on('close', () => resolve(''));
    socket.end(`${command}\r\n`);
    const answer = await promise;
    socket.destroy();
    if (answer !== '') return answer;
    await clock.sleep(20, signal);
  }
}

async function untilRuns(client: ApiClient, name: string): Promise<ApiClient> {
  const signal = AbortSignal.timeout(DEADLINE_MS);
  for (;;) {
    const { observed } = await client.call('getVm', { params: { name } }, signal);
    if (observed.state === 'alone') return client;
    await clock.sleep(20, signal);
  }
}
