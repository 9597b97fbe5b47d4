import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { resolve } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { formatBytes } from '../base/units.ts';
import { decodeLine } from '../control/control-protocol.ts';
import { stateDirectory } from '../control/run-paths.ts';
import { CliError, type CliErrorCode } from './cli-error.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { Interruption } from './interruption.ts';
import type { Output } from './output.ts';

const ARCHIVE = fileURLToPath(new URL('../host/archive-main.ts', import.meta.url));

export interface ArchiveOptions {
  readonly state?: string;
}

const facts = { path: z.string(), bytes: z.int(), vms: z.int(), events: z.int() };
const outcomeSchema = z.union([
  z.object({ ok: z.literal(true), ...facts, aside: z.string().nullish(), revokedTokens: z.int().default(0) }),
  z.object({
    ok: z.literal(false),
    error: z.looseObject({ code: z.string(), message: z.string(), hint: z.string().optional() }),
  }),
]);
type Done = Extract<z.output<typeof outcomeSchema>, { ok: true }>;

/** Writes the state of the host on this machine to a file, also while its daemon runs. */
export async function backup(file: string, options: ArchiveOptions, out: Output): Promise<number> {
  const step = 'copying and checking the state of the host';
  const { path, bytes, vms, events } = await archive('backup', { file, step, out, ...options });
  out.result(
    { path, bytes, vms, events },
    () => `${path}: ${vms} VMs and ${events} events, ${formatBytes(bytes)}, checked`,
  );
  return EXIT_CODES.ok.code;
}

/** Puts a backup in the place of the state, which is kept beside it. No daemon may use it. */
export async function restore(
  file: string,
  options: ArchiveOptions & { readonly keepTokens?: boolean | undefined },
  out: Output,
): Promise<number> {
  const step = 'checking the backup';
  const {
    path,
    bytes,
    vms,
    events,
    aside = null,
    revokedTokens,
  } = await archive('restore', { file, step, out, ...options });
  out.result({ path, bytes, vms, events, aside, revokedTokens }, () =>
    [
      `${vms} VMs and ${events} events of ${path} are in place; start the daemon with \`understudy host\``,
      ...(aside === null ? [] : [`what was there before is ${aside}`]),
      ...(revokedTokens === 0 ? [] : [`${revokedTokens} tokens of the backup were revoked: make new ones`]),
    ].join('\n'),
  );
  return EXIT_CODES.ok.code;
}

interface ArchiveWork extends ArchiveOptions {
  readonly keepTokens?: boolean | undefined;
  readonly file: string;
  /** What it is called while it is done. */
  readonly step: string;
  readonly out: Output;
}

/** In a process of its own, which knows the state: commands know the host by its API only. */
async function archive(
  action: 'backup' | 'restore',
  { file, step, out, state = stateDirectory(), keepTokens = false }: ArchiveWork,
): Promise<Done> {
  using interruption = new Interruption();
  out.progress(step);
  const flags = keepTokens ? ['--keep-tokens'] : [];
  const words = [ARCHIVE, action, '--state', resolve(state), ...flags, resolve(file)];
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', ...words], {
    stdio: ['ignore', 'pipe', 'pipe'],
    // Ctrl-C is for this process, which ends that one when nothing is lost by it.
    detached: true,
  });
  const closed = once(child, 'close');
  const said = Promise.all([text(child.stdout), text(child.stderr)]);
  const end = async () => {
    child.kill('SIGKILL');
    await closed;
    if (action === 'backup') removeDraft(`${resolve(file)}.${child.pid}.part`);
  };
  // A restoration is short, and stops at no place where it could not be repeated: it is waited for.
  if (action === 'backup') await interruption.orInterrupted(closed).catch(rethrowAfter(end));
  else await closed;
  const [line, lastWords] = await said;
  const outcome = outcomeSchema.safeParse(decodeLine(line)).data;
  if (outcome?.ok) return outcome;
  const { code, message, hint } = outcome?.error ?? {
    code: 'CLI_INTERNAL',
    message: `the ${action} ended without a word`,
    hint: `It said: ${lastWords.trim() || 'nothing'}`,
  };
  throw new CliError(code as CliErrorCode, message, { ...(hint !== undefined && { hint }) });
}

function rethrowAfter(work: () => Promise<void>) {
  return async (thrown: unknown): Promise<never> => {
    await work();
    throw thrown;
  };
}

/** SQLite keeps its own journal beside it. */
function removeDraft(path: string): void {
  for (const beside of ['', '-journal', '-wal', '-shm']) rmSync(`${path}${beside}`, { force: true });
}
