import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { MachineFixture } from './machine-fixture.ts';
import { type ConnectOptions, QmpClient } from './qmp-client.ts';
import type { QmpEvent } from './qmp-events.ts';

const failing = (code: string, facts = {}) => expect.objectContaining({ code, ...facts });

describe('with a real QEMU', () => {
  let fixture: MachineFixture;
  beforeEach(() => {
    fixture = new MachineFixture();
  });
  afterEach(() => fixture[Symbol.asyncDispose]());

  test('a command that QEMU refuses is told apart from a QEMU that is gone', async () => {
    const { machine } = await fixture.start();
    await expect(machine.qmp.execute('no-such-command')).rejects.toThrow(
      failing('QMP_COMMAND_FAILED', { facts: expect.objectContaining({ class: 'CommandNotFound' }) }),
    );
    expect(await machine.status()).toEqual({ running: false, status: 'prelaunch' });
  });

  test('a QEMU that is stopped is reported as hanging, and can be spoken with when it goes on', async () => {
    const { machine } = await fixture.start();
    machine.process.signal('SIGSTOP');
    await expect(machine.qmp.execute('query-status', undefined, { deadlineMs: 100 })).rejects.toThrow(
      failing('QMP_TIMEOUT'),
    );
    expect(machine.qmp.closed).toBeUndefined();
    machine.process.signal('SIGCONT');
    expect(await machine.status()).toMatchObject({ status: 'prelaunch' });
  });

  test('a QEMU that is killed ends the connection and every command that waits', async () => {
    const { machine } = await fixture.start();
    machine.process.signal('SIGSTOP');
    const waiting = [machine.status(), machine.cont()];
    const closed = new Promise((resolve) => machine.qmp.onClosed(resolve));
    const outcomes = Promise.allSettled(waiting);
    await machine.process.kill();
    expect(await outcomes).toEqual(
      waiting.map(() => ({ status: 'rejected', reason: failing('QMP_DISCONNECTED') })),
    );
    expect(await closed).toEqual(failing('QMP_DISCONNECTED'));
    await expect(machine.status()).rejects.toThrow(failing('QMP_DISCONNECTED'));
  });

  test('commands that are issued together are answered in their order', async () => {
    const { machine } = await fixture.start();
    const order: string[] = [];
    const ask = async (command: string) => {
      const answer = await machine.qmp.execute(command);
      order.push(command);
      return answer;
    };
    const [, , status] = await Promise.all(
      machine.qmp.batch(() => ['cont', 'stop', 'query-status'].map(ask)),
    );
    expect(status).toMatchObject({ status: 'paused' });
    expect(order).toEqual(['cont', 'stop', 'query-status']);
  });

  describe('that was in the middle of a command when the connection before ended', () => {
    /** QEMU waits until somebody reads what it saves; then it answers whoever is there. */
    async function connectedMeanwhile(options: Partial<ConnectOptions>) {
      const { machine, paths } = await fixture.start();
      await machine.cont();
      const pipe = join(fixture.folder, 'pipe');
      execFileSync('mkfifo', [pipe]);
      const begun = new Promise((resolve) => machine.qmp.on('STOP', resolve));
      machine.saveDeviceState(pipe).catch(() => {});
      await begun;
      machine.qmp[Symbol.dispose]();
      const greeted = Promise.withResolvers<void>();
      const log = (line: string) => line.includes('"QMP"') && greeted.resolve();
      const client = QmpClient.connect(paths.qmp, {
        deadlineMs: 10_000,
        clock: systemClock,
        log,
        ...options,
      });
      client.catch(() => {});
      await greeted.promise;
      await readFile(pipe);
      return client;
    }

    test('its answer is passed over by who was told that there was another connection', async () => {
      using client = await connectedMeanwhile({ afterAnother: true });
      expect(await client.execute('query-status')).toMatchObject({ status: 'running' });
    });

    test('its answer is nonsense for who was not (control)', async () => {
      await expect(connectedMeanwhile({})).rejects.toThrow(failing('QMP_GARBAGE'));
    });
  });

  test('events come with their data until the listener is taken away', async () => {
    const { machine } = await fixture.start();
    const events: QmpEvent[] = [];
    const forget = machine.qmp.onEvent((event) => events.push(event));
    const reset = new Promise((resolve) => machine.qmp.on('RESET', resolve));
    const startMs = Date.now() - 1000;
    await machine.reset();
    expect(await reset).toEqual({ guest: false, reason: 'host-qmp-system-reset' });
    forget();
    await machine.cont();
    expect(events.map(({ name }) => name)).toEqual(['RESET']);
    expect(events[0]?.wallMs).toBeGreaterThan(startMs);
    expect(machine.qmp.lastHeardMs).toBeLessThanOrEqual(systemClock.nowMs());
  });

  test('the log holds what was said, but not the commands of every epoch and their events', async () => {
    const { machine, paths } = await fixture.start();
    await machine.cont();
    await machine.stopAndSave(paths.deviceState).saved;
    await machine.qmp.execute('cont');
    const said = fixture.qmpLog.map((line) => JSON.parse(line));
    expect(
      said.map(({ direction, execute, event }) => `${direction} ${execute ?? event ?? ''}`.trim()),
    ).toEqual(['<', '> qmp_capabilities', '<', '> cont', '< RESUME', '<']);
    expect(said[0].QMP.version.qemu.major).toBeGreaterThanOrEqual(7);
  });

  test('a command that is part of a request carries its trace in the log, there and back', async () => {
    const { machine } = await fixture.start();
    await machine.cont({ trace: 'call-7:x.y_z' });
    const { running } = await machine.status({ trace: 'call-7:x.y_z' });
    expect(running).toBe(true);
    const said = fixture.qmpLog.map((line) => JSON.parse(line));
    const traced = said.filter(({ id }) => String(id).endsWith('/call-7:x.y_z'));
    expect(traced.map(({ direction, execute }) => `${direction} ${execute ?? ''}`.trim())).toEqual([
      '> cont',
      '<',
      '> query-status',
      '<',
    ]);
    expect(traced[0].id).toBe(traced[1].id);
  });
});

