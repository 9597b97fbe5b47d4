import { type Command, InvalidArgumentError, Option } from 'commander';
import { ROLES } from '../api/principal.ts';
import { command, examples, type Finish } from './command-definition.ts';
import type { Output } from './output.ts';

const UNIT_SECONDS = { s: 1, m: 60, h: 3600, d: 86_400 } as const;

/** Who may use a host from elsewhere. */
export function addAccess(program: Command, out: Output, finish: Finish): void {
  const token = program
    .command('token')
    .description('tokens by which others may use the host')
    .helpCommand(false)
    .helpOption('-h, --help', 'show help');
  command(token, 'create <name>', 'make a token and print it, once')
    .addOption(
      new Option('--role <role>', 'what it allows: look, act on VMs, or everything')
        .choices([...ROLES])
        .default('viewer'),
    )
    .option('--tenant <tenant>', 'open only what belongs to this tenant; by default the whole host')
    .option('--expires <time>', 'how long it is valid: 30d, 12h; by default until it is revoked', seconds)
    .addHelpText(
      'after',
      examples(
        'understudy token create grafana',
        '(umask 077; understudy token create ci --role operator --expires 30d --json | jq -r .token >ci.token)',
      ),
    )
    .action(async (name: string, { role, tenant, expires = null }) => {
      const { createToken } = await import('./token-commands.ts');
      finish(await createToken(name, { role, tenant, expiresInSeconds: expires }, out));
    });
  command(token, 'ls', 'list the tokens that are valid, without their secrets')
    .addHelpText('after', examples('understudy token ls', 'understudy token ls --json'))
    .action(async () => finish(await (await import('./token-commands.ts')).listTokens(out)));
  command(token, 'revoke <id>', 'refuse a token from now on, and close what is open with it')
    .addHelpText('after', examples('understudy token revoke 0123456789ab'))
    .action(async (id: string) => finish(await (await import('./token-commands.ts')).revokeToken(id, out)));
}

/** Certificates for those who have no CA of their own. */
export function addPki(program: Command, out: Output, finish: Finish): void {
  const pki = program
    .command('pki')
    .description('a private CA, and certificates for hosts and those who use them')
    .helpCommand(false)
    .helpOption('-h, --help', 'show help');
  command(pki, 'init <directory>', 'make a private CA; what is there stays')
    .option('--host <name[,ip...]>', 'and a certificate for this host, reached at these addresses')
    .addHelpText(
      'after',
      examples('understudy pki init /etc/understudy/pki', 'understudy pki init pki --host alpha,10.0.0.1'),
    )
    .action(async (directory: string, options) => {
      const { initPki } = await import('./pki-commands.ts');
      finish(await initPki(directory, options, out));
    });
  command(pki, 'host <directory> <name>', 'a certificate for a host')
    .option('--address <ip...>', 'addresses at which others reach it', [])
    .addHelpText('after', examples('understudy pki host /etc/understudy/pki beta --address 10.0.0.2'))
    .action(async (directory: string, name: string, { address }) => {
      const { issueForHost } = await import('./pki-commands.ts');
      finish(await issueForHost(directory, { name, addresses: address }, out));
    });
  command(pki, 'client <directory> <name>', 'a certificate for somebody who uses hosts')
    .addOption(new Option('--role <role>', 'what it allows').choices([...ROLES]).default('viewer'))
    .option('--tenant <tenant>', 'open only what belongs to this tenant; by default the whole host')
    .option('--tenant-id <id>', 'its id, where no host can be asked for it')
    .addHelpText('after', examples('understudy pki client /etc/understudy/pki ci --role operator'))
    .action(async (directory: string, name: string, { role, tenant, tenantId }) => {
      const { issueForClient } = await import('./pki-commands.ts');
      finish(await issueForClient(directory, { name, role, tenant, tenantId }, out));
    });
  command(pki, 'ls <directory>', 'list the certificates, whom they are for, and until when')
    .addHelpText('after', examples('understudy pki ls /etc/understudy/pki'))
    .action(async (directory: string) => {
      const { listPki } = await import('./pki-commands.ts');
      finish(await listPki(directory, out));
    });
}

/** To whom VMs belong, and what is allowed to them. */
export function addTenants(program: Command, out: Output, finish: Finish): void {
  const tenant = program
    .command('tenant')
    .description('those to whom VMs of a host belong')
    .helpCommand(false)
    .helpOption('-h, --help', 'show help');
  command(tenant, 'create <tenant>', 'make a tenant; it gets a copy of the policy default')
    .addHelpText('after', examples('understudy tenant create acme'))
    .action(async (name: string) =>
      finish(await (await import('./tenant-commands.ts')).createTenant(name, out)),
    );
  command(tenant, 'ls', 'list the tenants, with how many VMs they own')
    .addHelpText('after', examples('understudy tenant ls', 'understudy tenant ls --json'))
    .action(async () => finish(await (await import('./tenant-commands.ts')).listTenants(out)));
  command(tenant, 'delete <tenant>', 'forget a tenant that owns no VM, with its policy and its tokens')
    .addHelpText('after', examples('understudy tenant delete acme'))
    .action(async (name: string) =>
      finish(await (await import('./tenant-commands.ts')).deleteTenant(name, out)),
    );
  const policy = program
    .command('policy')
    .description('what specifications of tenants say by default, and may not say')
    .helpCommand(false)
    .helpOption('-h, --help', 'show help');
  command(policy, 'show <policy>', 'show the policy of a tenant, or `default`')
    .addHelpText('after', examples('understudy policy show default'))
    .action(async (name: string) =>
      finish(await (await import('./tenant-commands.ts')).showPolicy(name, out)),
    );
  command(policy, 'set <policy> <file>', 'put another policy in its place, in YAML as `show` prints it')
    .addHelpText('after', examples('understudy policy set acme acme.yaml'))
    .action(async (name: string, path: string) =>
      finish(await (await import('./tenant-commands.ts')).setPolicy(name, { path }, out)),
    );
}

function seconds(text: string): number {
  const [, count, unit] = /^([1-9]\d{0,8})([smhd])$/.exec(text) ?? [];
  if (count === undefined) throw new InvalidArgumentError('Expected a time such as 30d, 12h, 90m or 45s.');
  return Number(count) * UNIT_SECONDS[unit as keyof typeof UNIT_SECONDS];
}
