import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { createConnection, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Clock, systemClock } from '../base/clock.ts';
import { silentLogger } from '../base/logger.ts';
import { SampleFeed, type SampleSubscription, type SubscribeOptions } from '../telemetry/sample-feed.ts';
import { ControlClient } from './control-client.ts';
import { ControlServer } from './control-server.ts';
import type { FailoverReport } from './failover-report.ts';
import type { ConsoleSession, ConsoleWatcher, KeeperControl, StopOrder } from './keeper-control.ts';
import { KeeperError } from './keeper-error.ts';
import type { LimitsOrder, LimitsStatus } from './limits-status.ts';
import type { TelemetryStatus } from './telemetry-status.ts';
import type { VmEvent } from './vm-event.ts';
import type { VmMetrics } from './vm-metrics.ts';
import type { VmStatus } from './vm-status.ts';

const figures = {
  recent: { count: 3, p50: 1, p99: 2, max: 2 },
  histogram: { bounds: [1, 2], counts: [2, 1, 0], sum: 3.5 },
};
const measured: VmMetrics = {
  phase: 'protected',
  upMs: 1000,
  memoryBytes: 4096,
  epochs: {
    ...{ committed: 7, open: 8, commits: 3, pauseMs: figures, commitMs: figures, dirtyPages: figures },
    ...{ pauseShare: 0.1, pauseShareMax: 0.3 },
  },
  shadowEnabled: true,
  shadow: { copiedShare: 1, lagMs: 12 },
  clock: { errorMs: -3, answeredAgoMs: 40, corrections: 2 },
  links: {
    ...{ heldItems: 1, heldBytes: 60, loggedItems: 0, loggedBytes: 0 },
    ...{ releasedItems: 9, replayedItems: 0, droppedItems: 0, refusedItems: 0 },
  },
  ...{ promotions: 1, restarts: 0, promoteMs: figures, outageMs: figures },
  ...{ detectMs: figures, fenceMs: figures, replyMs: figures },
};

/** Answers without a VM behind it: what is tested here is the wire. */
class ScriptedKeeper implements KeeperControl {
  callOffSnapshot = ({ path }: { path: string }) => void this.calledOff.push(path);
  snapshot = async ({ path }: { path: string }) => ({ path, epoch: 5, sizeBytes: 6, tookMs: 7, heldMs: 1 });

  readonly #events: VmEvent[] = [];
  readonly #listeners = new Set<(event: VmEvent) => void>();
  readonly calledOff: string[] = [];
  readonly stops: StopOrder[] = [];
  readonly traces: (string | undefined)[] = [];
  measured: unknown = measured;
  readonly typed: string[] = [];
  consoleClosed = false;
  promotion: () => Promise<void> = () => Promise.resolve();
  show: (bytes: Uint8Array) => void = () => {};