describe('with a peer that is no QEMU', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'us-qmp-'));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  /** Connects to a peer that behaves as `peer` says. */
  async function connect(peer: (socket: Socket) => void, options: Partial<ConnectOptions> = {}) {
    await using owned = new AsyncDisposableStack();
    const path = join(folder, 'qmp');
    const sockets: Socket[] = [];
    const server = owned.use(
      createServer((socket) => {
        sockets.push(socket.on('error', () => {}));
        peer(socket);
      }),
    );
    owned.defer(() => {
      for (const socket of sockets) socket.destroy();
    });
    server.listen(path);
    await once(server, 'listening');
    const client = await QmpClient.connect(path, { deadlineMs: 5000, clock: systemClock, ...options });
    return await client.execute('query-status');
  }

  /** Speaks QMP until the first command after negotiation, which it answers with `answer`. */
  const answering = (answer: string) => (socket: Socket) => {
    socket.write('{"QMP": {}}\r\n');
    socket.on('data', (chunk) => {
      const { execute, id } = JSON.parse(String(chunk));
      socket.write(execute === 'qmp_capabilities' ? `{"return": {}, "id": ${id}}\n` : answer);
    });
  };

  test('noise instead of a greeting is garbage', async () => {
    await expect(connect((socket) => socket.write('220 mail.example ESMTP\r\n'))).rejects.toThrow(
      failing('QMP_GARBAGE'),
    );
  });

  test.each([
    ['an answer to a command that was never given', '{"return": {}, "id": 99}\n'],
    ['an answer without id', '{"return": {}}\n'],
    ['an answer with the trace of another request', '{"return": {}, "id": "2/other"}\n'],
    ['an answer with an id that is none', '{"return": {}, "id": "two"}\n'],
    ['a second greeting', '{"QMP": {}}\n'],
    ['an object of no known kind', '{"hello": 1}\n'],
  ])('%s is garbage', async (_, answer) => {
    await expect(connect(answering(answer))).rejects.toThrow(failing('QMP_GARBAGE'));
  });

  test('a peer that hangs up is told apart from one that is silent', async () => {
    await expect(connect((socket) => socket.end())).rejects.toThrow(failing('QMP_DISCONNECTED'));
    await expect(connect(() => {}, { deadlineMs: 50 })).rejects.toThrow(failing('QMP_TIMEOUT'));
  });

  test('a socket on which nobody listens is given up at the deadline', async () => {
    const attempt = QmpClient.connect(join(folder, 'none'), { deadlineMs: 30, clock: systemClock });
    await expect(attempt).rejects.toThrow(failing('QMP_TIMEOUT'));
  });

  test('an attempt to connect ends at once when its signal is raised', async () => {
    const signal = AbortSignal.abort();
    const attempt = QmpClient.connect(join(folder, 'none'), {
      deadlineMs: 600_000,
      clock: systemClock,
      signal,
    });
    await expect(attempt).rejects.toThrow(failing('QMP_DISCONNECTED'));
  });
});
