import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type DemoGuest, ensureDemoGuest } from './build.ts';

const DEADLINE_MS = 60_000;
const NETWORK = 'us.ip=10.0.2.15/24 us.gw=10.0.2.2';
let guest: DemoGuest;
const open: Machine[] = [];

beforeAll(async () => {
  guest = await ensureDemoGuest();
});
afterEach(async () => {
  for (const machine of open.splice(0).reverse()) await machine.close();
});

/** Text that arrives, and waiting for a piece of it. What was waited for is taken out. */
class Transcript {
  #text = '';
  #ended = false;
  #changed = Promise.withResolvers<void>();

  constructor(source: Readable) {
    source.on('data', (chunk: Buffer) => {
      this.#text += chunk.toString('latin1');
      this.#wake();
    });
    source.on('close', () => {
      this.#ended = true;
      this.#wake();
    });
  }

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  async take(pattern: RegExp): Promise<RegExpExecArray> {
    const late = AbortSignal.timeout(DEADLINE_MS);
    for (;;) {
      const match = pattern.exec(this.#text);
      if (match !== null) {
        this.#text = this.#text.slice(match.index + match[0].length);
        return match;
      }
      if (this.#ended || late.aborted) throw new Error(`no ${pattern} in: ${this.#text.slice(-2000)}`);
      const stop = Promise.withResolvers<void>();
      late.addEventListener('abort', () => stop.resolve(), { once: true });
      await Promise.race([this.#changed.promise, stop.promise]);
    }
  }
}

interface Machine {
  readonly console: Transcript;
  readonly qmp: Transcript;
  readonly folder: string;
  type(line: string): void;
  command(text: string): void;
  readonly exited: Promise<unknown>;
  close(): Promise<void>;
}

type QemuProcess = ChildProcessByStdio<Writable, Readable, null>;

async function boot(options: { initrd: string; cmdline?: string; devices?: string[] }): Promise<Machine> {
  const folder = mkdtempSync(join(tmpdir(), 'demo-'));
  const server = createServer().listen(join(folder, 'qmp'));
  await once(server, 'listening');
  const connected = once(server, 'connection') as Promise<[Socket]>;
  const args = [
    ...[
      '-nodefaults',
      '-no-user-config',
      '-display',
      'none',
      '-vga',
      'none',
      '-machine',
      'q35',
      '-accel',
      'tcg',
    ],
    ...['-m', '256', '-serial', 'stdio', '-qmp', `unix:${join(folder, 'qmp')}`],
    ...['-action', 'panic=pause', '-device', 'pvpanic', ...(options.devices ?? [])],
    ...[
      '-kernel',
      guest.kernel,
      '-initrd',
      options.initrd,
      '-append',
      `${guest.cmdline} ${options.cmdline ?? ''}`,
    ],
  ];
  const qemu: QemuProcess = spawn('qemu-system-x86_64', args, {
    cwd: folder,
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const exited = once(qemu, 'exit');
  const [socket] = await connected;
  server.close();
  const machine: Machine = {
    folder,
    exited,
    console: new Transcript(qemu.stdout),
    qmp: new Transcript(socket),
    type: (line) => qemu.stdin.write(`${line}\n`),
    command: (text) => socket.write(`${text}\n`),
    close: async () => {
      qemu.kill('SIGKILL');
      await exited;
      socket.destroy();
      rmSync(folder, { recursive: true });
    },
  };
  open.push(machine);
  await machine.qmp.take(/"QMP"/);
  machine.command('{"execute": "qmp_capabilities"}');
  await machine.qmp.take(/"return"/);
  return machine;
}

function bootDemo(options: { cmdline?: string } = {}): Promise<Machine> {
  return boot({
    initrd: guest.initrd,
    cmdline: `${NETWORK} ${options.cmdline ?? ''}`,
    devices: [
      ...['-netdev', 'user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:6379'],
      ...['-device', 'virtio-net-pci,netdev=net,romfile=', '-device', 'virtio-rng-pci'],
      ...['-chardev', 'socket,id=agent,path=agent,server=on,wait=off', '-device', 'virtio-serial-pci'],
      ...['-device', 'virtserialport,chardev=agent,name=org.qemu.guest_agent.0'],
    ],
  });
}

/** The guest has booted, and its shell reads. What is typed before that the shell that begins may throw away. */
async function untilPrompt(machine: Machine): Promise<void> {
  await machine.console.take(new RegExp(`${guest.readyMarker}[\\s\\S]*/ # `));
}

async function redisPort(machine: Machine): Promise<number> {
  machine.command('{"execute": "human-monitor-command", "arguments": {"command-line": "info usernet"}}');
  const [, port] = await machine.qmp.take(/HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)/);
  return Number(port);
}

/** Sends `request` on a new connection, and returns what answers the pattern. */
async function ask(
  address: { path: string } | { port: number; host: string },
  request: string,
  answer: RegExp,
): Promise<RegExpExecArray> {
  const socket = connect(address);
  try {
    const transcript = new Transcript(socket);
    socket.write(request, 'latin1');
    return await transcript.take(answer);
  } finally {
    socket.destroy();
  }
}

describe('the demo guest', () => {
  it('serves Redis and a guest agent that sets its clock, and survives a reboot', async () => {
    const machine = await bootDemo();
    await untilPrompt(machine);
    const redis = { host: '127.0.0.1', port: await redisPort(machine) };
    await ask(redis, 'PING\r\n', /^\+PONG\r\n/);

    // A new connection for each: hosts come and go.
    const agent = { path: join(machine.folder, 'agent') };
    await ask(agent, '\xff{"execute":"guest-sync-delimited","arguments":{"id":1}}\n', /\xff{"return": 1}\n/);
    await ask(agent, '{"execute":"guest-ping"}\n', /^{"return": {}}\n/);
    await ask(
      agent,
      '{"execute":"guest-set-time","arguments":{"time":1000000000500000000}}\n',
      /^{"return": {}}\n/,
    );
    await ask(agent, '{"execute":"guest-get-time"}\n', /^{"return": 10000000[0-5]\d\d{9}}\n/);
    await ask(redis, 'TIME\r\n', /^\*2\r\n\$10\r\n10000000[0-5]\d\r\n/);

    machine.type('reboot -f');
    await machine.qmp.take(/"RESET"/);
    await machine.console.take(new RegExp(guest.readyMarker));
    await ask(redis, 'PING\r\n', /^\+PONG\r\n/);
  });

  it('tells the host of a panic', async () => {
    const machine = await bootDemo();
    await untilPrompt(machine);
    machine.type('echo c > /proc/sysrq-trigger');
    await machine.qmp.take(/"GUEST_PANICKED"/);
  });

  it('starts a shell, Redis and the agent again when they end, writes memory on request, and powers off', async () => {
    const machine = await bootDemo({ cmdline: 'us.writer=64:1' });
    await untilPrompt(machine);
    machine.type('cat /proc/$(pidof memory-writer)/cmdline | tr "\\0" " "; echo');
    await machine.console.take(/\nmemory-writer 64 1 \r\n/);
    machine.type('kill -9 $(pidof redis-server) $(pidof agent); exit');
    // Each shell says its name as it begins. A prompt alone may be that of the one that ends.
    await machine.console.take(/BusyBox v[\s\S]*\/ # /);
    machine.type('until pidof redis-server && pidof agent; do usleep 100000; done; echo bo""th');
    await machine.console.take(/\nboth\r\n/);
    machine.type('poweroff -f');
    await machine.qmp.take(/"SHUTDOWN"/);
    await machine.exited;
  });

  it('comes up without a network card and without an agent port', async () => {
    const machine = await boot({ initrd: guest.initrd, cmdline: NETWORK });
    await machine.console.take(new RegExp(guest.readyMarker));
  });

  it('has a probe that says that it is alive and powers off', async () => {
    const machine = await boot({ initrd: guest.probeInitrd });
    await machine.console.take(new RegExp(guest.probeMarker));
    await machine.exited;
  });
});

afterAll(() => expect(open).toEqual([]));