  status(): VmStatus {
    return { name: 'a', phase: 'alone' } as VmStatus;
  }
  metrics(): VmMetrics {
    return this.measured as VmMetrics;
  }
  publish(kind: string): void {
    const seq = this.#events.length + 1;
    const event = { seq, time: '1970-01-01T00:00:00.000Z', vm: 'a', kind, token: 1, epoch: 0, facts: {} };
    this.#events.push(event);
    for (const listener of this.#listeners) listener(event);
  }
  eventsSince(seq: number): readonly VmEvent[] {
    return this.#events.slice(seq);
  }
  onEvent(listener: (event: VmEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
  get listeners(): number {
    return this.#listeners.size;
  }
  readonly feed = new SampleFeed();
  intervalMs = 1000;
  telemetered: unknown;
  async telemetry({
    intervalMs = this.intervalMs,
  }: {
    intervalMs?: number | undefined;
  }): Promise<TelemetryStatus> {
    this.intervalMs = intervalMs;
    return (this.telemetered ?? {
      intervalMs,
      failing: ['disks'],
      last: null,
      profile: null,
    }) as TelemetryStatus;
  }
  ordered: LimitsOrder | undefined;
  limited: unknown;
  async limits(order: LimitsOrder): Promise<LimitsStatus> {
    this.ordered = order;
    return this.limited as LimitsStatus;
  }
  samples(options: SubscribeOptions): SampleSubscription {
    return this.feed.subscribe(options);
  }
  async place({ host }: { host: string | null }): Promise<void> {
    this.traces.push(`place ${host}`);
  }
  async promote(options?: { trace?: string | undefined }): Promise<void> {
    this.traces.push(options?.trace);
    await this.promotion();
  }
  async protect(): Promise<void> {
    this.publish('protect');
  }
  async unprotect(): Promise<void> {
    this.publish('unprotect');
  }
  async testFailover(): Promise<FailoverReport> {
    return { ok: true, epoch: 7 } as FailoverReport;
  }
  async stop(options: StopOrder): Promise<void> {
    this.stops.push(options);
  }
  openConsole({ onOutput }: ConsoleWatcher): ConsoleSession {
    onOutput(Buffer.from('scrollback '));
    this.show = onOutput;
    return {
      write: (bytes) => {
        this.typed.push(Buffer.from(bytes).toString());
        onOutput(Buffer.from(`echo ${Buffer.from(bytes).toString()}`));
        return true;
      },
      close: () => {
        this.consoleClosed = true;
      },
    };
  }
}

let folder: string;
let path: string;
let keeper: ScriptedKeeper;
let server: ControlServer;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'us-control-'));
  path = join(folder, 'control.sock');
  keeper = new ScriptedKeeper();
  server = await ControlServer.listen(path, { control: keeper, clock: systemClock, log: silentLogger });
});
afterEach(async () => {
  await server[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

const connect = () => ControlClient.connect(path, { vm: 'a', clock: systemClock });
const publish = (kind: string) => keeper.publish(kind);

const sample = (wallMs: number) => ({
  ...{
    vm: 'a',
    instanceId: 'one',
    wallMs,
    monotonicMs: 7,
    intervalMs: 1000,
    values: { 'cpu.usedCores': 0.5 },
  },
});

/** All that a raw client is answered until the server closes. */
async function answersTo(bytes: string | Uint8Array): Promise<unknown[]> {
  const socket = createConnection(path);
  socket.write(bytes);
  const answer = await text(socket);
  return answer
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

describe('the control socket', () => {
  it('belongs to its user alone', () => {
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  it('answers one request after the other on one connection', async () => {
    using client = await connect();
    expect((await client.status()).phase).toBe('alone');
    await client.promote();
    await client.stop({ graceful: true });
    expect(keeper.stops).toEqual([{ graceful: true, trace: undefined }]);
  });

  it('hands on the trace of the request that a promotion or an end is part of', async () => {
    using client = await connect();
    await client.promote({ trace: 'call-1:x' });
    await client.stop({ graceful: false, trace: 'call-2' });
    await client.place('b');
    await client.place(null);
    expect(keeper.traces).toEqual(['call-1:x', 'place b', 'place null']);
    expect(keeper.stops).toEqual([{ graceful: false, trace: 'call-2' }]);
  });

  it.each(['', 'two words', 'a\nb', '{}', 'x'.repeat(65), 7])('takes no trace such as %j', async (trace) => {
    const request = JSON.stringify({ id: 1, method: 'promote', trace });
    expect(await answersTo(`${request}\n`)).toEqual([
      expect.objectContaining({
        ok: false,
        error: expect.objectContaining({ code: 'KEEPER_REQUEST_INVALID' }),
      }),
    ]);
    expect(keeper.traces).toEqual([]);
  });

  it('tells what is measured, and an answer of another form counts as none', async () => {
    using client = await connect();
    expect(await client.metrics()).toEqual(measured);
    const spoilt: unknown[] = [
      { ...measured, phase: 'dreaming' },
      { ...measured, promotions: -1 },
      { ...measured, links: { ...measured.links, heldBytes: '60' } },
      { ...measured, outageMs: { ...figures, histogram: { bounds: [1, 2], counts: [1, 1], sum: 0 } } },
      { ...measured, outageMs: { ...figures, histogram: { bounds: [2, 1], counts: [1, 1, 0], sum: 0 } } },
      { ...measured, outageMs: { ...figures, histogram: { bounds: [], counts: [], sum: 0 } } },
      { ...measured, epochs: { ...measured.epochs, pauseShare: null } },
      null,
      [],
    ];
    for (const answer of spoilt) {
      keeper.measured = answer;
      await expect(client.metrics()).rejects.toMatchObject({ code: 'KEEPER_NO_ANSWER' });
    }
  });

  it('carries what is wanted of shadow and state, and the report of a test', async () => {
    using client = await connect();
    await client.protect();
    await client.unprotect();
    expect(keeper.eventsSince(0).map(({ kind }) => kind)).toEqual(['protect', 'unprotect']);
    expect(await client.testFailover()).toEqual({ ok: true, epoch: 7 });
    expect(await client.snapshot({ path: '/a' })).toMatchObject({ path: '/a', epoch: 5 });
    await client.callOffSnapshot('/a');
    expect(keeper.calledOff).toEqual(['/a']);
    await client.stop({ graceful: true, termination: 'suspend' });
    expect(keeper.stops).toEqual([{ graceful: true, termination: 'suspend' }]);
  });

  it('hands on the code and the hint of an error, whatever module it is from', async () => {
    keeper.promotion = async () => {
      throw new KeeperError('KEEPER_NOT_PROTECTED', 'not yet', { hint: 'wait' });
    };
    using client = await connect();
    await expect(client.promote()).rejects.toMatchObject({ code: 'KEEPER_NOT_PROTECTED', hint: 'wait' });
    keeper.promotion = async () => {
      throw new TypeError('oops');
    };
    await expect(client.promote()).rejects.toMatchObject({ code: 'KEEPER_INTERNAL', message: 'oops' });
    expect((await client.status()).name).toBe('a');
  });

  it('sends the events so far and ends', async () => {
    for (const kind of ['one', 'two', 'three']) publish(kind);
    using client = await connect();
    const kinds: string[] = [];
    for await (const event of client.events({ since: 1, follow: false })) kinds.push(event.kind);
    expect(kinds).toEqual(['two', 'three']);
    expect((await client.status()).name).toBe('a');
  });

  it('follows events in order until the keeper ends', async () => {
    publish('one');
    using client = await connect();
    const events = client.events({ since: 0, follow: true });
    expect((await events.next()).value).toMatchObject({ kind: 'one' });
    publish('two');
    publish('three');
    expect((await events.next()).value).toMatchObject({ kind: 'two' });
    await server[Symbol.asyncDispose]();
    expect((await events.next()).value).toMatchObject({ kind: 'three' });
    expect((await events.next()).done).toBe(true);
    expect(keeper.listeners).toBe(0);
  });

  it('sends a long journal whole to a reader that takes its time', async () => {
    for (let n = 0; n < 4096; n += 1) publish(`event-${'x'.repeat(500)}`);
    using client = await connect();
    let last = 0;
    for await (const event of client.events({ since: 0, follow: false })) {
      expect(event.seq).toBe(last + 1);
      last = event.seq;
      await new Promise(setImmediate);
    }
    expect(last).toBe(4096);
  });

  it('tells how a VM is measured, changes how often, and an answer of another form counts as none', async () => {
    using client = await connect();
    const status = { intervalMs: 1000, failing: ['disks'], last: null, profile: null };
    expect(await client.telemetry()).toEqual(status);
    expect(await client.telemetry({ intervalMs: 250 })).toEqual({ ...status, intervalMs: 250 });
    expect(await client.telemetry()).toMatchObject({ intervalMs: 250 });
    for (const answer of [
      [],
      { ...status, intervalMs: '1' },
      { ...status, last: { ...sample(1), values: { a: null } } },
    ]) {
      keeper.telemetered = answer;
      await expect(client.telemetry()).rejects.toMatchObject({ code: 'KEEPER_NO_ANSWER' });
    }
  });

  it('sets limits, and an answer of another form counts as none', async () => {
    using client = await connect();
    const free = { wanted: null, inForce: null };
    const limited = { cpuMillicores: free, diskBytesPerSecond: free, netBytesPerSecond: free };
    const problem = { code: 'KEEPER_LIMIT_IMPOSSIBLE', message: 'no balloon' };
    keeper.limited = { ...limited, memoryReadyBytes: free, memoryBytes: { ...free, problem } };
    expect(await client.limits()).toEqual(keeper.limited);
    expect(keeper.ordered).toEqual({});
    await client.limits({ cpuMillicores: 300, netBytesPerSecond: null });
    expect(keeper.ordered).toEqual({ cpuMillicores: 300, netBytesPerSecond: null });
    for (const answer of [null, limited, { ...limited, memoryBytes: { wanted: null, inForce: -1 } }]) {
      keeper.limited = answer;
      await expect(client.limits()).rejects.toMatchObject({ code: 'KEEPER_NO_ANSWER' });
    }
  });

  it.each([99, 60_001, '1s', null, -1, Number.NaN])('takes no interval such as %j', async (intervalMs) => {
    const request = JSON.stringify({ id: 1, method: 'telemetry', params: { intervalMs } });
    expect(await answersTo(`${request}\n`)).toMatchObject([{ error: { code: 'KEEPER_REQUEST_INVALID' } }]);
    expect(keeper.intervalMs).toBe(1000);
  });

  it('pushes samples until the keeper ends', async () => {
    using client = await connect();
    const samples = client.samples();
    const first = samples.next();
    await expect.poll(() => keeper.feed.subscribers).toBe(1);
    keeper.feed.publish(sample(1));
    keeper.feed.publish(sample(2));
    expect((await first).value).toEqual({ sample: sample(1), lost: 0 });
    expect((await samples.next()).value).toEqual({ sample: sample(2), lost: 0 });
    await server[Symbol.asyncDispose]();
    expect((await samples.next()).done).toBe(true);
    expect(keeper.feed.subscribers).toBe(0);
  });

  it('lets a slow reader of samples lose the oldest and tells it how many, and forgets one that went away', async () => {
    const socket = createConnection(path);
    socket.write('{"id":1,"method":"samples"}\n');
    await expect.poll(() => keeper.feed.subscribers).toBe(1);
    const many = 20_000;
    for (let wallMs = 1; wallMs <= many; wallMs += 1) keeper.feed.publish(sample(wallMs));
    let told = '';
    let seen = 0;
    let lost = 0;
    for await (const chunk of socket) {
      told += chunk;
      const lines = told.split('\n');
      told = lines.pop() ?? '';
      for (const line of lines) {
        const answer = JSON.parse(line);
        seen += 1;
        lost += answer.lost;
        if (answer.sample.wallMs === many) socket.destroy();
        else expect(answer.sample.wallMs).toBe(seen + lost);
      }
      if (socket.destroyed) break;
    }
    expect(lost).toBeGreaterThan(0);
    expect(seen + lost).toBe(many);
    await expect.poll(() => keeper.feed.subscribers).toBe(0);
  });

  it('forgets a follower that went away', async () => {
    const socket = createConnection(path);
    socket.write('{"id":1,"method":"events","params":{"follow":true}}\n');
    publish('one');
    await once(socket, 'data');
    socket.destroy();
    await expect.poll(() => keeper.listeners).toBe(0);
  });

  it('joins the console with raw bytes both ways, the scrollback after the answer', async () => {
    const socket = createConnection(path);
    // In one piece with the request: what follows its line belongs to the console.
    socket.write('{"id":7,"method":"console"}\nls');
    let seen = '';
    for await (const chunk of socket) {
      seen += chunk;
      if (seen.includes('echo ls')) break;
    }
    expect(seen).toBe('{"id":7,"ok":true,"result":null}\nscrollback echo ls');
    await expect.poll(() => keeper.consoleClosed).toBe(true);
  });

  it('gives the client what the console showed at once', async () => {
    const client = await connect();
    const console = await client.console();
    console.write('x');
    let seen = '';
    for await (const chunk of console) {
      seen += chunk;
      if (seen.includes('echo x')) break;
    }
    expect(seen).toBe('scrollback echo x');
  });

  it('drops a console reader that does not read, however much the guest says', async () => {
    const client = await connect();
    await client.console();
    for (let n = 0; n < 64; n += 1) keeper.show(Buffer.alloc(64 * 1024));
    await expect.poll(() => keeper.consoleClosed).toBe(true);
    client[Symbol.dispose]();
  });

  it('answers a client that closed its sending side', async () => {
    const socket = createConnection({ path, allowHalfOpen: true });
    socket.end('{"id":1,"method":"status"}\n');
    expect(JSON.parse(await text(socket))).toMatchObject({ id: 1, ok: true });
  });

  it.each<[string, string | Uint8Array]>([
    ['garbage', 'hello\n'],
    ['bytes that are no text', Buffer.from([0, 255, 254, 10])],
    ['an unknown method', '{"id":1,"method":"format-disk"}\n'],
    ['a line without end', Buffer.alloc(8192, 'a')],
    ['two requests at once', '{"id":1,"method":"promote"}\n{"id":2,"method":"status"}\n'],
    ['nesting without end', `${'['.repeat(4000)}\n`],
  ])('refuses %s and closes the connection', async (_, bytes) => {
    keeper.promotion = () => new Promise(() => {});
    expect(await answersTo(bytes)).toEqual([
      { id: null, ok: false, error: expect.objectContaining({ code: 'KEEPER_REQUEST_INVALID' }) },
    ]);
    using client = await connect();
    expect((await client.status()).name).toBe('a');
  });
});

describe('the control client', () => {
  it('says that no VM runs where nobody listens', async () => {
    const options = { vm: 'b', clock: systemClock };
    await expect(ControlClient.connect(join(folder, 'none'), options)).rejects.toMatchObject({
      code: 'KEEPER_NOT_RUNNING',
    });
  });

  it.each<[string, (socket: Socket) => void]>([
    ['closes', (socket) => socket.end()],
    ['answers garbage', (socket) => socket.write('hello\n')],
    ['answers something else', (socket) => socket.write('{"id":99,"ok":true,"result":null}\n')],
    ['answers without end', (socket) => socket.write(Buffer.alloc(2 * 1024 * 1024, 'x'))],
  ])('gives up on a keeper that %s', async (_, respond) => {
    const other = join(folder, 'other.sock');
    const peers: Socket[] = [];
    const strange = createServer((socket) => {
      peers.push(socket);
      socket.on('error', () => {}).once('data', () => respond(socket));
    }).listen(other);
    try {
      using client = await ControlClient.connect(other, { vm: 'a', clock: systemClock });
      await expect(client.status()).rejects.toMatchObject({ code: 'KEEPER_NO_ANSWER' });
    } finally {
      for (const peer of peers) peer.destroy();
      strange.close();
    }
  });

  it('gives up on a keeper that says nothing', async () => {
    const silent = createServer(() => {}).listen(join(folder, 'silent.sock'));
    const late: (() => void)[] = [];
    const clock: Clock = {
      ...systemClock,
      after: (_, task) => {
        late.push(task);
        return () => late.splice(late.indexOf(task), 1);
      },
    };
    try {
      using client = await ControlClient.connect(join(folder, 'silent.sock'), { vm: 'a', clock });
      const status = client.status();
      for (const task of late) task();
      await expect(status).rejects.toMatchObject({ code: 'KEEPER_NO_ANSWER' });
    } finally {
      silent.close();
    }
  });
});
