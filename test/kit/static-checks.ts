import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** What `npm run check` runs before the unit tests, in this order, quickest first. */
export interface StaticCheck {
  readonly name: string;
  readonly command: readonly [string, ...string[]];
}

export const STATIC_CHECKS: readonly StaticCheck[] = [
  { name: 'format', command: ['biome', 'format', '.'] },
  { name: 'lint', command: ['biome', 'check', '--formatter-enabled=false', '--error-on-warnings', '.'] },
  { name: 'types', command: ['tsc', '-p', '.'] },
  { name: 'import directions', command: ['depcruise', 'src', 'guest', 'bench', 'test'] },
  { name: 'dead code', command: ['knip'] },
];

export const REPOSITORY = fileURLToPath(new URL('../..', import.meta.url));

/** Runs a command of the repository's own tools, without standard input. */
export async function runTool(
  [program, ...args]: readonly [string, ...string[]],
  { workingFolder = REPOSITORY }: { workingFolder?: string } = {},
): Promise<{ exitCode: number; output: string }> {
  const path = [join(REPOSITORY, 'node_modules', '.bin'), process.env.PATH].join(delimiter);
  const child = spawn(program, args, {
    cwd: workingFolder,
    env: { ...process.env, PATH: path },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  child.stdout.on('data', (chunk) => (output += chunk));
  child.stderr.on('data', (chunk) => (output += chunk));
  const [exitCode] = await once(child, 'close');
  return { exitCode: exitCode ?? 1, output };
}
