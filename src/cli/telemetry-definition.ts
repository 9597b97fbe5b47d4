import { type Command, InvalidArgumentError } from 'commander';
import { parseDuration } from '../base/durations.ts';
import { TELEMETRY_INTERVAL_MS_MAX, TELEMETRY_INTERVAL_MS_MIN } from '../config/telemetry-schema.ts';
import { command, examples, type Finish } from './command-definition.ts';
import type { Output } from './output.ts';

/** How VMs are measured, and what they use. */
export function addTelemetry(program: Command, out: Output, finish: Finish): void {
  command(
    program,
    'telemetry <name>',
    'show what a VM uses: processors, memory, disks, network, pressure, epochs',
  )
    .option('--follow', 'show each sample as it is taken, until the VM ends', false)
    .option('--interval <time>', 'measure it this often from now on, 100ms to 60s', interval)
    .addHelpText(
      'after',
      examples(
        'understudy telemetry redis-demo',
        'understudy telemetry redis-demo --interval 250ms --follow',
        'understudy telemetry redis-demo --json | jq .profile',
      ),
    )
    .addHelpText(
      'after',
      '\nThe interval holds until the VM is started anew: telemetry.interval of its specification is for good.',
    )
    .action(async (name: string, { follow, interval: intervalMs }) => {
      const { telemetry } = await import('./telemetry-command.ts');
      finish(await telemetry(name, { follow, intervalMs }, out));
    });
}

function interval(text: string): number {
  const ms = parseDuration(text);
  if (ms !== undefined && ms >= TELEMETRY_INTERVAL_MS_MIN && ms <= TELEMETRY_INTERVAL_MS_MAX) return ms;
  throw new InvalidArgumentError('Expected a time from 100ms to 60s, such as 250ms or 5s.');
}
