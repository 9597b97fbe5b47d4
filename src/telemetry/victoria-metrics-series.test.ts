import { once } from 'node:events';
import { chmodSync, mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { pastHourMs } from '../../test/kit/reference-series.ts';
import { sample } from '../../test/kit/series-sample.ts';
import { serverTls, VictoriaMetrics } from '../../test/kit/victoria-metrics.ts';
import { systemClock as clock } from '../base/clock.ts';
import { MIB } from '../base/units.ts';
import { HOUR_MS, SECOND_MS } from './buckets.ts';
import { packBatch } from './sample-batch.ts';
import { type VictoriaMetricsOptions, VictoriaMetricsSeries } from './victoria-metrics-series.ts';

const DAY_MS = 24 * HOUR_MS;
const RETENTION = { '1s': DAY_MS, '1m': 2 * DAY_MS, '1h': 3 * DAY_MS };
/** Nothing listens there. */
const NOWHERE = 'http://127.0.0.1:9';
const beginMs = pastHourMs(Date.now());

let folder: string;
let store: VictoriaMetricsSeries | undefined;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-waiting-'));
});
afterEach(async () => {
  await store?.close();
  store = undefined;
  rmSync(folder, { recursive: true });
});

type Change = Partial<Omit<VictoriaMetricsOptions, 'access'>> & Partial<VictoriaMetricsOptions['access']>;

function opened(url: string, { ca, credentials, callDeadlineMs = 5_000, ...change }: Change = {}) {
  store = new VictoriaMetricsSeries({
    access: { url, ca, credentials, callDeadlineMs },
    ...{ directory: join(folder, 'waiting'), maxBytes: 64 * MIB, retention: RETENTION },
    ...{ keptMs: 60_000, checkEveryMs: 0, clock },
    ...change,
  });
  return store;
}

/** One sample for each second from `first` on. */
function append(to: VictoriaMetricsSeries, first: number, count = 1): void {
  for (let index = first; index < first + count; index += 1)
    to.append(packBatch([sample('vm', beginMs + index * SECOND_MS, { m: index })]));
}

async function indices(of: VictoriaMetricsSeries): Promise<number[]> {
  const query = {
    vm: 'vm',
    metric: 'm',
    fromMs: beginMs,
    toMs: beginMs + 2 * HOUR_MS,
    resolution: '1s',
  } as const;
  return (await of.range(query)).map(({ mean }) => mean);
}

const upTo = (count: number) => Array.from({ length: count }, (_, index) => index);

/** Upkeep until all is sent. */
async function untilSent(of: VictoriaMetricsSeries): Promise<void> {
  for (;;) {
    const againMs = await of.upkeep();
    if (againMs > 0 && (await waiting(of)) === 0) return;
    await clock.sleep(againMs);
  }
}

async function waiting(of: VictoriaMetricsSeries): Promise<number> {
  return (await of.usage()).waiting;
}

describe('what VictoriaMetrics is sent', () => {
  let server: VictoriaMetrics;
  beforeEach(async () => {
    server = await VictoriaMetrics.start();
  });
  afterEach(async () => await server?.[Symbol.asyncDispose]());

  it('waits on disk while it is away, also over the death of ours, and arrives afterwards', async () => {
    await server.kill();
    let mine = opened(server.url);
    append(mine, 0, 20);
    await mine.upkeep();
    await expect(indices(mine)).rejects.toMatchObject({ code: 'TELEMETRY_STORE_AWAY' });
    expect(await mine.usage()).toMatchObject({ waiting: 20, dropped: 0, series: undefined });
    expect((await mine.usage()).trouble).toContain('does not answer');
    await mine.close();
    mine = opened(server.url);
    append(mine, 20, 10);
    expect(await waiting(mine)).toBe(30);
    await server.run();
    await untilSent(mine);
    expect(await indices(mine)).toEqual(upTo(30));
    expect(await mine.usage()).toMatchObject({ waiting: 0, dropped: 0, series: 1, trouble: undefined });
  });

  it('is sent again to one that was killed after it had acknowledged it', async () => {
    const mine = opened(server.url);
    append(mine, 0, 50);
    while ((await mine.upkeep()) === 0);
    append(mine, 50, 50);
    while ((await mine.upkeep()) === 0);
    await server.kill();
    await server.run();
    await untilSent(mine);
    expect(await indices(mine)).toEqual(upTo(100));
  });

  it('would be lost there if it were not kept here for a while', async () => {
    const mine = opened(server.url, { keptMs: 0 });
    append(mine, 0, 50);
    for (let round = 0; round < 5; round += 1) await mine.upkeep();
    await server.kill();
    await server.run();
    append(mine, 50, 50);
    expect(await indices(mine)).not.toEqual(upTo(100));
  });

  it('is all there when it is killed and started again under load, time after time', async () => {
    const mine = opened(server.url);
    let [count, isOver] = [0, false];
    const load = async () => {
      while (!isOver) {
        append(mine, count, 5);
        count += 5;
        await clock.sleep((await mine.upkeep()) > 0 ? 20 : 1);
      }
    };
    const loading = load();
    for (let round = 0; round < 3; round += 1) {
      await clock.sleep(700);
      await server.kill();
      await clock.sleep(200);
      await server.run();
    }
    isOver = true;
    await loading;
    await untilSent(mine);
    expect(await indices(mine)).toEqual(upTo(count));
  });

  it('is deleted here when it is surely there', async () => {
    const mine = opened(server.url, { keptMs: 300 });
    append(mine, 0, 100);
    for (let round = 0; round < 20; round += 1) {
      await mine.upkeep();
      await clock.sleep(100);
    }
    const directory = join(folder, 'waiting');
    expect(readdirSync(directory).filter((name) => name.endsWith('.segment'))).toHaveLength(1);
    expect(await indices(mine)).toEqual(upTo(100));
  });

  it('has what it was to forget forgotten when it was away at that moment', async () => {
    const mine = opened(server.url);
    append(mine, 0, 3);
    await untilSent(mine);
    await server.kill();
    mine.forget('vm');
    append(mine, 3, 2);
    await server.run();
    await untilSent(mine);
    expect(await indices(mine)).toEqual([3, 4]);
  });
});

