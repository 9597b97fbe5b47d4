import { Argument, type Command, InvalidArgumentError, Option } from 'commander';
import { RESOURCE_NAMES } from '../api/foresight-resources.ts';
import { parseDuration } from '../base/durations.ts';
import { RESOLUTIONS } from '../telemetry/series-store.ts';
import { command, examples, type Finish } from './command-definition.ts';
import type { Output } from './output.ts';

/** What VMs will need, and what is decided about it. */
export function addForesight(program: Command, out: Output, finish: Finish): void {
  command(program, 'forecast <name>', 'show what a VM will need: history, forecast and what it has')
    .addArgument(new Argument('[resource]', 'of which resource').choices(RESOURCE_NAMES).default('cpu'))
    .addHelpText(
      'after',
      examples(
        'understudy forecast redis-demo',
        'understudy forecast redis-demo memory',
        'understudy forecast redis-demo --json | jq .rows',
      ),
    )
    .addHelpText('after', '\nFor VMs of a host daemon: `understudy host`.')
    .action(async (name: string, resource) => {
      const { forecast } = await import('./forecast-command.ts');
      finish(await forecast(name, { resource }, out));
    });
  command(
    program,
    'history <name> [metric]',
    'show what was measured of a VM: mean, quantiles and range by time',
  )
    .addOption(
      new Option('--resolution <step>', 'by second, minute or hour').choices(RESOLUTIONS).default('1m'),
    )
    .option('--since <time>', 'so long ago it begins, such as 30m, 12h or 7d', since, 3600)
    .addHelpText(
      'after',
      examples(
        'understudy history redis-demo',
        'understudy history redis-demo disk.data.writeBytesPerSecond --since 7d --resolution 1h',
        'understudy history redis-demo cpu.waitedCores --json | jq .buckets',
      ),
    )
    .addHelpText(
      'after',
      '\nFor VMs of a host daemon. Without a metric: cpu.usedCores, and which others there are.',
    )
    .action(async (name: string, metric: string | undefined, { resolution, since: seconds }) => {
      const { history } = await import('./history-command.ts');
      finish(await history(name, { metric, resolution, seconds }, out));
    });
  command(program, 'capacity', 'show what this host has, against what its VMs will need together')
    .option('--risk <share>', 'probability of too little that is accepted, 0.01 to 0.5', riskShare, 0.01)
    .addHelpText('after', examples('understudy capacity', 'understudy capacity --risk 0.05 --json'))
    .action(async ({ risk }) => {
      const { capacity } = await import('./forecast-command.ts');
      finish(await capacity({ risk }, out));
    });
  command(program, 'explain <name>', 'show what is decided about the resources of a VM, and why')
    .option('--limit <n>', 'so many of the last decisions', decisions, 20)
    .addHelpText(
      'after',
      examples('understudy explain redis-demo', 'understudy explain redis-demo --limit 100 --json'),
    )
    .addHelpText(
      'after',
      '\nFor VMs of a host daemon. What is decided follows `allocation` of the specification.',
    )
    .action(async (name: string, { limit }) => {
      const { explain } = await import('./forecast-command.ts');
      finish(await explain(name, { limit }, out));
    });
}

function since(text: string): number {
  const ms = parseDuration(text);
  if (ms !== undefined && ms >= 1000 && ms <= 34_560_000_000) return Math.round(ms / 1000);
  throw new InvalidArgumentError('Expected a time from 1s to 400d, such as 30m, 12h or 7d.');
}

function riskShare(text: string): number {
  const share = Number(text);
  if (share >= 0.01 && share <= 0.5) return share;
  throw new InvalidArgumentError('Expected a share from 0.01 to 0.5.');
}

function decisions(text: string): number {
  const count = Number(text);
  if (Number.isInteger(count) && count >= 1 && count <= 1000) return count;
  throw new InvalidArgumentError('Expected a whole number from 1 to 1000.');
}
