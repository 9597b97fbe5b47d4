import { closeSync } from 'node:fs';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import { checked, libc } from './libc.ts';
import { LinuxError } from './linux-error.ts';

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const SOCKET_PATH_BYTES_MAX = 107;

/** What a service tells about itself: sd_notify(3). */
interface ServiceState {
  /** It has started, or has read its configuration again. */
  readonly READY?: 1;
  readonly RELOADING?: 1;
  readonly STOPPING?: 1;
  readonly WATCHDOG?: 1;
  /** One line for `systemctl status`. */
  readonly STATUS?: string;
  /** Of CLOCK_MONOTONIC, with RELOADING. */
  readonly MONOTONIC_USEC?: number;
}

type Env = Record<string, string | undefined>;

interface ServiceManagerOptions {
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Whoever started this process as a service and wants to know how it is doing: systemd, through the socket that
 * `NOTIFY_SOCKET` names. Without one everything here does nothing.
 */
export class ServiceManager implements Disposable {
  readonly #address: Uint8Array | undefined;
  readonly #watchdogMs: number | undefined;
  readonly #options: ServiceManagerOptions;
  #cancelBeat = () => {};

  private constructor(
    address: Uint8Array | undefined,
    watchdogMs: number | undefined,
    options: ServiceManagerOptions,
  ) {
    this.#address = address;
    this.#watchdogMs = watchdogMs;
    this.#options = options;
  }

  /** Takes the variables out of `env`: they are meant for this process, not for those that it starts. */
  static of(env: Env, options: ServiceManagerOptions): ServiceManager {
    const { NOTIFY_SOCKET: socket, WATCHDOG_USEC: usec, WATCHDOG_PID: pid } = env;
    delete env.NOTIFY_SOCKET;
    delete env.WATCHDOG_USEC;
    delete env.WATCHDOG_PID;
    const address = socket ? socketAddress(socket) : undefined;
    if (socket && address === undefined)
      options.log.warn('cannot speak to the service manager', { socket, reason: 'no unix socket' });
    const isForUs = pid === undefined || pid === String(process.pid);
    const watchdogMs = isForUs && /^[1-9]\d{0,15}$/.test(usec ?? '') ? Number(usec) / 1000 : undefined;
    return new ServiceManager(address, watchdogMs, options);
  }

  /** Whether there is one. */
  get isThere(): boolean {
    return this.#address !== undefined;
  }

  /** The service has started. From here on it shows that its event loop turns, if that is asked for. */
  ready(status: string): void {
    this.tell({ READY: 1, STATUS: status });
    this.#beat();
  }

  stopping(): void {
    this.tell({ STOPPING: 1 });
  }

  /** Tells in one message; what cannot be told is logged, for the service is more than what is said about it. */
  tell(state: ServiceState): void {
    if (this.#address === undefined) return;
    try {
      send(
        this.#address,
        Object.entries(state)
          .map(([key, value]) => `${key}=${oneLine(value)}`)
          .join('\n'),
      );
    } catch (thrown) {
      if (!(thrown instanceof LinuxError)) throw thrown;
      this.#options.log.warn('cannot speak to the service manager', { error: thrown.message });
    }
  }

  [Symbol.dispose](): void {
    this.#cancelBeat();
  }

  /** At half the time after which the manager would take this process for hung, as sd_watchdog_enabled(3) advises. */
  #beat(): void {
    if (this.#watchdogMs === undefined || this.#address === undefined) return;
    this.#cancelBeat = this.#options.clock.after(this.#watchdogMs / 2, () => {
      this.tell({ WATCHDOG: 1 });
      this.#beat();
    });
  }
}

function oneLine(value: string | number): string {
  return String(value).replaceAll(/\s+/g, ' ');
}

/** struct sockaddr_un with as many bytes as count: unix(7). Undefined for what is neither a path nor `@abstract`. */
function socketAddress(name: string): Uint8Array | undefined {
  const bytes = Buffer.from(name);
  if (!/^[/@]./.test(name) || bytes.length > SOCKET_PATH_BYTES_MAX) return undefined;
  const isAbstract = name.startsWith('@');
  if (isAbstract) bytes[0] = 0;
  const family = Buffer.alloc(2);
  family.writeUInt16LE(AF_UNIX);
  // A path ends with a zero; an abstract name is as long as the address says.
  return Buffer.concat(isAbstract ? [family, bytes] : [family, bytes, Buffer.alloc(1)]);
}

function send(address: Uint8Array, text: string): void {
  assert(text.length < 4096, 'what a service says of itself is short');
  const bytes = Buffer.from(text);
  const fd = checked('socket', libc.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  try {
    // Not waiting: a manager that does not read must not stop the service.
    const flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    checked('sendto', libc.sendto(fd, bytes, bytes.length, flags, address, address.length));
  } finally {
    closeSync(fd);
  }
}
