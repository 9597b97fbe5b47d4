import { closeSync } from 'node:fs';
import { InvariantViolation } from '../base/assert.ts';
import { messageOf } from '../base/errors.ts';
import { watchReadable } from '../linux/event-watch.ts';
import { LinuxError } from '../linux/linux-error.ts';
import { readInto, writeFrom } from '../linux/poll.ts';
import { RouteSocket } from '../linux/route-socket.ts';
import { openTap } from '../linux/tap.ts';
import type { FarEnd, FarEndStats } from './far-end.ts';
import { FRAME_BYTES_MAX } from './frame-codec.ts';
import { NetError } from './net-error.ts';

export interface TapUplinkOptions {
  readonly device: string;
  /** Name of the network namespace (`ip netns`) that the TAP, and the bridge if any, lives in. */
  readonly netns?: string | undefined;
  /** The host's own address on the TAP, with its prefix length: `10.77.0.1/24`. */
  readonly address?: string | undefined;
  /** An existing bridge that the TAP joins. */
  readonly bridge?: string | undefined;
  /** Of the nic that it leads to: the device's own hardware address is made from it, see {@link hardwareAddressOf}. */
  readonly nicMac: string;
  /** The device is gone, e.g. deleted by somebody. The uplink is of no use from now on. */
  readonly onLost: (error: NetError) => void;
}

/** So many frames are read before other work gets its turn. */
const FRAMES_PER_TURN = 64;

/**
 * A TAP device as a guest's way to the network. Frames are read on the event loop as soon as the kernel has
 * them, and written at once. The device exists as long as the uplink is open.
 */
export class TapUplink implements FarEnd {
  readonly #options: TapUplinkOptions;
  readonly #buffer = new Uint8Array(FRAME_BYTES_MAX);
  #fd: number | undefined;
  #watch: Disposable | undefined;
  #receiver: ((frame: Uint8Array) => void) | undefined;
  #paused = false;
  #sentItems = 0;
  #refusedItems = 0;

  private constructor(options: TapUplinkOptions, fd: number) {
    this.#options = options;
    this.#fd = fd;
  }

  /** Creates the device and sets it up, at once: a VM may stand still meanwhile. Needs root. Throws `NET_TAP_FAILED`. */
  static async open(options: TapUplinkOptions): Promise<TapUplink> {
    const { device, netns, address, bridge, nicMac } = options;
    const tap = new TapUplink(options, open(options));
    try {
      using routes = new RouteSocket({ netns });
      const index = routes.indexOf(device);
      const master = bridge === undefined ? {} : { master: routes.indexOf(bridge) };
      routes.change(index, { hardwareAddress: hardwareAddressOf(nicMac), ...master });
      if (address !== undefined) routes.addAddress(index, address);
      routes.change(index, { up: true });
      return tap;
    } catch (cause) {
      await tap.close();
      throw tapFailed(options, cause);
    }
  }

  send(frame: Uint8Array): void {
    if (this.#fd !== undefined && this.#written(this.#fd, frame)) this.#sentItems += 1;
    else this.#refusedItems += 1;
  }

  receive(receiver: ((frame: Uint8Array) => void) | undefined): void {
    this.#receiver = receiver;
    this.#arrangeWatch();
  }

  pause(): void {
    this.#paused = true;
    this.#arrangeWatch();
  }

  resume(): void {
    this.#paused = false;
    this.#arrangeWatch();
  }

  async close(): Promise<void> {
    const fd = this.#fd;
    this.#fd = undefined;
    this.#arrangeWatch();
    if (fd !== undefined) closeSync(fd);
  }

  stats(): FarEndStats {
    return { sentItems: this.#sentItems, refusedItems: this.#refusedItems };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #arrangeWatch(): void {
    const wanted = this.#fd !== undefined && this.#receiver !== undefined && !this.#paused;
    if (wanted && this.#watch === undefined && this.#fd !== undefined) {
      this.#watch = watchReadable(this.#fd, () => this.#read());
    } else if (!wanted) {
      this.#watch?.[Symbol.dispose]();
      this.#watch = undefined;
    }
  }

  #read(): void {
    try {
      for (let frames = 0; frames < FRAMES_PER_TURN && this.#watch !== undefined; frames += 1) {
        const bytes = this.#fd === undefined ? undefined : readInto(this.#fd, this.#buffer);
        if (bytes === undefined || bytes === 0) return;
        this.#receiver?.(this.#buffer.slice(0, bytes));
      }
    } catch (cause) {
      if (!(cause instanceof LinuxError)) throw cause;
      this.#lose(cause);
    }
  }

  /** Like any nic, a TAP drops what it cannot take: when it is down, or for a frame too short to be one. */
  #written(fd: number, frame: Uint8Array): boolean {
    try {
      return writeFrom(fd, frame) !== undefined;
    } catch (thrown) {
      if (!(thrown instanceof LinuxError)) throw thrown;
      return false;
    }
  }

  #lose(cause: LinuxError): void {
    const { device, onLost } = this.#options;
    const fd = this.#fd;
    this.#fd = undefined;
    this.#arrangeWatch();
    if (fd !== undefined) closeSync(fd);
    onLost(
      new NetError('NET_UPLINK_LOST', `the TAP ${device} cannot be read any more: ${cause.message}`, {
        hint: 'Somebody deleted the device or its network namespace. Stop the VM and start it again.',
        cause,
        facts: { device },
      }),
    );
  }
}

/**
 * The same for the device of the next keeper. The kernel would make one up each time, and a guest that lives on sends to
 * the one that it knows until its entry for it has expired: its TCP doubles its patience meanwhile, up to two minutes.
 * A first byte of fe keeps a bridge from taking it for its own address: it takes the lowest one of its ports.
 */
function hardwareAddressOf(nicMac: string): string {
  // One that begins so already must not be that of the device as well.
  return `${nicMac.startsWith('fe') ? 'fa' : 'fe'}${nicMac.slice(2)}`;
}

function open(options: TapUplinkOptions): number {
  const { device, netns } = options;
  try {
    return openTap({ device, ...(netns !== undefined && { netns }) });
  } catch (cause) {
    throw tapFailed(options, cause);
  }
}

function tapFailed({ device, netns, bridge }: TapUplinkOptions, cause: unknown): NetError {
  // Who is in the wrong network namespace must not go on.
  if (cause instanceof InvariantViolation) throw cause;
  return new NetError('NET_TAP_FAILED', `cannot set up the TAP ${device}: ${messageOf(cause)}`, {
    hint: 'A TAP needs root, a free device name, and the bridge and network namespace that it is to join. Where it is not allowed, take the uplink passt.',
    cause,
    facts: { device, netns, bridge },
  });
}
