import { type Command, InvalidArgumentError } from 'commander';
import { parseBytes } from '../base/units.ts';
import { BYTES_PER_SECOND_MIN, CPU_MILLICORES_MIN, type LimitsOrder } from '../control/limits-status.ts';
import { command, examples, type Finish } from './command-definition.ts';
import type { Output } from './output.ts';

const NO_LIMITS: LimitsOrder = {
  ...{ cpuMillicores: null, diskBytesPerSecond: null },
  ...{ netBytesPerSecond: null, memoryBytes: null, memoryReadyBytes: null },
};

/** What a VM may use. */
export function addLimits(program: Command, out: Output, finish: Finish): void {
  command(program, 'limits <name>', 'show what a VM may use, or change that while it runs')
    .option('--cpu <cores>', 'processor time, in cores, or none', millicores)
    .option('--net <bytes>', 'bytes a second over all network cards, or none', bytes(BYTES_PER_SECOND_MIN))
    .option('--disk <bytes>', 'bytes a second over all disks, or none', bytes(BYTES_PER_SECOND_MIN))
    .option('--memory <bytes>', 'what a guest with a balloon may have of its memory, or none', bytes(1))
    .option(
      '--memory-ready <bytes>',
      'memory that has pages of the host before it is used, or none',
      bytes(1),
    )
    .option('--none', 'no limit of anything any more', false)
    .addHelpText(
      'after',
      examples(
        'understudy limits redis-demo',
        'understudy limits redis-demo --cpu 0.5 --net 10MiB',
        'understudy limits redis-demo --none --json',
      ),
    )
    .addHelpText(
      'after',
      '\nLimits hold over takeovers, and until the VM is started anew. What cannot be set stays as it was.',
    )
    .action(async (name: string, { cpu, net, disk, memory, memoryReady, none }) => {
      const { limits } = await import('./limits-command.ts');
      const named = {
        ...(cpu !== undefined && { cpuMillicores: cpu }),
        ...(net !== undefined && { netBytesPerSecond: net }),
        ...(disk !== undefined && { diskBytesPerSecond: disk }),
        ...(memory !== undefined && { memoryBytes: memory }),
        ...(memoryReady !== undefined && { memoryReadyBytes: memoryReady }),
      };
      finish(await limits(name, { ...(none && NO_LIMITS), ...named }, out));
    });
}

function millicores(text: string): number | null {
  if (text === 'none') return null;
  const amount = Math.round(Number(text) * 1000);
  if (/^\d*\.?\d+$/.test(text) && amount >= CPU_MILLICORES_MIN && amount <= 1_024_000) return amount;
  throw new InvalidArgumentError('Expected a number of cores from 0.05, such as 0.5, or none.');
}

function bytes(min: number): (text: string) => number | null {
  return (text) => {
    const amount = text === 'none' ? null : parseBytes(text);
    if (amount === null || (amount !== undefined && amount >= min && amount <= 1e12)) return amount;
    throw new InvalidArgumentError('Expected a size from 4KiB, such as 10MiB, or none.');
  };
}