describe('a VictoriaMetrics without deduplication', () => {
  it('is told of, as what is sent again would count twice', async () => {
    await using server = await VictoriaMetrics.start([]);
    const mine = opened(server.url);
    append(mine, 0);
    append(mine, 0);
    await untilSent(mine);
    const query = {
      vm: 'vm',
      metric: 'm',
      fromMs: beginMs,
      toMs: beginMs + HOUR_MS,
      resolution: '1h',
    } as const;
    expect(await mine.range(query)).toMatchObject([{ count: 2 }]);
    expect((await mine.usage()).trouble).toContain('-dedup.minScrapeInterval=1ms');
    await mine.close();
    store = undefined;
  });
});

describe('what waits for VictoriaMetrics', () => {
  it('is bounded: the oldest is dropped and counted, and the newest is there', async () => {
    const maxBytes = 64 * 1024;
    let mine = opened(NOWHERE, { maxBytes });
    append(mine, 0, 3000);
    const usage = await mine.usage();
    expect(usage.bytes).toBeLessThanOrEqual(maxBytes);
    expect(usage.bytes).toBeGreaterThan(maxBytes / 2);
    expect(usage.dropped).toBeGreaterThan(0);
    expect(usage.waiting + usage.dropped).toBe(3000);
    await mine.close();
    await using server = await VictoriaMetrics.start();
    mine = opened(server.url, { maxBytes });
    await untilSent(mine);
    expect(await indices(mine)).toEqual(upTo(3000).slice(usage.dropped));
    await mine.close();
    store = undefined;
  });

  it('is dropped and counted when it alone is more than the bound', async () => {
    const mine = opened(NOWHERE, { maxBytes: 4096 });
    mine.append(
      packBatch([sample('vm', beginMs, Object.fromEntries(upTo(1000).map((index) => [`m${index}`, 1])))]),
    );
    expect(await mine.usage()).toMatchObject({ waiting: 0, dropped: 1000 });
  });

  it('is there up to where its last entry was cut short', async () => {
    let mine = opened(NOWHERE);
    append(mine, 0, 10);
    const { bytes } = await mine.usage();
    await mine.close();
    const directory = join(folder, 'waiting');
    const [segment = ''] = readdirSync(directory).filter((name) => name.endsWith('.segment'));
    truncateSync(join(directory, segment), bytes - 1);
    mine = opened(NOWHERE);
    append(mine, 10);
    expect(await waiting(mine)).toBe(10);
    await mine.close();
    expect(await waiting(opened(NOWHERE))).toBe(10);
  });

  it('belongs to one process at a time', () => {
    opened(NOWHERE);
    const first = store;
    expect(() => opened(NOWHERE)).toThrow(expect.objectContaining({ code: 'TELEMETRY_STORE_BUSY' }));
    store = first;
  });

  it('needs a folder', () => {
    writeFileSync(join(folder, 'file'), '');
    expect(() => opened(NOWHERE, { directory: join(folder, 'file', 'below') })).toThrow(
      expect.objectContaining({ code: 'TELEMETRY_STORE_UNUSABLE' }),
    );
  });
});

