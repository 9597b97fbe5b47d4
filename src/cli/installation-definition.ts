import { Argument, type Command } from 'commander';
import { command, examples, type Finish } from './command-definition.ts';
import { commandTree } from './command-tree.ts';
import type { Output } from './output.ts';

interface Setting {
  readonly finish: Finish;
  readonly version: string;
}

/** What makes the package a part of the system, and what is generated from the definition of the commands. */
export function addInstallation(program: Command, out: Output, { finish, version }: Setting): void {
  addInstall(program, out, { finish, version });
  command(program, 'completion', 'print the completion for a shell, or the names of VMs that it completes')
    .addArgument(new Argument('<shell>').choices(['bash', 'zsh', 'fish', 'vms']))
    .addHelpText(
      'after',
      examples('source <(understudy completion bash)', 'understudy completion fish | source'),
    )
    .action(async (shell: string) => {
      const { completion } = await import('./completion-command.ts');
      finish(await completion(shell, { program: commandTree(program), out }));
    });
  command(program, 'man', 'print the manual page, understudy.1')
    .addHelpText('after', examples('understudy man | man -l -'))
    .action(async () => {
      const { printManPage } = await import('./completion-command.ts');
      finish(printManPage({ program: commandTree(program), version, out }));
    });
}

function addInstall(program: Command, out: Output, { finish, version }: Setting): void {
  command(
    program,
    'install',
    'write systemd units, configuration, manual page and completions; link the command',
  )
    .option('--root <directory>', 'write below this directory, for packages and images', '/')
    .option('--package <directory>', 'where the package will lie; by default where it is')
    .option('--dry-run', 'say what would be done', false)
    .option('--force', 'replace files that others wrote or changed', false)
    .addHelpText('after', examples('understudy install --dry-run', 'understudy install'))
    .action(async (options) => {
      const { install } = await import('./install-command.ts');
      finish(await install({ ...options, version, program: commandTree(program) }, out));
    });
  command(program, 'uninstall', 'remove what install wrote and nobody has changed since; VMs and state stay')
    .option('--root <directory>', 'what install was given', '/')
    .option('--purge', 'also remove state, cache and configuration', false)
    .option('--yes', 'do not ask', false)
    .option('--leave-running', 'let VMs that run go on without a host', false)
    .option('--dry-run', 'say what would be done', false)
    .addHelpText('after', examples('understudy uninstall', 'understudy uninstall --purge --yes'))
    .action(async (options) => {
      const { uninstall } = await import('./install-command.ts');
      finish(await uninstall(options, out));
    });
}
