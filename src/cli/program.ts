import { readFileSync } from 'node:fs';
import { Command, CommanderError, Option } from 'commander';
import { HOST_CONFIG_EXAMPLE } from '../config/host-config-example.ts';
import { VM_SPEC_EXAMPLE } from '../config/vm-spec-example.ts';
import { addAccess, addPki, addTenants } from './access-definition.ts';
import { CliError } from './cli-error.ts';
import {
  atLeastOne,
  command,
  examples,
  type Finish,
  positiveNumber,
  wholeNumber,
} from './command-definition.ts';
import { EXIT_CODES, exitCodeOf, exitCodesText } from './exit-codes.ts';
import { addForesight } from './foresight-definition.ts';
import { addInstallation } from './installation-definition.ts';
import { addLimits } from './limits-definition.ts';
import { Output } from './output.ts';
import { addSite } from './site-definition.ts';
import { addSnapshot } from './snapshot-definition.ts';
import { addTelemetry } from './telemetry-definition.ts';

/** Runs the command line `args` and returns the exit code. Never throws. */
export async function main(args: readonly string[]): Promise<number> {
  const out = new Output({ json: args.includes('--json') });
  // Whoever reads our output may have seen enough, as in `understudy events | head`.
  process.stdout.on('error', () => process.exit(EXIT_CODES.failed.code));
  let exitCode: number = EXIT_CODES.ok.code;
  const program = buildProgram(out, (code) => {
    exitCode = code;
  });
  try {
    if (args.length === 0) program.outputHelp();
    else await program.parseAsync(args, { from: 'user' });
    return exitCode;
  } catch (thrown) {
    if (thrown instanceof CommanderError && thrown.exitCode === 0) return EXIT_CODES.ok.code; // --help, --version
    const error = thrown instanceof CommanderError ? usageError(thrown, hintFor(program, args)) : thrown;
    out.error(error);
    return exitCodeOf(error);
  }
}

/** All commands with their options. What they do is imported when one is run: `ls` must not wait for the rest. */
export function buildProgram(out: Output, finish: (exitCode: number) => void): Command {
  const program = new Command('understudy')
    .description('Gives QEMU virtual machines a shadow that goes on when they die.')
    .version(packageVersion(), '--version', 'print the version')
    .helpOption('-h, --help', 'show help')
    .exitOverride()
    // Errors are told in one way, by Output.
    .configureOutput({ writeErr: () => {} })
    .helpCommand(false)
    .addHelpText('after', `\n${exitCodesText()}\nMore on a command: understudy help COMMAND`);
  program.hook('preAction', async (_, action) => {
    if (HOST_CONFIG_UNUSED.includes(action.name())) return;
    (await import('./host-settings.ts')).applyHostConfig();
  });
  addRun(program, out, finish);
  addQueries(program, out, finish);
  addTelemetry(program, out, finish);
  addForesight(program, out, finish);
  addLimits(program, out, finish);
  addActions(program, out, finish);
  addDemo(program, out, finish);
  addDeclared(program, out, finish);
  addState(program, out, finish);
  addAccess(program, out, finish);
  addPki(program, out, finish);
  addTenants(program, out, finish);
  addHost(program, out, finish);
  addSite(program, out, finish);
  addInstallation(program, out, { finish, version: packageVersion() });
  addHelp(program);
  return program;
}

function addRun(program: Command, out: Output, finish: Finish): void {
  command(program, 'run <spec>', 'start the VM of a specification and return when it is protected')
    .option('--foreground', 'stay, print events, stop the VM on Ctrl-C', false)
    .addOption(
      new Option(
        '--wait <goal>',
        'when to return: the VM is protected, it has started, or its keeper answers',
      )
        .choices(['protected', 'started', 'none'])
        .default('protected'),
    )
    .option('--timeout <seconds>', 'how long to wait for that', positiveNumber, 300)
    .option(
      '--anew',
      'begin anew though another host may have the VM; only when that is lost for good',
      false,
    )
    .addHelpText(
      'after',
      examples('understudy run redis.yaml', 'understudy run redis.yaml --foreground --json'),
    )
    .addHelpText(
      'after',
      `\nA specification with all fields, and their defaults where they have one:\n\n${VM_SPEC_EXAMPLE}`,
    )
    .action(async (spec: string, { wait, timeout, foreground, anew }) => {
      const { run } = await import('./run-command.ts');
      finish(await run(spec, { wait, foreground, anew, timeoutMs: timeout * 1000 }, out));
    });
}

