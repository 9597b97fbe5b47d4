/**
 * Appends samples as fast as it can, one for each second from a moment on, and says which are safe: to be killed in the middle.
 * Arguments: a host's configuration, the folder of the store, the moment.
 */
import { parseHostConfig } from '../../src/config/host-config.ts';
import { openSeriesStore } from '../../src/telemetry/open-series-store.ts';
import { sample } from './series-sample.ts';

const IN_FLIGHT = 4;
const METRICS = 40;

const [config = '', directory = '', begin = ''] = process.argv.slice(2);
const { telemetry } = parseHostConfig(config, { source: 'arguments' });
await using store = await openSeriesStore(telemetry, { directory });
let next = 0;

async function write(): Promise<void> {
  for (;;) {
    const index = next;
    next += 1;
    const values = Object.fromEntries(
      Array.from({ length: METRICS }, (_, metric) => [`m${metric}`, index * metric]),
    );
    await store.append([sample('crash', Number(begin) + index * 1000, values)]);
    process.stdout.write(`${index}\n`);
  }
}

await Promise.all(Array.from({ length: IN_FLIGHT }, write));
