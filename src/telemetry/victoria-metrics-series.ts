import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import { ImportLines, selector } from './import-lines.ts';
import { batchCount, unpackBatch } from './sample-batch.ts';
import { type Entry, type Place, SegmentLog } from './segment-log.ts';
import { AHEAD_MAX_MS, keptFromMs, type Retention, type SeriesEngine } from './series-engine.ts';
import type { Bucket, RangeQuery, StoreUsage } from './series-store.ts';
import { TelemetryError } from './telemetry-error.ts';
import { type VictoriaMetricsAccess, VictoriaMetricsClient } from './victoria-metrics-client.ts';
import { countSeries, queryBuckets, queryMetrics } from './victoria-metrics-queries.ts';

export interface VictoriaMetricsOptions {
  readonly access: VictoriaMetricsAccess;
  /** For what waits. */
  readonly directory: string;
  /** Of what waits. */
  readonly maxBytes: number;
  readonly retention: Retention;
  /**
   * For so long after it was taken a sample is kept here as well. VictoriaMetrics acknowledges what it has in memory and writes
   * it within about ten seconds; when it was started anew meanwhile, it gets it again.
   */
  readonly keptMs: number;
  /** It is asked this often whether it is still the one that it was. */
  readonly checkEveryMs: number;
  readonly clock: Clock;
}

/** What entries of the log are. */
const SAMPLES = 1;
const FORGOTTEN = 2;

const LOOK_AGAIN_MS = 100;
/** A second, and what clocks differ by. */
const FIRST_SECOND_MS = 1_050;
const AGAIN_MIN_MS = 100;
const AGAIN_MAX_MS = 10_000;
/** Of entries that are sent at once; as text it is about eight times as much. */
const SEND_BYTES = 512 * 1024;
/** A query waits so long until all that was appended before it has been sent. */
const CATCH_UP_MAX_MS = 20_000;

/** Series in VictoriaMetrics, which may be away: what is appended is on disk here first, and sent in the order in which it came. */
export class VictoriaMetricsSeries implements SeriesEngine {
  readonly #options: VictoriaMetricsOptions;
  readonly #client: VictoriaMetricsClient;
  readonly #log: SegmentLog;
  /** What is to be sent next. */
  #cursor: Place;
  /** When the last entry of a closed segment was taken. */
  readonly #sentMs = new Map<number, number>();
  /** What VictoriaMetrics says of when it was started. */
  #serverStart: string | undefined;
  #checkedMs = Number.NEGATIVE_INFINITY;
  #isUnflushed = false;
  #waiting: number;
  #dropped = 0;
  #failures = 0;
  #retryAtMs = Number.NEGATIVE_INFINITY;
  #trouble: string | undefined;
  #advice: string | undefined;
  #isClosed = false;
  /** One at a time talks to VictoriaMetrics about what is to be sent: the order of entries is that of the log. */
  #turn: Promise<unknown> = Promise.resolve();

  /** @throws TelemetryError TELEMETRY_STORE_UNUSABLE, TELEMETRY_STORE_BUSY, TELEMETRY_STORE_INSECURE */
  constructor(options: VictoriaMetricsOptions) {
    this.#options = options;
    this.#client = new VictoriaMetricsClient(options.access);
    this.#log = new SegmentLog(options.directory, { maxBytes: options.maxBytes });
    this.#cursor = this.#log.start;
    this.#waiting = this.#log.countFrom(this.#cursor);
  }

