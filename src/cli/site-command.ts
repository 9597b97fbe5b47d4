import { fileURLToPath } from 'node:url';
import { becomeProgram } from './process-change.ts';

const SITE = fileURLToPath(new URL('../keeper/site-main.ts', import.meta.url));

/** Becomes the process that answers for this host. */
export function becomeSite({ config }: { readonly config?: string }): never {
  const env = { ...process.env, ...(config !== undefined && { UNDERSTUDY_SITE: config }) };
  return becomeProgram([SITE], { command: 'site', env });
}