describe('the way to VictoriaMetrics', () => {
  it.each(['http://metrics.example:8428', 'http://10.0.0.1', 'http://localhost:8428'])(
    'is not in the clear to %s',
    (url) => {
      expect(() => opened(url)).toThrow(expect.objectContaining({ code: 'TELEMETRY_STORE_INSECURE' }));
    },
  );

  it('is TLS to a server that a known CA signed, and to no other', async () => {
    const { ca, flags } = await serverTls(folder);
    await using server = await VictoriaMetrics.start(['-dedup.minScrapeInterval=1ms', ...flags]);
    let mine = opened(server.url);
    append(mine, 0, 3);
    await expect(indices(mine)).rejects.toMatchObject({ code: 'TELEMETRY_STORE_AWAY' });
    await mine.close();
    mine = opened(server.url, { ca });
    expect(await indices(mine)).toEqual([0, 1, 2]);
    await mine.close();
    store = undefined;
  });

  it('shows a password from a file, which may change', async () => {
    await using server = await VictoriaMetrics.start([
      ...['-dedup.minScrapeInterval=1ms', '-httpAuth.username=us', '-httpAuth.password=päss:word'],
    ]);
    const file = join(folder, 'password');
    writeFileSync(file, 'us:wrong\n');
    const mine = opened(server.url, { credentials: { kind: 'basic', file } });
    append(mine, 0, 3);
    await expect(indices(mine)).rejects.toMatchObject({ code: 'TELEMETRY_STORE_REFUSED' });
    expect(await mine.usage()).toMatchObject({ waiting: 3, dropped: 0 });
    writeFileSync(file, 'us:päss:word\n');
    expect(await indices(mine)).toEqual([0, 1, 2]);
    rmSync(file);
    await expect(indices(mine)).rejects.toMatchObject({ code: 'TELEMETRY_STORE_UNUSABLE' });
    await mine.close();
    store = undefined;
  });
});

/** What a real one does not do when it is asked to. */
describe('a server that misbehaves', () => {
  let server: Server;
  let url: string;
  let answer: (
    request: IncomingMessage,
    body: string,
  ) => { status: number; text?: string; headers?: Record<string, string> } | undefined;
  beforeAll(async () => {
    server = createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        const said = answer(request, Buffer.concat(chunks).toString());
        if (said !== undefined) response.writeHead(said.status, said.headers).end(said.text ?? '');
      });
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterAll(async () => {
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  });
  const metrics = { status: 200, text: 'vm_app_start_timestamp 1\n' };

  it('gets everything in order and at least once, however often it fails', async () => {
    const got: number[] = [];
    let calls = 0;
    answer = ({ url: path }, body) => {
      calls += 1;
      if (calls % 3 === 0) return { status: 503 };
      if (path === '/api/v1/import')
        for (const line of body.trim().split('\n'))
          got.push(...(JSON.parse(line) as { values: number[] }).values);
      return metrics;
    };
    const mine = opened(url, { checkEveryMs: 60_000 });
    for (let index = 0; index < 20; index += 1) {
      append(mine, index);
      await mine.upkeep();
      await clock.sleep(10);
    }
    while (got.at(-1) !== 19) await clock.sleep(await mine.upkeep());
    expect(got).toEqual(upTo(20));
  });

  it('is asked more and more rarely', async () => {
    let calls = 0;
    answer = () => {
      calls += 1;
      return { status: 500 };
    };
    const clockMs = { now: 0 };
    const mine = opened(url, { clock: { ...clock, nowMs: () => clockMs.now } });
    append(mine, 0);
    for (; clockMs.now < 120_000; clockMs.now += 50) await mine.upkeep();
    // 100 ms doubled up to 10 s: 8 until then, 11 afterwards; without that it would be 2,400.
    expect(calls).toBeGreaterThan(10);
    expect(calls).toBeLessThan(25);
  });

  it('that does not answer is away', async () => {
    answer = () => undefined;
    const mine = opened(url, { callDeadlineMs: 100 });
    append(mine, 0);
    await expect(indices(mine)).rejects.toMatchObject({ code: 'TELEMETRY_STORE_AWAY' });
  });

  it('that is no VictoriaMetrics is not sent anything', async () => {
    let isSent = false;
    answer = ({ url: path }) => {
      isSent ||= path === '/api/v1/import';
      return { status: 200, text: '<html>hello</html>' };
    };
    const mine = opened(url);
    append(mine, 0);
    await expect(indices(mine)).rejects.toMatchObject({ code: 'TELEMETRY_STORE_REFUSED' });
    expect(isSent).toBe(false);
  });

  it('does not send samples and tokens elsewhere', async () => {
    const file = join(folder, 'token');
    writeFileSync(file, 'secret-token\n');
    chmodSync(file, 0o600);
    const shown: (string | undefined)[] = [];
    answer = ({ headers, url: path }) => {
      shown.push(headers.authorization);
      if (path === '/elsewhere') throw new Error('it was followed');
      return { status: 307, headers: { location: `${url}/elsewhere` } };
    };
    const mine = opened(url, { credentials: { kind: 'bearer', file } });
    append(mine, 0);
    await expect(indices(mine)).rejects.toMatchObject({ code: 'TELEMETRY_STORE_REFUSED' });
    expect(new Set(shown)).toEqual(new Set(['Bearer secret-token']));
    expect(JSON.stringify(await mine.usage())).not.toContain('secret');
  });
});
