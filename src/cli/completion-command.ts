import { RunDirectory } from '../control/run-directory.ts';
import type { CommandNode } from './command-tree.ts';
import { bashCompletion } from './completion-bash.ts';
import { fishCompletion } from './completion-fish.ts';
import { zshCompletion } from './completion-zsh.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { hostClient } from './host-connection.ts';
import { manPage } from './man-page.ts';
import type { Output } from './output.ts';

const SCRIPTS: Readonly<Record<string, (program: CommandNode) => string>> = {
  bash: bashCompletion,
  zsh: zshCompletion,
  fish: fishCompletion,
};
/** Somebody waits at the keyboard. */
const HOST_DEADLINE_MS = 1000;
const VMS_MAX = 1000;

/** Prints a completion script, or the names of VMs that one offers. */
export async function completion(
  shell: string,
  { program, out }: { program: CommandNode; out: Output },
): Promise<number> {
  const script = SCRIPTS[shell]?.(program);
  if (script !== undefined) {
    out.result({ shell, script }, () => script.trimEnd());
    return EXIT_CODES.ok.code;
  }
  const names = [...new Set([...runningVms(), ...(await declaredVms())])].sort();
  out.result({ vms: names }, () => names.join('\n'));
  return EXIT_CODES.ok.code;
}

export function printManPage({
  program,
  version,
  out,
}: {
  program: CommandNode;
  version: string;
  out: Output;
}): number {
  const page = manPage(program, { version, exitCodes: Object.values(EXIT_CODES) });
  out.result({ page }, () => page.trimEnd());
  return EXIT_CODES.ok.code;
}

/** Whoever has no run directory has no VMs. */
function runningVms(): readonly string[] {
  try {
    return RunDirectory.list().map(({ name }) => name);
  } catch {
    return [];
  }
}

/** What a host knows, when there is one that answers soon. */
async function declaredVms(): Promise<readonly string[]> {
  const signal = AbortSignal.timeout(HOST_DEADLINE_MS);
  try {
    const { vms } = await hostClient().call('listVms', { query: { limit: VMS_MAX } }, signal);
    return vms.map(({ name }) => name);
  } catch {
    return [];
  }
}
