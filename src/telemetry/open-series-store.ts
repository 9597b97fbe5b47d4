import { join } from 'node:path';
import type { TelemetryConfig } from '../config/telemetry-schema.ts';
import type { SeriesStore } from './series-store.ts';
import { TelemetryError } from './telemetry-error.ts';
import { ThreadedSeriesStore } from './threaded-series-store.ts';

const CALL_DEADLINE_MS = 15_000;
/** Several times what VictoriaMetrics 1.79 takes to write what it has acknowledged: 1 s in buffers, 5 s in memory. */
const KEPT_MS = 60_000;
const CHECK_EVERY_MS = 10_000;

/**
 * The series store that a host's configuration asks for. `directory` is a folder of its own in the host's state directory, which
 * is made if need be; what one kind of store has there the other leaves alone.
 * @throws TelemetryError TELEMETRY_STORE_UNUSABLE, …_BUSY, …_CORRUPT, …_NEWER, …_INSECURE. One that is elsewhere may be away.
 */
export async function openSeriesStore(
  config: TelemetryConfig,
  { directory }: { directory: string },
): Promise<SeriesStore> {
  const { store, url, ca, credentials, retention, maxBytes } = config;
  if (store === 'sqlite') {
    const path = join(directory, 'series.sqlite');
    return await ThreadedSeriesStore.open({ kind: 'sqlite', options: { path, maxBytes, retention } });
  }
  if (url === undefined)
    throw new TelemetryError(
      'TELEMETRY_STORE_UNUSABLE',
      'telemetry.url is missing: where VictoriaMetrics is',
    );
  const access = { url, ca, credentials, callDeadlineMs: CALL_DEADLINE_MS };
  const waiting = {
    directory: join(directory, 'waiting'),
    maxBytes,
    keptMs: KEPT_MS,
    checkEveryMs: CHECK_EVERY_MS,
  };
  return await ThreadedSeriesStore.open({
    kind: 'victoriametrics',
    options: { access, retention, ...waiting },
  });
}
