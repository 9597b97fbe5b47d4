import { type Command, Option } from 'commander';
import { SITE_CONFIG_EXAMPLE } from '../config/site-config.ts';
import { command, examples, type Finish, positiveNumber } from './command-definition.ts';
import type { Output } from './output.ts';

/** Commands about several hosts. */
export function addSite(program: Command, out: Output, finish: Finish): void {
  command(
    program,
    'site',
    'answer for this host when others want shadows of their VMs here; runs until it is ended',
  )
    .option('--config <file>', 'by default $UNDERSTUDY_SITE, else /etc/understudy/site.yaml')
    .addHelpText('after', examples('understudy site', 'understudy site --config site.yaml --json'))
    .addHelpText(
      'after',
      `\nA configuration with all keys, and their defaults where they have one:\n\n${SITE_CONFIG_EXAMPLE}`,
    )
    .action(async ({ config }) => (await import('./site-command.ts')).becomeSite({ config, json: out.json }));
  command(program, 'migrate <name>', 'move a VM to another host, through its shadow; nothing is lost')
    .option('--to <host>', 'by default where its shadow is, or else the host with the most left')
    .addOption(
      new Option('--wait <goal>', 'when to return: it is protected in the other direction, or it acts there')
        .choices(['protected', 'moved'])
        .default('protected'),
    )
    .option('--timeout <seconds>', 'how long to wait for each shadow to be in sync', positiveNumber, 300)
    .addHelpText(
      'after',
      examples('understudy migrate redis-demo --to b', 'understudy migrate redis-demo --wait moved --json'),
    )
    .action(async (name: string, { to, wait, timeout }) => {
      const { migrate } = await import('./migrate-command.ts');
      finish(await migrate(name, { to, wait, timeoutMs: timeout * 1000 }, out));
    });
  addMaintenance(program, out, finish);
}

function addMaintenance(program: Command, out: Output, finish: Finish): void {
  const maintenance = program
    .command('maintenance')
    .description('empty this host of VMs and shadows, and take them again')
    .helpCommand(false)
    .helpOption('-h, --help', 'show help');
  command(maintenance, 'on', 'place nothing more here, move VMs away, have shadows leave; may be repeated')
    .option('--force', 'end shadows also where their VM does not say that it can do without', false)
    .option('--timeout <seconds>', 'for each VM: how long to wait for a shadow in sync', positiveNumber, 300)
    .addHelpText('after', examples('understudy maintenance on', 'understudy maintenance on --json'))
    .action(async ({ force, timeout }) => {
      const { maintenanceOn } = await import('./maintenance-command.ts');
      finish(await maintenanceOn({ force, timeoutMs: timeout * 1000 }, out));
    });
  command(maintenance, 'off', 'take VMs and shadows again; nothing is moved back')
    .addHelpText('after', examples('understudy maintenance off'))
    .action(async () => finish((await import('./maintenance-command.ts')).maintenanceOff(out)));
  command(maintenance, 'status', 'whether this host is in maintenance, and what is here')
    .addHelpText('after', examples('understudy maintenance status --json'))
    .action(async () => finish(await (await import('./maintenance-command.ts')).maintenanceStatus(out)));
}