function addQueries(program: Command, out: Output, finish: Finish): void {
  command(program, 'ls', 'list the VMs of this user')
    .addHelpText('after', examples('understudy ls', 'understudy ls --json'))
    .action(async () => finish(await (await import('./ls-command.ts')).ls(out)));
  command(program, 'status <name>', 'show one VM: who runs, who stands by, epochs, pauses, clock, network')
    .addHelpText('after', examples('understudy status redis-demo'))
    .action(async (name: string) => finish(await (await import('./status-command.ts')).status(name, out)));
  command(program, 'top', 'watch all VMs: epochs, pauses, held output, lag of the shadow, guest clock')
    .option('--interval <seconds>', 'how often to look', positiveNumber, 2)
    .option('--once', 'print a table of one interval and end; so it is when the output is no terminal', false)
    .addHelpText(
      'after',
      examples('understudy top', 'understudy top --once', 'understudy top --json --interval 10'),
    )
    .action(async ({ interval, once }) => {
      const { top } = await import('./top-command.ts');
      finish(await top({ intervalMs: interval * 1000, once }, out));
    });
  command(program, 'events [name]', 'show what happened to one VM or to all')
    .option('--follow', 'go on with the events to come, until the VMs end', false)
    .option('--since <number>', 'only events after this number', wholeNumber)
    .option('--host', 'those that the host knows, also of VMs that are gone', false)
    .addHelpText(
      'after',
      examples('understudy events redis-demo --follow', 'understudy events --host --follow --json'),
    )
    .action(async (name: string | undefined, { host, follow, since }) => {
      if (host) {
        const { hostEvents } = await import('./host-events.ts');
        finish(await hostEvents({ vm: name, follow, since }, out));
        return;
      }
      const { events } = await import('./events-command.ts');
      finish(await events(name, { follow, since: since ?? 0 }, out));
    });
}

function addActions(program: Command, out: Output, finish: Finish): void {
  command(program, 'promote <name>', 'planned switch to the shadow; nothing is lost')
    .addHelpText('after', examples('understudy promote redis-demo'))
    .action(async (name: string) => finish(await (await import('./promote-command.ts')).promote(name, out)));
  command(program, 'protect <name>', 'give a VM a shadow from now on')
    .addOption(
      new Option('--wait <goal>', 'when to return: the VM is protected, or one is being made')
        .choices(['protected', 'none'])
        .default('protected'),
    )
    .option('--timeout <seconds>', 'how long to wait for that', positiveNumber, 300)
    .addHelpText(
      'after',
      examples('understudy protect redis-demo', 'understudy protect redis-demo --wait none'),
    )
    .action(async (name: string, { wait, timeout }) => {
      const { protect } = await import('./protect-commands.ts');
      finish(await protect(name, { wait, timeoutMs: timeout * 1000 }, out));
    });
  command(program, 'unprotect <name>', 'take the shadow from a VM: its output no longer waits')
    .addHelpText('after', examples('understudy unprotect redis-demo'))
    .action(async (name: string) =>
      finish(await (await import('./protect-commands.ts')).unprotect(name, out)),
    );
  command(program, 'test-failover <name>', 'bring a copy of the shadow up, apart from the world, and end it')
    .addHelpText('after', examples('understudy test-failover redis-demo --json'))
    .action(async (name: string) =>
      finish(await (await import('./failover-command.ts')).testFailover(name, out)),
    );
  command(
    program,
    'stop <name>',
    'power the VM off and remove all that belongs to it; also after a lost keeper',
  )
    .option('--force', 'do not ask the guest; also ends a keeper that hangs', false)
    .addOption(
      new Option(
        '--then <policy>',
        'what becomes of its state: not kept, gone on from at the next start, or kept as a snapshot; by default what the specification says',
      ).choices(['remove', 'suspend', 'snapshot']),
    )
    .addHelpText(
      'after',
      examples(
        'understudy stop redis-demo',
        'understudy stop redis-demo --force',
        'understudy stop redis-demo --then suspend',
      ),
    )
    .action(async (name: string, options) => {
      const { stop } = await import('./stop-command.ts');
      finish(await stop(name, options, out));
    });
  command(program, 'console <name>', 'join the serial console; Ctrl-] leaves it')
    .option('--linger <seconds>', 'show output for so long after piped input has ended', positiveNumber, 1)
    .addHelpText(
      'after',
      examples('understudy console redis-demo', 'echo uptime | understudy console redis-demo'),
    )
    .action(async (name: string, { linger }) => {
      const { joinConsole } = await import('./console-command.ts');
      finish(await joinConsole(name, { lingerMs: linger * 1000 }, out));
    });
}

