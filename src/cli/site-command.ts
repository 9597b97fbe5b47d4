import { fileURLToPath } from 'node:url';
import { CliError } from './cli-error.ts';

const SITE = fileURLToPath(new URL('../keeper/site-main.ts', import.meta.url));

/** Becomes the process that answers for this host: as `becomeHost` does. */
export function becomeSite({ config }: { readonly config?: string }): never {
  if (process.execve === undefined) {
    throw new CliError('CLI_NODE_TOO_OLD', 'this Node cannot replace its process', {
      hint: 'Start it as `./run understudy site` or `bin/understudy site`, which bring Node 24 along.',
    });
  }
  const environment = { ...process.env, ...(config !== undefined && { UNDERSTUDY_SITE: config }) };
  return process.execve(process.execPath, [process.execPath, SITE], environment as Record<string, string>);
}
