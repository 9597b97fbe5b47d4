import { type ChildProcess, spawn } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { MIB } from '../base/units.ts';
import type { FarEnd, FarEndStats } from './far-end.ts';
import { encodeFrame, FrameDecoder } from './frame-codec.ts';
import { isForLoopback } from './loopback-frames.ts';
import { NetError } from './net-error.ts';
import { SeparateWrites } from './separate-writes.ts';

export interface PortForward {
  readonly hostPort: number;
  readonly guestPort: number;
  readonly protocol?: 'tcp' | 'udp';
}

export interface PasstUplinkOptions {
  /** Ports of the host's loopback address that lead to the guest. */
  readonly forward: readonly PortForward[];
  /** What passt takes for the guest's address and router, and tells it over DHCP. By default the host's own. */
  readonly guestAddress?: string | undefined;
  readonly gateway?: string | undefined;
  /** Whether the guest reaches the loopback of this machine, at the address of its gateway or at 127.0.0.1. By default it does. */
  readonly hostLoopback?: boolean | undefined;
  readonly binary?: string | undefined;
  readonly clock: Clock;
  readonly readyDeadlineMs?: number;
  /** passt ended by itself. The uplink is of no use from now on. */
  readonly onLost: (error: NetError) => void;
}

/** passt reads from its socket steadily; a guest that sends faster than this much ahead loses frames. */
const QUEUE_BYTES_MAX = 4 * MIB;
const LAST_WORDS_LINES = 20;

/**
 * Network without any privilege: passt (https://passt.top) turns a guest's frames into ordinary sockets of this
 * host. It speaks the framing of `-netdev stream` and gets its end of a socket pair as an inherited
 * descriptor, so there is no path that its own sandbox (user nobody, empty file system) could not reach.
 */
export class PasstUplink implements FarEnd {
  readonly #options: PasstUplinkOptions;
  readonly #process: ChildProcess;
  readonly #socket: Socket;
  readonly #writes: SeparateWrites;
  readonly #exited: Promise<void>;
  readonly #decoder = new FrameDecoder();
  #receiver: ((frame: Uint8Array) => void) | undefined;
  #lastWords: string[] = [];
  #startError: Error | undefined;
  #hasExited = false;
  #paused = false;
  #closing = false;
  #sentItems = 0;
  #refusedItems = 0;

