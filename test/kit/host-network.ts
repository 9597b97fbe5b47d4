import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

const run = promisify(execFile);
/** Of this machine in the network that clients and etcd are on. */
export const LAN_ADDRESS = '10.77.0.1';

export type HostName = 'a' | 'b';
export type Place = HostName | 'lan';
export const HOSTS = {
  a: { peers: ['10.78.0.1', '10.79.0.1'], lan: '10.77.0.11' },
  b: { peers: ['10.78.0.2', '10.79.0.2'], lan: '10.77.0.12' },
} as const;
export const HOST_NAMES = ['a', 'b'] as const;
/** Interfaces of the paths between the hosts, on both of them. */
const PATHS = ['peer0', 'peer1'] as const;

/** Two hosts as network namespaces, paths between them for epochs, and a network that clients and etcd are on. */
export class HostNetwork implements AsyncDisposable {
  readonly #prefix: string;
  readonly #owned = new AsyncDisposableStack();

  /** Names of namespaces begin with this. */
  constructor(prefix: string) {
    this.#prefix = prefix;
  }

  async lay(): Promise<void> {
    for (const place of [...HOST_NAMES, 'lan'] as const) {
      await run('ip', ['netns', 'add', this.netns(place)]);
      this.#owned.defer(async () => void (await run('ip', ['netns', 'delete', this.netns(place)])));
      await this.#ip(place, 'link', 'set', 'lo', 'up');
      await this.#ip(place, 'link', 'add', 'br0', 'type', 'bridge');
      await this.#ip(place, 'link', 'set', 'br0', 'up');
    }
    const lan = this.netns('lan');
    await this.#ip('lan', 'address', 'add', `${LAN_ADDRESS}/24`, 'dev', 'br0');
    for (const name of HOST_NAMES) {
      await this.#ip(name, 'link', 'add', 'up0', 'type', 'veth', 'peer', 'name', `to-${name}`, 'netns', lan);
      await this.#ip('lan', 'link', 'set', `to-${name}`, 'master', 'br0', 'up');
      await this.#ip(name, 'link', 'set', 'up0', 'master', 'br0', 'up');
      await this.#ip(name, 'address', 'add', `${HOSTS[name].lan}/24`, 'dev', 'br0');
    }
    const b = this.netns('b');
    for (const [path, device] of PATHS.entries()) {
      await this.#ip('a', 'link', 'add', device, 'type', 'veth', 'peer', 'name', device, 'netns', b);
      for (const name of HOST_NAMES) {
        await this.#ip(name, 'address', 'add', `${HOSTS[name].peers[path]}/24`, 'dev', device);
        await this.#ip(name, 'link', 'set', device, 'up');
      }
    }
  }

  netns(place: Place): string {
    return `${this.#prefix}-${place}`;
  }

  /** Paths between the hosts, all by default, lose all that one host sends, or both. They notice by the silence alone. */
  async cutPeers(from: HostName | 'both' = 'both', { paths = [0, 1] } = {}): Promise<void> {
    for (const name of HOST_NAMES) {
      if (from !== 'both' && from !== name) continue;
      // Frames for a machine that is not there: kernels without netem have this as well.
      const gone = ['lladdr', '02:00:00:00:00:99', 'nud', 'permanent'];
      for (const path of paths) {
        const [address = '', device = ''] = [HOSTS[otherThan(name)].peers[path], PATHS[path]];
        await this.#ip(name, 'neighbour', 'replace', address, ...gone, 'dev', device);
      }
    }
  }

  /** All connections between the hosts are reset, and both may make new ones at once. */
  async resetPeers(): Promise<void> {
    for (const peer of HOSTS.b.peers)
      await run('ip', ['netns', 'exec', this.netns('a'), 'ss', '-K', '-t', 'dst', peer]);
  }

  /** Cuts this host off from clients and etcd. */
  async cutLan(host: HostName): Promise<void> {
    await this.#ip('lan', 'link', 'set', `to-${host}`, 'down');
  }

  /** Nothing that this host sends arrives anywhere, nor anything at it, and nobody is told. */
  async silence(host: HostName): Promise<void> {
    await Promise.all([this.cutLan(host), this.cutPeers()]);
  }

  async mend(): Promise<void> {
    for (const name of HOST_NAMES) {
      for (const [path, device] of PATHS.entries()) {
        const address = HOSTS[otherThan(name)].peers[path] ?? '';
        await this.#ip(name, 'neighbour', 'delete', address, 'dev', device).catch(() => {});
      }
      await this.#ip('lan', 'link', 'set', `to-${name}`, 'up');
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned.disposeAsync();
  }

  async #ip(place: Place, ...words: string[]): Promise<void> {
    await run('ip', ['-n', this.netns(place), ...words]);
  }
}

export function otherThan(host: HostName): HostName {
  return host === 'a' ? 'b' : 'a';
}