  append(batch: Uint8Array): void {
    const timeMs = this.#options.clock.wallMs();
    let count = 0;
    unpackBatch(batch, (_vm, _metric, wallMs) => {
      if (this.#isTaken(wallMs, timeMs)) count += 1;
    });
    this.#dropped += batchCount(batch) - count;
    if (count > 0) this.#write({ kind: SAMPLES, count, timeMs, payload: batch });
  }

  async range(query: RangeQuery): Promise<readonly Bucket[]> {
    await this.#caughtUp();
    const nowMs = this.#options.clock.wallMs();
    const keptMs = keptFromMs(nowMs, this.#options.retention[query.resolution]);
    const fromMs = Math.max(query.fromMs, keptMs);
    const toMs = Math.min(query.toMs, nowMs + 2 * AHEAD_MAX_MS);
    return await queryBuckets(this.#client, { ...query, fromMs, toMs });
  }

  async metrics(vm: string): Promise<readonly string[]> {
    await this.#caughtUp();
    return await queryMetrics(this.#client, { vm, ...this.#whole() });
  }

  forget(vm: string): void {
    const timeMs = this.#options.clock.wallMs();
    this.#write({ kind: FORGOTTEN, count: 0, timeMs, payload: Buffer.from(vm) });
  }

  async usage(): Promise<StoreUsage> {
    let [bytes, series]: [number, number | undefined] = [this.#log.bytes, undefined];
    try {
      await this.#caughtUp();
      series = await countSeries(this.#client, this.#whole());
      bytes += dataBytes(await this.#client.call({ path: '/metrics' }));
    } catch (thrown) {
      this.#trouble ??= messageOf(thrown);
    }
    const trouble = this.#trouble ?? this.#advice;
    return { bytes, series, waiting: this.#waiting, dropped: this.#dropped, trouble };
  }

  async upkeep(): Promise<number> {
    const { clock } = this.#options;
    if (clock.nowMs() < this.#retryAtMs) return LOOK_AGAIN_MS;
    try {
      const isMore = await this.#inTurn(() => this.#sendSome());
      return isMore ? 0 : LOOK_AGAIN_MS;
    } catch {
      return LOOK_AGAIN_MS;
    }
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    this.#client.close();
    await this.#turn.catch(() => {});
    this.#log.close();
  }

  #write(entry: Entry): void {
    try {
      while (this.#log.isFullFor(entry.payload.length)) {
        if (this.#log.closed.length === 0) {
          if (this.#log.end.offset === 0) {
            this.#dropped += entry.count;
            return;
          }
          this.#log.roll();
        }
        this.#dropOldest();
      }
      this.#log.append(entry);
      this.#waiting += entry.count;
    } catch (thrown) {
      throw new TelemetryError('TELEMETRY_STORE_FAILED', `cannot write: ${messageOf(thrown)}`, {
        hint: 'See that the disk has room and is whole.',
        facts: { directory: this.#options.directory },
        cause: thrown,
      });
    }
  }

  #dropOldest(): void {
    const [oldest = 0] = this.#log.closed;
    const before = this.#waiting;
    this.#log.dropOldest();
    this.#sentMs.delete(oldest);
    if (this.#cursor.segment <= oldest) this.#cursor = this.#log.start;
    this.#waiting = this.#log.countFrom(this.#cursor);
    this.#dropped += before - this.#waiting;
  }

  /** Sends what comes next; the answer is whether there may be more. */
  async #sendSome(): Promise<boolean> {
    const { clock, checkEveryMs } = this.#options;
    try {
      const isAnythingKept = this.#log.bytes > 0;
      if (isAnythingKept && clock.nowMs() - this.#checkedMs >= checkEveryMs) await this.#check();
      const isMore = await this.#sendNext();
      this.#failures = 0;
      this.#trouble = undefined;
      return isMore;
    } catch (thrown) {
      this.#trouble = messageOf(thrown);
      const delayMs = Math.min(AGAIN_MAX_MS, AGAIN_MIN_MS * 2 ** this.#failures);
      this.#failures = Math.min(this.#failures + 1, 16);
      this.#retryAtMs = clock.nowMs() + delayMs;
      // It may have been started anew.
      this.#checkedMs = Number.NEGATIVE_INFINITY;
      throw thrown;
    }
  }

  /** Sends all again to one that was started anew; deletes what has been there for long enough with the one that is there. */
  async #check(): Promise<void> {
    const { clock, keptMs } = this.#options;
    const start = await this.#serverStartNow();
    if (start !== this.#serverStart) {
      this.#serverStart = start;
      this.#cursor = this.#log.start;
      this.#sentMs.clear();
      this.#waiting = this.#log.countFrom(this.#cursor);
      this.#advice = await this.#adviceFor();
    }
    const nowMs = clock.nowMs();
    this.#checkedMs = nowMs;
    if (this.#isAtEnd()) {
      this.#log.roll();
      this.#cursor = this.#log.end;
    }
    for (const segment of this.#log.closed) {
      if (segment >= this.#cursor.segment) break;
      const sentMs = this.#sentMs.get(segment);
      if (sentMs === undefined) this.#sentMs.set(segment, nowMs);
      else if (nowMs - sentMs >= keptMs) {
        this.#log.dropOldest();
        this.#sentMs.delete(segment);
      } else break;
    }
  }

  /**
   * It says in which second it was started. Until that is over, it could be killed and started again with nothing to tell one
   * from the other; so nothing is sent to it before.
   */
  async #serverStartNow(): Promise<string> {
    const path = '/metrics';
    const metrics = await this.#client.call({ path });
    if (serverStart(metrics) === this.#serverStart || !/^vm_app_uptime_seconds 0$/m.test(metrics))
      return serverStart(metrics);
    await this.#options.clock.sleep(FIRST_SECOND_MS);
    return serverStart(await this.#client.call({ path }));
  }

  async #adviceFor(): Promise<string | undefined> {
    try {
      const flags = await this.#client.call({ path: '/flags' });
      // It lists those that were given. What hides them behind a proxy is not asked again.
      if (/^-dedup\.minScrapeInterval=/m.test(flags) || !/^-storageDataPath=|^-httpListenAddr=/m.test(flags))
        return undefined;
      return 'VictoriaMetrics should run with -dedup.minScrapeInterval=1ms: without it what is sent again counts twice';
    } catch {
      return undefined;
    }
  }

  async #sendNext(): Promise<boolean> {
    const lines = new ImportLines();
    let next = this.#cursor;
    let bytes = 0;
    for (;;) {
      const found = this.#log.read(next);
      if (found === undefined) break;
      const { entry } = found;
      if (entry.kind === FORGOTTEN) {
        if (lines.count > 0) break;
        await this.#sendForgotten(Buffer.from(entry.payload).toString());
        this.#sent(next, { upTo: found.next, count: 0 });
        return true;
      }
      unpackBatch(entry.payload, (vm, metric, wallMs, value) => {
        if (this.#isTaken(wallMs, entry.timeMs)) lines.add({ vm, metric }, wallMs, value);
      });
      bytes += entry.payload.length;
      next = found.next;
      if (bytes >= SEND_BYTES) break;
    }
    if (lines.count === 0) return false;
    const from = this.#cursor;
    await this.#client.call({ path: '/api/v1/import', body: lines.text() });
    this.#isUnflushed = true;
    this.#sent(from, { upTo: next, count: lines.count });
    return true;
  }

  async #sendForgotten(vm: string): Promise<void> {
    await this.#flush();
    const path = '/api/v1/admin/tsdb/delete_series';
    await this.#client.call({ path, form: [['match[]', selector({ vm })]] });
  }

  /** Unless it was dropped meanwhile for want of room. */
  #sent(from: Place, { upTo, count }: { upTo: Place; count: number }): void {
    if (this.#cursor.segment !== from.segment || this.#cursor.offset !== from.offset) {
      this.#cursor = later(this.#cursor, upTo);
      this.#waiting = this.#log.countFrom(this.#cursor);
      return;
    }
    this.#cursor = upTo;
    this.#waiting -= count;
  }

  /** Resolves when all that was appended before the call can be queried. */
  async #caughtUp(): Promise<void> {
    const { clock } = this.#options;
    const goal = this.#log.end;
    const endMs = clock.nowMs() + CATCH_UP_MAX_MS;
    while (isBefore(this.#cursor, goal)) {
      if (clock.nowMs() > endMs)
        throw new TelemetryError('TELEMETRY_STORE_AWAY', `${this.#waiting} samples are still to be sent`, {
          hint: 'VictoriaMetrics was away, and gets what has waited. Ask again later.',
          facts: { waiting: this.#waiting },
        });
      const isMore = await this.#inTurn(() => this.#sendSome());
      if (!isMore) break;
    }
    if (this.#isUnflushed) await this.#inTurn(() => this.#flush());
  }

  /** Else what it has taken can be queried after a second or so. */
  async #flush(): Promise<void> {
    this.#isUnflushed = false;
    await this.#client.call({ path: '/internal/force_flush' });
  }

  async #inTurn<Result>(work: () => Promise<Result>): Promise<Result> {
    const mine = this.#turn.then(
      () => this.#unlessClosed(work),
      () => this.#unlessClosed(work),
    );
    this.#turn = mine;
    return await mine;
  }

  async #unlessClosed<Result>(work: () => Promise<Result>): Promise<Result> {
    if (this.#isClosed) throw new TelemetryError('TELEMETRY_STORE_CLOSED', 'the series store is closed');
    return await work();
  }

  #isTaken(wallMs: number, nowMs: number): boolean {
    return wallMs >= keptFromMs(nowMs, this.#options.retention['1s']) && wallMs <= nowMs + AHEAD_MAX_MS;
  }

  #isAtEnd(): boolean {
    return !isBefore(this.#cursor, this.#log.end);
  }

  #whole(): { fromMs: number; toMs: number } {
    const nowMs = this.#options.clock.wallMs();
    return { fromMs: keptFromMs(nowMs, this.#options.retention['1h']), toMs: nowMs + AHEAD_MAX_MS };
  }
}

function isBefore(a: Place, b: Place): boolean {
  return a.segment < b.segment || (a.segment === b.segment && a.offset < b.offset);
}

function later(a: Place, b: Place): Place {
  return isBefore(a, b) ? b : a;
}

/** Whatever says since when it runs: a text that changes when it is started anew. */
function serverStart(metrics: string): string {
  const lines = metrics.match(/^(?:vm_app_start_timestamp|process_start_time_seconds)\b.*$/gm);
  if (lines === null)
    throw new TelemetryError(
      'TELEMETRY_STORE_REFUSED',
      'what answers at telemetry.url is no VictoriaMetrics',
      {
        hint: 'Correct telemetry.url: it is that of a single-node VictoriaMetrics, whose /metrics can be read.',
      },
    );
  return lines.join('\n');
}

function dataBytes(metrics: string): number {
  return [...metrics.matchAll(/^vm_data_size_bytes\{.*\} (\d+)$/gm)].reduce(
    (sum, [, bytes]) => sum + Number(bytes),
    0,
  );
}