  private constructor(options: PasstUplinkOptions, pidFile: string) {
    this.#options = options;
    const words = passtArguments(options, pidFile);
    const child = spawn(options.binary ?? 'passt', words, {
      stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
      detached: true,
    });
    const socket = child.stdio[3];
    assert(socket != null && child.stderr !== null, 'the pipes that were asked for exist');
    this.#process = child;
    this.#socket = socket as Socket;
    this.#writes = new SeparateWrites(this.#socket);
    this.#exited = new Promise((resolve) => {
      const ended = (error: Error | undefined) => {
        this.#startError ??= error;
        this.#hasExited = true;
        resolve();
      };
      child.once('close', () => ended(undefined)).once('error', ended);
    });
    this.#socket.on('error', () => {});
    this.#socket.on('data', (chunk: Uint8Array) => this.#decode(chunk)).pause();
    createInterface({ input: child.stderr }).on('line', (line) => {
      // Without a syslog, passt complains about that after every line.
      if (/to syslog$/.test(line)) return;
      this.#lastWords = [...this.#lastWords, line].slice(-LAST_WORDS_LINES);
    });
  }

  /** Starts passt. Throws `NET_PASST_MISSING`, `NET_PORT_TAKEN`, `NET_PASST_FAILED`. */
  static async open(options: PasstUplinkOptions): Promise<PasstUplink> {
    const folder = mkdtempSync(join(tmpdir(), 'understudy-passt-'));
    // As root, passt becomes nobody before it writes there. Nothing is trusted that is written there.
    if (process.getuid?.() === 0) chmodSync(folder, 0o777);
    try {
      const uplink = new PasstUplink(options, join(folder, 'pid'));
      await uplink.#untilReady(join(folder, 'pid'));
      void uplink.#exited.then(() => uplink.#lose());
      return uplink;
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  send(frame: Uint8Array): void {
    const isFull = this.#writes.waitingBytes > QUEUE_BYTES_MAX;
    if (this.#closing || this.#socket.destroyed || isFull || this.#isKeptBack(frame)) {
      this.#refusedItems += 1;
    } else {
      this.#writes.write(encodeFrame(frame));
      this.#sentItems += 1;
    }
  }

  receive(receiver: ((frame: Uint8Array) => void) | undefined): void {
    this.#receiver = receiver;
    this.#arrangeReading();
  }

  pause(): void {
    this.#paused = true;
    this.#arrangeReading();
  }

  resume(): void {
    this.#paused = false;
    this.#arrangeReading();
  }

  /** passt ends when its connection does. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#socket.destroy();
    const { clock } = this.#options;
    const cancel = clock.after(2000, () => this.#process.kill('SIGKILL'));
    await this.#exited;
    cancel();
  }

  stats(): FarEndStats {
    return { sentItems: this.#sentItems, refusedItems: this.#refusedItems };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** passt writes its process id once its ports are bound. */
  async #untilReady(pidFile: string): Promise<void> {
    const { clock, readyDeadlineMs = 10_000 } = this.#options;
    const deadline = clock.nowMs() + readyDeadlineMs;
    while ((statSync(pidFile, { throwIfNoEntry: false })?.size ?? 0) === 0) {
      if (this.#startError !== undefined) throw passtMissing(this.#options, this.#startError);
      if (this.#hasExited || clock.nowMs() > deadline) {
        await this.close();
        throw passtFailed(this.#options, this.#lastWords);
      }
      await clock.sleep(2);
    }
  }

  /** passt opens a socket for whatever address a frame is for, that of a loopback too, with --no-map-gw as without. */
  #isKeptBack(frame: Uint8Array): boolean {
    return this.#options.hostLoopback === false && isForLoopback(frame);
  }

  #arrangeReading(): void {
    if (this.#receiver !== undefined && !this.#paused) this.#socket.resume();
    else this.#socket.pause();
  }

  #decode(chunk: Uint8Array): void {
    try {
      this.#decoder.push(chunk, (frame) => this.#receiver?.(frame));
    } catch (thrown) {
      if (!(thrown instanceof NetError)) throw thrown;
      this.#lastWords.push(thrown.message);
      this.#socket.destroy();
    }
  }

  #lose(): void {
    if (this.#closing) return;
    this.#closing = true;
    this.#socket.destroy();
    this.#options.onLost(
      new NetError('NET_UPLINK_LOST', `passt ended: ${this.#lastWords.join(' / ') || 'without a word'}`, {
        hint: 'Stop the VM and start it again.',
      }),
    );
  }
}

function passtArguments(
  { forward, guestAddress, gateway, hostLoopback = true }: PasstUplinkOptions,
  pidFile: string,
): string[] {
  const flag = { tcp: '--tcp-ports', udp: '--udp-ports' } as const;
  return [
    '--foreground',
    ...['--fd', '3', '--pid', pidFile],
    ...(guestAddress === undefined ? [] : ['--address', guestAddress]),
    ...(gateway === undefined ? [] : ['--gateway', gateway]),
    ...(hostLoopback ? [] : ['--no-map-gw']),
    // Loopback only: a guest is not offered to the network by a mistake in its specification.
    ...forward.flatMap((port) => [
      flag[port.protocol ?? 'tcp'],
      `127.0.0.1/${port.hostPort}:${port.guestPort}`,
    ]),
  ];
}

function passtMissing({ binary = 'passt' }: PasstUplinkOptions, cause: Error): NetError {
  return new NetError('NET_PASST_MISSING', `cannot start ${binary}: ${cause.message}`, {
    hint: 'Install the package passt, or use another uplink.',
    cause,
  });
}

function passtFailed({ forward }: PasstUplinkOptions, lastWords: readonly string[]): NetError {
  const words = lastWords.join(' / ') || 'without a word';
  const hostPorts = forward.map((port) => port.hostPort);
  if (/bind/i.test(words)) {
    return new NetError('NET_PORT_TAKEN', `passt cannot listen on 127.0.0.1: ${words}`, {
      hint: `Choose other host ports than ${hostPorts.join(', ')}, or end what listens on them (see \`ss -ltnp\`).`,
      facts: { hostPorts },
    });
  }
  return new NetError('NET_PASST_FAILED', `passt did not start: ${words}`, {
    hint: 'passt needs a network interface with a default route to copy the addresses from.',
    facts: { hostPorts },
  });
}
