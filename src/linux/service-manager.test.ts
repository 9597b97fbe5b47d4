import { closeSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import koffi from 'koffi';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { type Logger, silentLogger } from '../base/logger.ts';
import { checked, lastErrno, libc } from './libc.ts';
import { ServiceManager } from './service-manager.ts';

const bind = koffi.load('libc.so.6').func('bind', 'int', ['int', 'void *', 'uint']);

/** The manager's end: a real datagram socket. */
class Inbox implements Disposable {
  readonly #fd = checked('socket', libc.socket(1, 2 | 0o2000000 | 0o4000, 0));

  constructor(name: string) {
    const path = Buffer.from(name.replace(/^@/, '\0'));
    checked('bind', bind(this.#fd, Buffer.concat([Buffer.from([1, 0]), path]), 2 + path.length));
  }

  /** The next message; undefined when none lies there. */
  take(): string | undefined {
    const bytes = new Uint8Array(4096);
    const count = libc.read(this.#fd, bytes, bytes.length);
    if (count === -1) expect(lastErrno()).toBe('EAGAIN');
    return count === -1 ? undefined : Buffer.from(bytes.subarray(0, count)).toString();
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

/** Time moves when a test says so. */
class ManualClock {
  readonly clock = { ...systemClock, after: (ms: number, task: () => void) => this.#after(ms, task) };
  #due: { ms: number; task: () => void } | undefined;

  #after(ms: number, task: () => void): () => void {
    const mine = { ms, task };
    this.#due = mine;
    return () => {
      if (this.#due === mine) this.#due = undefined;
    };
  }

  /** Lets the next task come; says after how long it was to come. */
  next(): number | undefined {
    const due = this.#due;
    this.#due = undefined;
    due?.task();
    return due?.ms;
  }
}

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-notify-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

function managerAt(
  socket: string | undefined,
  more: Record<string, string> = {},
  log: Logger = silentLogger,
) {
  const time = new ManualClock();
  const env: Record<string, string | undefined> = { NOTIFY_SOCKET: socket, ...more, PATH: '/bin' };
  const manager = ServiceManager.of(env, { clock: time.clock, log });
  return { manager, time, env };
}

describe('a service manager', () => {
  it.each([
    ['at a path', () => join(folder, 'notify')],
    ['at an abstract name', () => `@us-notify-${process.pid}`],
  ])('%s is told when the service is ready and when it stops', (_, name) => {
    using inbox = new Inbox(name());
    const { manager } = managerAt(name());
    expect(manager.isThere).toBe(true);
    expect(inbox.take()).toBeUndefined();
    manager.ready('3 VMs');
    expect(inbox.take()).toBe('READY=1\nSTATUS=3 VMs');
    manager.stopping();
    expect(inbox.take()).toBe('STOPPING=1');
    manager.tell({ STATUS: 'two\nREADY=1' });
    expect(inbox.take()).toBe('STATUS=two READY=1');
    expect(inbox.take()).toBeUndefined();
  });

  it('is shown signs of life at half the time that it waits for them, from the start to the end', () => {
    const name = join(folder, 'notify');
    using inbox = new Inbox(name);
    const { manager, time } = managerAt(name, { WATCHDOG_USEC: '3000000', WATCHDOG_PID: `${process.pid}` });
    expect(time.next()).toBeUndefined();
    manager.ready('');
    inbox.take();
    for (let beat = 0; beat < 3; beat += 1) {
      expect(time.next()).toBe(1500);
      expect(inbox.take()).toBe('WATCHDOG=1');
    }
    manager[Symbol.dispose]();
    expect(time.next()).toBeUndefined();
  });

  it.each([
    ['when it asks for none', {}],
    ['when it asks another process', { WATCHDOG_USEC: '3000000', WATCHDOG_PID: '1' }],
    ['when what it asks for makes no sense', { WATCHDOG_USEC: '0' }],
  ])('is shown no signs of life %s', (_, env) => {
    const name = join(folder, 'notify');
    using _inbox = new Inbox(name);
    const { manager, time } = managerAt(name, env);
    manager.ready('');
    expect(time.next()).toBeUndefined();
  });

  it('is not known to the processes that the service starts', () => {
    const { env } = managerAt('/run/none', { WATCHDOG_USEC: '1', WATCHDOG_PID: '1' });
    expect(env).toEqual({ PATH: '/bin' });
  });

  it.each([undefined, '', 'relative', 'vsock:2:1234', `/${'x'.repeat(120)}`])(
    'that is %j is none',
    (socket) => {
      const { manager } = managerAt(socket);
      expect(manager.isThere).toBe(false);
      manager.ready('');
    },
  );

  it('that is gone does not end the service, which says so', () => {
    const said: string[] = [];
    const warn = (message: string, facts = {}) => void said.push(message + JSON.stringify(facts));
    const { manager } = managerAt(join(folder, 'none'), {}, { ...silentLogger, warn });
    manager.ready('');
    expect(said).toEqual([expect.stringContaining('ENOENT')]);
  });
});
