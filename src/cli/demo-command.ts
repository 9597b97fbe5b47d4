import { randomInt } from 'node:crypto';
import { systemClock as clock } from '../base/clock.ts';
import { type DemoOutcome, runDemo } from '../demo/demo.ts';
import { isFlawless, reportText } from '../demo/demo-report.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { Interruption } from './interruption.ts';
import type { Output } from './output.ts';

const SEED_MAX = 2 ** 31;

export interface DemoCommandOptions {
  readonly kills: number;
  readonly clients: number;
  readonly seed?: number;
  readonly network?: 'tap' | 'passt';
  readonly keep: boolean;
}

/** Shows on a VM of its own what this is all about. Ctrl-C ends it and leaves nothing behind. */
export async function demo(options: DemoCommandOptions, out: Output): Promise<number> {
  using interruption = new Interruption();
  const { seed = randomInt(SEED_MAX) } = options;
  // The demo takes most of a minute: whoever waits for the JSON is told as well how far it is.
  const onProgress = (step: string) =>
    out.json ? void process.stderr.write(`${step}\n`) : out.progress(step);
  onProgress(`Moments of the kills: --seed ${seed}`);
  const outcome = await runDemo({ ...options, seed, clock, onProgress, signal: interruption.signal });
  out.result(outcome.report, () => `\n${reportText(outcome.report)}${farewell(outcome)}`);
  return isFlawless(outcome.report) ? EXIT_CODES.ok.code : EXIT_CODES.failed.code;
}

function farewell({ kept }: DemoOutcome): string {
  if (kept === null) return '';
  const { netns, host, port } = kept.network.redis;
  const inside = netns === undefined ? '' : `ip netns exec ${netns} `;
  const tidy = netns === undefined ? '' : ` && ip netns delete ${netns}`;
  return [
    '\n',
    'The VM runs on:',
    `  ${inside}redis-cli -h ${host} -p ${port}`,
    `  understudy status ${kept.vm}`,
    `  understudy stop ${kept.vm} --force${tidy}`,
  ].join('\n');
}