/** What needs the host daemon. */
function addDeclared(program: Command, out: Output, finish: Finish): void {
  command(program, 'host', 'be the daemon that owns the VMs of this machine, until SIGTERM or Ctrl-C')
    .option('--config <file>', 'its configuration; by default /etc/understudy/host.yaml')
    .option('--state <directory>', 'what survives a reboot; by default /var/lib/understudy')
    .option('--socket <path>', 'where to listen; by default /run/understudy/host.sock')
    .option('--listen <address>', 'listen for other machines too, e.g. 10.0.0.1:7443; only with TLS')
    .option('--tls-cert <file>', 'certificate of this host, PEM')
    .option('--tls-key <file>', 'its key')
    .option('--client-ca <file>', 'take client certificates that this CA has signed')
    .addHelpText('after', examples('understudy host', 'understudy host --state /srv/understudy'))
    .addHelpText('after', `\nA configuration with all keys:\n\n${HOST_CONFIG_EXAMPLE}`)
    .action(async (options) => (await import('./host-command.ts')).becomeHost(options));
  const waiting = (added: Command) =>
    added
      .addOption(
        new Option('--wait <goal>', 'when to return: the VM is protected, it has started, or at once')
          .choices(['protected', 'started', 'none'])
          .default('protected'),
      )
      .option('--timeout <seconds>', 'how long to wait for that', positiveNumber, 300);
  waiting(command(program, 'create <spec>', 'declare a VM on the host, which keeps it running from now on'))
    .option('--stopped', 'declare it only', false)
    .option('--tenant <tenant>', 'whose it is to be; by default of whoever asks')
    .addHelpText('after', examples('understudy create redis.yaml', 'understudy create redis.yaml --stopped'))
    .action(async (spec: string, { wait, timeout, stopped, tenant }) => {
      const { create } = await import('./declared-commands.ts');
      finish(await create(spec, { wait, stopped, tenant, timeoutMs: timeout * 1000 }, out));
    });
  waiting(command(program, 'start <name>', 'have the host start a declared VM'))
    .option('--from-snapshot', 'go on from its snapshot, which stays', false)
    .option('--discard', 'give the state up that it was suspended in', false)
    .addHelpText(
      'after',
      examples(
        'understudy start redis-demo',
        'understudy start redis-demo --from-snapshot',
        'understudy start redis-demo --discard',
      ),
    )
    .action(async (name: string, { wait, timeout, fromSnapshot, discard }) => {
      const { start } = await import('./declared-commands.ts');
      finish(await start(name, { wait, timeoutMs: timeout * 1000, fromSnapshot, discard }, out));
    });
  waiting(command(program, 'change <name> <spec>', 'give a declared VM another specification'))
    .option('--restart', 'stop and start the VM, so that it takes effect now', false)
    .addHelpText(
      'after',
      examples(
        'understudy change redis-demo redis.yaml',
        'understudy change redis-demo redis.yaml --restart',
      ),
    )
    .action(async (name: string, specPath: string, { wait, timeout, restart }) => {
      const { change } = await import('./change-command.ts');
      finish(await change(name, { specPath, restart, wait, timeoutMs: timeout * 1000 }, out));
    });
  addSnapshots(program, out, finish);
  addSnapshot(program, out, finish);
  command(program, 'delete <name>', 'have the host end a declared VM and forget it')
    .addHelpText('after', examples('understudy delete redis-demo'))
    .action(async (name: string) => finish(await (await import('./declared-commands.ts')).remove(name, out)));
}

/** Hosts themselves, and what they remember. */
function addState(program: Command, out: Output, finish: Finish): void {
  command(program, 'hosts', 'the hosts that the daemon of this machine knows')
    .addHelpText('after', examples('understudy hosts', 'understudy hosts --json'))
    .action(async () => finish(await (await import('./hosts-command.ts')).hosts(out)));
  command(program, 'backup <file>', "write the host's state to a file, also while the daemon runs")
    .option('--state <directory>', 'where the state is; by default /var/lib/understudy')
    .addHelpText('after', examples('understudy backup /srv/backup/host.db'))
    .action(async (file: string, { state }) =>
      finish(await (await import('./archive-commands.ts')).backup(file, { state }, out)),
    );
  command(program, 'restore <file>', "put a backup in the place of the host's state; no daemon may run")
    .option('--state <directory>', 'where the state is; by default /var/lib/understudy')
    .option('--keep-tokens', 'take all its tokens for valid, also those that were revoked since')
    .addHelpText('after', examples('understudy restore /srv/backup/host.db'))
    .action(async (file: string, { state, keepTokens }) =>
      finish(await (await import('./archive-commands.ts')).restore(file, { state, keepTokens }, out)),
    );
}

