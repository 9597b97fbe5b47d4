import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { messageOf } from '../base/errors.ts';
import { CliError } from './cli-error.ts';
import type { Step } from './installation.ts';

const TOOL_DEADLINE_MS = 120_000;

export interface Where {
  readonly root: string;
  readonly dryRun: boolean;
}

/** In an image the group database is that of the image; where there is none its packages make the group. */
export async function ensureGroup(group: string, { root, dryRun }: Where): Promise<Step> {
  const what = `group ${group}`;
  const database = join(root, 'etc/group');
  if (!existsSync(database)) return { done: 'skipped', what, why: `there is no ${database}` };
  if (groupLine(database, group) !== undefined) return { done: 'unchanged', what };
  if (!dryRun) await runTool('groupadd', ['--system', ...below(root), group]);
  return { done: 'created', what };
}

export async function removeGroup(group: string, { root, dryRun }: Where): Promise<Step> {
  const what = `group ${group}`;
  const line = groupLine(join(root, 'etc/group'), group);
  if (line === undefined) return { done: 'absent', what };
  const members = line.split(':')[3] ?? '';
  if (members !== '') return { done: 'kept', what, why: `it has members: ${members}` };
  if (!dryRun) await runTool('groupdel', [...below(root), group]);
  return { done: 'removed', what };
}

function groupLine(database: string, group: string): string | undefined {
  return readFileSync(database, 'utf8')
    .split('\n')
    .find((line) => line.startsWith(`${group}:`));
}

function below(root: string): string[] {
  return root === '/' ? [] : ['--prefix', root];
}

/** @throws CliError CLI_TOOL_FAILED */
export async function runTool(program: string, args: readonly string[]): Promise<void> {
  try {
    await promisify(execFile)(program, args, { timeout: TOOL_DEADLINE_MS });
  } catch (cause) {
    const said = (cause as { stderr?: unknown }).stderr;
    const why = typeof said === 'string' && said.trim() !== '' ? said.trim() : messageOf(cause);
    throw new CliError('CLI_TOOL_FAILED', `${program} ${args.join(' ')}: ${why}`, {
      hint: 'What was done before stays. Mend what is named, then repeat the command.',
      facts: { program },
      cause,
    });
  }
}
