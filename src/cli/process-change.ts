import { CliError } from './cli-error.ts';

/** This process becomes another program of ours: the one that was started, by a person or by systemd, is the one that runs. */
export function becomeProgram(
  words: readonly string[],
  { command, env = process.env }: { command: string; env?: NodeJS.ProcessEnv },
): never {
  if (process.execve === undefined) {
    throw new CliError('CLI_NODE_TOO_OLD', 'this Node cannot replace its process', {
      hint: `Start it as \`./run understudy ${command}\` or \`bin/understudy ${command}\`, which bring Node 24 along.`,
    });
  }
  return process.execve(process.execPath, [process.execPath, ...words], env as Record<string, string>);
}
