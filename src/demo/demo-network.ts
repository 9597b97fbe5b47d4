import { execFile } from 'node:child_process';
import { closeSync } from 'node:fs';
import { promisify } from 'node:util';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import { openTap } from '../linux/tap.ts';
import { freePort } from '../net/free-port.ts';
import { DemoError } from './demo-error.ts';

const HOST_ADDRESS = '10.77.0.1';
const GUEST_ADDRESS = '10.77.0.2';
const REDIS_PORT = 6379;
const TAP_DEVICE = 'us-demo';
const IP_DEADLINE_MS = 10_000;

export type DemoUplink =
  | { readonly kind: 'tap'; readonly device: string; readonly netns: string; readonly address: string }
  | { readonly kind: 'passt'; readonly forward: readonly { hostPort: number; guestPort: number }[] };

export interface DemoNetworkOptions {
  /** Of the demo; at most one with this name at a time. */
  readonly name: string;
  /** By default TAP where this user may use it, else passt. */
  readonly kind?: 'tap' | 'passt' | undefined;
  /** Told why it is not TAP. */
  readonly onProgress?: (step: string) => void;
}

/**
 * A network with one VM in it. With TAP it is a network namespace of its own, so that nothing of the demo can be seen
 * on this machine's network, and demos side by side do not meet. With passt, which needs no privilege, a free port of
 * the loopback address leads to the guest's Redis. One VM after the other may use it.
 */
export class DemoNetwork implements AsyncDisposable {
  /** For the VM's specification. */
  readonly uplink: DemoUplink;
  /** For the guest's kernel command line. */
  readonly cmdline = `us.ip=${GUEST_ADDRESS}/24 us.gw=${HOST_ADDRESS}`;
  /** Where clients find Redis. */
  readonly redis: { readonly netns?: string; readonly host: string; readonly port: number };

  /** Why there is no TAP; only where passt has to do instead. */
  readonly #withoutTap: string | undefined;

  private constructor(uplink: DemoUplink, redis: DemoNetwork['redis'], withoutTap?: string) {
    this.uplink = uplink;
    this.redis = redis;
    this.#withoutTap = withoutTap;
  }

  /** @throws DemoError DEMO_NETWORK_FAILED when TAP was asked for and cannot be had */
  static async open({ name, kind, onProgress }: DemoNetworkOptions): Promise<DemoNetwork> {
    if (kind === 'passt') return await DemoNetwork.#openPasst();
    try {
      return await DemoNetwork.#openTap(`us-${name}`);
    } catch (cause) {
      const reason = messageOf(cause);
      if (kind === undefined) {
        onProgress?.(`No TAP (${reason}), using passt`);
        return await DemoNetwork.#openPasst(reason);
      }
      throw new DemoError('DEMO_NETWORK_FAILED', `cannot make a network namespace with a TAP: ${reason}`, {
        hint: 'Run it as root with /dev/net/tun and iproute2, or let it use passt.',
        cause,
      });
    }
  }

  /** What to tell of an error of the VM: where passt fails that is only the second choice, why it is needed as well. */
  explained(thrown: unknown): unknown {
    if (this.#withoutTap === undefined || !(thrown instanceof UnderstudyError)) return thrown;
    if (!thrown.code.startsWith('NET_PASST_')) return thrown;
    return new DemoError('DEMO_NETWORK_FAILED', `no TAP (${this.#withoutTap}), and ${thrown.message}`, {
      hint: `Run it as root with /dev/net/tun and iproute2. Or for passt: ${thrown.hint ?? 'see the message.'}`,
      cause: thrown,
    });
  }

  static async #openTap(netns: string): Promise<DemoNetwork> {
    await ip('netns', 'add', netns);
    try {
      await ip('-n', netns, 'link', 'set', 'lo', 'up');
      // Whether TAP is allowed shows only when one is made; the VM makes its own later.
      closeSync(openTap({ device: TAP_DEVICE, netns }));
    } catch (cause) {
      await ip('netns', 'delete', netns);
      throw cause;
    }
    const uplink = { kind: 'tap', device: TAP_DEVICE, netns, address: `${HOST_ADDRESS}/24` } as const;
    return new DemoNetwork(uplink, { netns, host: GUEST_ADDRESS, port: REDIS_PORT });
  }

  static async #openPasst(withoutTap?: string): Promise<DemoNetwork> {
    const port = await freePort();
    const uplink = { kind: 'passt', forward: [{ hostPort: port, guestPort: REDIS_PORT }] } as const;
    return new DemoNetwork(uplink, { host: '127.0.0.1', port }, withoutTap);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.uplink.kind === 'tap') await ip('netns', 'delete', this.uplink.netns);
  }
}

async function ip(...words: string[]): Promise<void> {
  try {
    await promisify(execFile)('ip', words, { timeout: IP_DEADLINE_MS });
  } catch (cause) {
    const said = cause instanceof Error && 'stderr' in cause ? String(cause.stderr).trim() : '';
    throw new Error(`ip ${words.join(' ')}: ${said.replaceAll('\n', ', ') || messageOf(cause)}`, { cause });
  }
}