function addSnapshots(program: Command, out: Output, finish: Finish): void {
  const snapshots = program
    .command('snapshots')
    .description('the states of VMs that a host has saved')
    .helpCommand(false)
    .helpOption('-h, --help', 'show help');
  command(snapshots, 'ls', 'list suspended VMs and snapshots with size and age')
    .addHelpText('after', examples('understudy snapshots ls', 'understudy snapshots ls --json'))
    .action(async () => finish(await (await import('./snapshots-command.ts')).listStates(out)));
  command(snapshots, 'rm <name>', 'remove the snapshot of a VM that does not run')
    .option('--suspended', 'the state that it was suspended in, not the snapshot', false)
    .addHelpText('after', examples('understudy snapshots rm redis-demo'))
    .action(async (name: string, options) => {
      const { removeState } = await import('./snapshots-command.ts');
      finish(await removeState(name, options, out));
    });
}

function addDemo(program: Command, out: Output, finish: Finish): void {
  command(program, 'demo', 'kill the QEMU of a Redis VM under load, again and again, and see what is lost')
    .option('--kills <number>', 'how often', atLeastOne, 5)
    .option('--clients <number>', 'clients that write, each over one TCP connection', atLeastOne, 4)
    .option('--seed <number>', 'repeats the moments of the kills; by default they are random', wholeNumber)
    .addOption(
      new Option('--network <kind>', 'by default tap where this user may use it, else passt').choices([
        'tap',
        'passt',
      ]),
    )
    .option('--keep', 'leave the VM running', false)
    .addHelpText('after', examples('understudy demo', 'understudy demo --kills 20 --seed 7 --json'))
    .action(async (options) => finish(await (await import('./demo-command.ts')).demo(options, out)));
}

function addHost(program: Command, out: Output, finish: Finish): void {
  command(program, 'doctor', 'say what works on this machine, and what to do about the rest')
    .option('--probe', 'boot a guest to see which accelerator works; builds the demo guest if need be', false)
    .addHelpText('after', examples('understudy doctor', 'understudy doctor --probe --json'))
    .action(async (options) => finish(await (await import('./doctor-command.ts')).doctor(options, out)));
  const guest = program
    .command('guest')
    .description('the demo guest: Linux with Redis')
    .helpCommand(false)
    .helpOption('-h, --help', 'show help');
  command(guest, 'build', 'build the demo guest from Debian packages into the cache; installs nothing')
    .option('--spec <file>', 'also write a specification that runs it')
    .addHelpText('after', examples('understudy guest build --spec redis.yaml'))
    .action(async (options) => finish(await (await import('./guest-command.ts')).buildGuest(options, out)));
}

function addHelp(program: Command): void {
  program
    .command('help')
    .argument('[topic...]', 'a command, or exit-codes')
    .description('show help')
    .helpOption('-h, --help', 'show help')
    .action((topic: string[]) => {
      if (topic[0] === 'exit-codes') {
        process.stdout.write(exitCodesText());
        return;
      }
      let found = program;
      for (const word of topic) {
        const next = found.commands.find((candidate) => candidate.name() === word);
        if (next === undefined)
          throw new CliError('CLI_USAGE', `there is no help on '${topic.join(' ')}'`, { hint: USAGE_HINT });
        found = next;
      }
      found.outputHelp();
    });
}

/** They read it themselves, or have no use for it and must work when it is wrong. */
const HOST_CONFIG_UNUSED: readonly string[] = ['host', 'install', 'help', 'man'];

const USAGE_HINT = '`understudy help` lists the commands.';

/** The help of the command that the words name, as far as they name one. */
function hintFor(program: Command, words: readonly string[]): string {
  const named: string[] = [];
  let found = program;
  for (const word of words) {
    const next = found.commands.find((candidate) => candidate.name() === word);
    if (next === undefined) break;
    named.push(word);
    found = next;
  }
  return named.length === 0 ? USAGE_HINT : `\`understudy help ${named.join(' ')}\` shows how it is used.`;
}

function usageError({ code, message }: CommanderError, hint: string): CliError {
  // Commands that only group others answer with their help.
  if (code === 'commander.help') return new CliError('CLI_USAGE', 'a command is missing', { hint });
  return new CliError('CLI_USAGE', message.replace(/^error: /, ''), { hint });
}

function packageVersion(): string {
  return JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')).version;
}
