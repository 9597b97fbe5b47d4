import { type Command, InvalidArgumentError } from 'commander';
import { parseDuration } from '../base/durations.ts';
import { atLeastOne, command, examples, type Finish } from './command-definition.ts';
import type { Output } from './output.ts';

const STORE = 'where snapshots are; by default /var/lib/understudy/snapshot-files';
const KEY = 'the file with the key of encrypted ones';

/** Snapshots of VMs that run, as files that a VM goes on from at once. */
export function addSnapshot(program: Command, out: Output, finish: Finish): void {
  const group = program
    .command('snapshot')
    .description('files that a VM can be taken back to, written while it runs')
    .helpCommand(false)
    .helpOption('-h, --help', 'show help');
  const added = (usage: string, description: string) =>
    command(group, usage, description).option('--store <directory>', STORE);
  added('create <name>', 'write a snapshot of a protected VM; it goes on meanwhile')
    .option('--key-file <file>', 'encrypt it with the 32 bytes in this file, which only its owner may open')
    .option('--pause', 'a VM without a shadow in sync stands still while it is written', false)
    .addHelpText(
      'after',
      examples(
        'understudy snapshot create redis-demo',
        '(umask 077; head -c 32 /dev/urandom > snap.key) && understudy snapshot create redis-demo --key-file snap.key',
      ),
    )
    .action(async (name: string, options) =>
      finish(await (await import('./snapshot-commands.ts')).createSnapshot(name, options, out)),
    );
  added('list [name]', 'list the snapshots of one VM or of all, newest first')
    .addHelpText('after', examples('understudy snapshot list', 'understudy snapshot list redis-demo --json'))
    .action(async (name: string | undefined, options) =>
      finish((await import('./snapshot-commands.ts')).listSnapshots(name, options, out)),
    );
  added('restore <name> [id]', 'go on from a snapshot, the newest by default; the VM must not run')
    .option('--key-file <file>', KEY)
    .option('--verify', 'read all of it before the VM runs, not only what is used', false)
    .addHelpText(
      'after',
      examples(
        'understudy snapshot restore redis-demo',
        'understudy snapshot restore redis-demo 20261127T021500123Z --verify',
      ),
    )
    .action(async (name: string, id: string | undefined, options) =>
      finish(await (await import('./snapshot-commands.ts')).restoreSnapshot(name, { id, ...options }, out)),
    );
  added('verify <name> [id]', 'read every byte of one snapshot or of all of a VM')
    .option('--key-file <file>', KEY)
    .addHelpText('after', examples('understudy snapshot verify redis-demo --json'))
    .action(async (name: string, id: string | undefined, options) =>
      finish(await (await import('./snapshot-commands.ts')).verifySnapshots(name, { id, ...options }, out)),
    );
  added('prune <name>', 'remove old snapshots, and what interrupted ones have left; never the last whole one')
    .option('--keep <number>', 'so many of the newest stay', atLeastOne)
    .option('--older-than <time>', 'only what is older goes: 30d, 12h', milliseconds)
    .option('--key-file <file>', KEY)
    .option('--even-last', 'also the last one that a VM could go on from', false)
    .addHelpText(
      'after',
      examples(
        'understudy snapshot prune redis-demo --keep 7',
        'understudy snapshot prune redis-demo --older-than 30d',
      ),
    )
    .action(async (name: string, { olderThan, evenLast, ...options }) => {
      const { pruneSnapshots } = await import('./snapshot-commands.ts');
      const order = { ...options, olderThanMs: olderThan, mayTakeLast: evenLast };
      finish(await pruneSnapshots(name, order, out));
    });
}

function milliseconds(text: string): number {
  const ms = parseDuration(text);
  if (ms === undefined) throw new InvalidArgumentError('Expected a time such as 30d or 12h.');
  return ms;
}
