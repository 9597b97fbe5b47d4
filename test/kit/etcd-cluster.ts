import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemClock as clock } from '../../src/base/clock.ts';
import { EtcdGateway } from '../../src/lease/etcd-gateway.ts';
import { EtcdLeaseStore } from '../../src/lease/etcd-lease-store.ts';
import { freePort } from '../../src/net/free-port.ts';
import { type Issued, issue, makeAuthority, readAuthority } from '../../src/pki/certificate.ts';

const YEAR_MS = 365 * 24 * 3_600_000;
const START_DEADLINE_MS = 30_000;
const ASK_AGAIN_MS = 50;
/** Short, so that a leader that dies is replaced soon; not so short that a busy machine makes leaders change. */
const HEARTBEAT_MS = 100;
const ELECTION_MS = 1_000;

/** What a host has whose CA is another one. */
export async function foreignTls(): Promise<EtcdCluster['tls']> {
  const wallMs = Date.now();
  const made = await makeAuthority('somebody else', { wallMs });
  const ca = await readAuthority(made);
  const issued = await issue({ name: 'host', isServer: false, years: 1 }, { ca, wallMs });
  return { ca: made.certificate, ...issued };
}

interface Node {
  readonly name: string;
  readonly clientUrl: string;
  readonly peerUrl: string;
  child: ChildProcess | undefined;
}

/**
 * A real etcd of three nodes: processes on loopback with data directories of their own, TLS both ways between them and
 * towards clients. Needs Debian's etcd-server.
 */
export class EtcdCluster implements AsyncDisposable {
  readonly #folder: string;
  readonly #nodes: readonly Node[];
  readonly #ca: Issued;
  readonly #client: Issued;

  private constructor(folder: string, { nodes, ca, client }: { nodes: Node[]; ca: Issued; client: Issued }) {
    this.#folder = folder;
    this.#nodes = nodes;
    this.#ca = ca;
    this.#client = client;
  }

  /** Resolves when it answers. @throws Error with the nodes' logs */
  static async start(): Promise<EtcdCluster> {
    const folder = mkdtempSync(join(tmpdir(), 'us-etcd-'));
    const wallMs = Date.now();
    const ca = await makeAuthority('etcd of a test', { wallMs });
    const authority = await readAuthority(ca);
    const ips = ['127.0.0.1'];
    const server = await issue({ name: 'node', ips, isServer: true, years: 1 }, { ca: authority, wallMs });
    const client = await issue({ name: 'host', isServer: false, years: 1 }, { ca: authority, wallMs });
    writeFileSync(join(folder, 'ca.crt'), ca.certificate);
    writeFileSync(join(folder, 'node.crt'), server.certificate);
    writeFileSync(join(folder, 'node.key'), server.key, { mode: 0o600 });
    const nodes: Node[] = [];
    for (const name of ['n1', 'n2', 'n3']) {
      const clientUrl = `https://127.0.0.1:${await freePort()}`;
      nodes.push({ name, clientUrl, peerUrl: `https://127.0.0.1:${await freePort()}`, child: undefined });
    }
    const cluster = new EtcdCluster(folder, { nodes, ca, client });
    try {
      for (const index of nodes.keys()) cluster.run(index);
      await cluster.untilItAnswers();
      return cluster;
    } catch (cause) {
      const logs = cluster.#logs();
      await cluster[Symbol.asyncDispose]();
      throw new Error(`etcd does not start:\n${logs}`, { cause });
    }
  }

  get endpoints(): string[] {
    return this.#nodes.map(({ clientUrl }) => clientUrl);
  }

