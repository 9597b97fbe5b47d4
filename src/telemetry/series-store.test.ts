import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { sample } from '../../test/kit/series-sample.ts';
import { itIsASeriesStore } from '../../test/kit/series-store-contract.ts';
import { VictoriaMetrics } from '../../test/kit/victoria-metrics.ts';
import { parseHostConfig } from '../config/host-config.ts';
import { openSeriesStore } from './open-series-store.ts';
import type { SeriesStore } from './series-store.ts';

/** A store as a host's configuration asks for it, in a folder of its own. */
function openedBy(config: () => string) {
  let directory: string;
  let store: SeriesStore;
  const open = async () => {
    const { telemetry } = parseHostConfig(config(), { source: 'host.yaml' });
    store = await openSeriesStore(telemetry, { directory });
  };
  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), 'us-series-'));
    await open();
  });
  afterAll(async () => {
    await store?.[Symbol.asyncDispose]();
    rmSync(directory, { recursive: true });
  });
  return {
    store: () => store,
    reopen: async () => {
      await store[Symbol.asyncDispose]();
      await open();
    },
    config,
  };
}

describe('a series store in a file', () => {
  itIsASeriesStore(openedBy(() => 'telemetry: {store: sqlite}'));
});

describe('a series store that is opened', () => {
  it('refuses to be used by two, or after it was closed', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'us-series-'));
    const { telemetry } = parseHostConfig('', { source: 'host.yaml' });
    try {
      const store = await openSeriesStore(telemetry, { directory });
      try {
        await store.append([sample('vm', Date.now(), { m: 1 })]);
        await expect(openSeriesStore(telemetry, { directory })).rejects.toMatchObject({
          code: 'TELEMETRY_STORE_BUSY',
          hint: expect.stringContaining('--state'),
        });
      } finally {
        await store[Symbol.asyncDispose]();
      }
      await store[Symbol.asyncDispose]();
      await expect(store.metrics('vm')).rejects.toMatchObject({ code: 'TELEMETRY_STORE_CLOSED' });
      await using again = await openSeriesStore(telemetry, { directory });
      expect(await again.metrics('vm')).toEqual(['m']);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
});

describe('a series store in VictoriaMetrics', () => {
  let server: VictoriaMetrics;
  beforeAll(async () => {
    server = await VictoriaMetrics.start();
  });
  afterAll(async () => await server?.[Symbol.asyncDispose]());
  itIsASeriesStore(openedBy(() => `telemetry: {store: victoriametrics, url: "${server.url}"}`));
});
