import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { endChild } from './child-end.ts';
import { type HostNetwork, LAN_ADDRESS } from './host-network.ts';

const run = promisify(execFile);
/** Where hosts find it. */
export const ETCD = `https://${LAN_ADDRESS}:2379`;

export interface SiteEtcdOptions {
  /** Its data lie here, and certificates in `pki`. */
  readonly folder: string;
  readonly network: HostNetwork;
  /** Waits until `look` finds something. */
  readonly eventually: (what: string, look: () => Promise<true | undefined>) => Promise<true>;
}

/** The etcd that the hosts have their records in: a real one, beside them. */
export class SiteEtcd implements AsyncDisposable {
  readonly #options: SiteEtcdOptions;
  #child: ChildProcess | undefined;

  constructor(options: SiteEtcdOptions) {
    this.#options = options;
  }

  /** Resolves when it answers. */
  async start(): Promise<void> {
    const words = ['etcd', '--data-dir', join(this.#options.folder, 'etcd')];
    for (const [name, url] of [
      ['--listen-client-urls', ETCD],
      ['--advertise-client-urls', ETCD],
      ['--listen-peer-urls', 'http://127.0.0.1:2380'],
      ['--cert-file', this.#pki('etcd.crt')],
      ['--key-file', this.#pki('etcd.key')],
      ['--trusted-ca-file', this.#pki('ca.crt')],
    ] as const)
      words.push(name, url);
    words.push('--client-cert-auth');
    const child = spawn('nsenter', this.#entering(words), { stdio: 'ignore' });
    this.#child = child;
    await this.#options.eventually('etcd', async () => {
      if (child.exitCode !== null) throw new Error(`etcd ended with ${child.exitCode}`);
      return await this.#ask('-f', `${ETCD}/health`).then(
        () => true,
        () => undefined,
      );
    });
  }

  signal(signal: NodeJS.Signals): void {
    this.#child?.kill(signal);
  }

  /** It loses what it had in memory, not what it said it had written. */
  async restart(): Promise<void> {
    await endChild(this.#child);
    await this.start();
  }

  async read(key: string): Promise<string | undefined> {
    const range = JSON.stringify({ key: Buffer.from(key).toString('base64') });
    const stdout = await this.#ask('-d', range, `${ETCD}/v3/kv/range`);
    const { kvs = [] } = JSON.parse(stdout) as { kvs?: { value: string }[] };
    const value = kvs[0]?.value;
    return value === undefined ? undefined : Buffer.from(value, 'base64').toString();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endChild(this.#child);
  }

  async #ask(...words: string[]): Promise<string> {
    const shown = [
      '--cacert',
      this.#pki('ca.crt'),
      '--cert',
      this.#pki('a.crt'),
      '--key',
      this.#pki('a.key'),
    ];
    const { stdout } = await run('nsenter', this.#entering(['curl', '-s', ...shown, ...words]));
    return stdout;
  }

  #entering(words: readonly string[]): string[] {
    return [`--net=/run/netns/${this.#options.network.netns('lan')}`, '--', ...words];
  }

  #pki(file: string): string {
    return join(this.#options.folder, 'pki', file);
  }
}