  /** What a host needs to use it. */
  get tls() {
    return { ca: this.#ca.certificate, certificate: this.#client.certificate, key: this.#client.key };
  }

  /** Another certificate for a host: those of before stay good as well. */
  async renewedTls({ issuedYearsAgo = 0 } = {}): Promise<EtcdCluster['tls']> {
    const wallMs = Date.now() - issuedYearsAgo * YEAR_MS;
    const ca = await readAuthority(this.#ca);
    const issued = await issue({ name: 'host', isServer: false, years: 1 }, { ca, wallMs });
    return { ca: this.#ca.certificate, ...issued };
  }

  store(options: Partial<ConstructorParameters<typeof EtcdLeaseStore>[0]> = {}): EtcdLeaseStore {
    const { endpoints, tls } = this;
    return new EtcdLeaseStore({ endpoints, tls, callDeadlineMs: 6_000, holdTtlMs: 2_000, clock, ...options });
  }

  /** Starts a node, or starts it again with what it had on disk. */
  run(index: number): void {
    const node = this.#node(index);
    const log = openSync(join(this.#folder, `${node.name}.log`), 'a');
    const data = join(this.#folder, node.name);
    mkdirSync(data, { recursive: true, mode: 0o700 });
    node.child = spawn('etcd', this.#arguments(node, data), {
      stdio: ['ignore', log, log],
      env: environment(),
    });
    closeSync(log);
  }

  signal(index: number, signal: NodeJS.Signals): void {
    this.#node(index).child?.kill(signal);
  }

  async kill(index: number): Promise<void> {
    const { child } = this.#node(index);
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }

  /** Which node leads now. */
  async leader(): Promise<number> {
    for (const [index, { clientUrl }] of this.#nodes.entries()) {
      using gateway = new EtcdGateway({ endpoints: [clientUrl], tls: this.tls, callDeadlineMs: 2_000 });
      const outcome = await gateway.call('/v3/maintenance/status', {});
      if (outcome.kind !== 'answered') continue;
      const { leader, header } = outcome.body as { leader?: string; header: { member_id: string } };
      if (leader !== undefined && leader === header.member_id) return index;
    }
    throw new Error('no node says that it leads');
  }

  /** Resolves when most of the nodes agree on a read. */
  async untilItAnswers(): Promise<void> {
    const { endpoints, tls } = this;
    using gateway = new EtcdGateway({ endpoints, tls, callDeadlineMs: 3_000 });
    const endMs = clock.nowMs() + START_DEADLINE_MS;
    const key = Buffer.from('us').toString('base64');
    while (clock.nowMs() < endMs) {
      const outcome = await gateway.call('/v3/kv/range', { key });
      if (outcome.kind === 'answered') return;
      await clock.sleep(ASK_AGAIN_MS);
    }
    throw new Error(`etcd did not answer within ${START_DEADLINE_MS} ms`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#nodes.map((_, index) => this.kill(index)));
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #node(index: number): Node {
    const node = this.#nodes[index];
    if (node === undefined) throw new Error(`there is no node ${index}`);
    return node;
  }

  #arguments({ name, clientUrl, peerUrl }: Node, data: string): string[] {
    const file = (path: string) => join(this.#folder, path);
    return Object.entries({
      name,
      'data-dir': data,
      'listen-client-urls': clientUrl,
      'advertise-client-urls': clientUrl,
      'listen-peer-urls': peerUrl,
      'initial-advertise-peer-urls': peerUrl,
      'initial-cluster': this.#nodes.map((node) => `${node.name}=${node.peerUrl}`).join(','),
      'initial-cluster-state': 'new',
      'heartbeat-interval': HEARTBEAT_MS,
      'election-timeout': ELECTION_MS,
      logger: 'zap',
      'log-level': 'warn',
      'cert-file': file('node.crt'),
      'key-file': file('node.key'),
      'trusted-ca-file': file('ca.crt'),
      'client-cert-auth': true,
      'peer-cert-file': file('node.crt'),
      'peer-key-file': file('node.key'),
      'peer-trusted-ca-file': file('ca.crt'),
      'peer-client-cert-auth': true,
    }).map(([option, value]) => `--${option}=${value}`);
  }

  #logs(): string {
    return this.#nodes
      .map(({ name }) => `${name}: ${readFileSync(join(this.#folder, `${name}.log`), 'utf8').slice(-2_000)}`)
      .join('\n');
  }
}

/** Settings of an etcd that belongs to somebody else must not get into ours. */
function environment(): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('ETCD_')));
}
