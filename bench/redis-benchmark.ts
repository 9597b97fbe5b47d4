import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { messageOf } from '../src/base/errors.ts';
import type { DemoNetwork } from '../src/demo/demo-network.ts';
import { errnoNameOf } from '../src/linux/linux-error.ts';
import { BenchError } from './bench-error.ts';

const DEADLINE_MS = 120_000;
/** Keys are spread over so many, as those of an application are. */
const KEYS = 100_000;

export interface SetRates {
  readonly perSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

export interface SetLoad {
  readonly clients: number;
  readonly requests: number;
  readonly signal: AbortSignal;
}

/**
 * Redis' own benchmark with SET, where the VM's clients stand.
 * @throws BenchError BENCH_TOOL_MISSING, BENCH_GUEST_FAILED
 */
export async function redisBenchmark(
  redis: DemoNetwork['redis'],
  { clients, requests, signal }: SetLoad,
): Promise<SetRates> {
  const words = ['redis-benchmark', '-h', redis.host, '-p', String(redis.port), '-t', 'set', '--csv'];
  words.push('-c', String(clients), '-n', String(requests), '-r', String(KEYS));
  if (redis.netns !== undefined) words.unshift('nsenter', `--net=/run/netns/${redis.netns}`, '--');
  const [program = '', ...args] = words;
  try {
    const { stdout } = await promisify(execFile)(program, args, { signal, timeout: DEADLINE_MS });
    return parseSetRates(stdout);
  } catch (cause) {
    signal.throwIfAborted();
    // nsenter says itself that there is no such program.
    if (errnoNameOf(cause) === 'ENOENT' || /No such file/.test(messageOf(cause))) {
      throw new BenchError('BENCH_TOOL_MISSING', 'redis-benchmark is not installed', {
        hint: 'Install it with: apt-get install redis-tools',
        cause,
      });
    }
    throw new BenchError('BENCH_GUEST_FAILED', `redis-benchmark failed: ${messageOf(cause)}`, {
      hint: 'See whether the guest runs: understudy ls.',
      cause,
    });
  }
}

/** Reads `--csv` as Redis 7 prints it: names in the first line, SET in the second. */
export function parseSetRates(csv: string): SetRates {
  const [names = [], values = []] = csv
    .trim()
    .split('\n')
    .slice(-2)
    .map((line) => line.split(',').map((cell) => cell.replaceAll('"', '')));
  const read = (name: string) => {
    const value = Number(values[names.indexOf(name)]);
    if (Number.isFinite(value)) return value;
    throw new Error(`it says no ${name}: ${csv.slice(0, 200)}`);
  };
  return { perSecond: read('rps'), p50Ms: read('p50_latency_ms'), p99Ms: read('p99_latency_ms') };
}
