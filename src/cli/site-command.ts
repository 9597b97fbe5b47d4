import { fileURLToPath } from 'node:url';
import { becomeProgram } from './process-change.ts';

const SITE = fileURLToPath(new URL('../keeper/site-main.ts', import.meta.url));

/** Becomes the process that answers for this host, and says so in words or as JSON. */
export function becomeSite({ config, json }: { readonly config?: string; readonly json: boolean }): never {
  const env = { ...process.env, ...(config !== undefined && { UNDERSTUDY_SITE: config }) };
  return becomeProgram(json ? [SITE] : [SITE, '--text'], { command: 'site', env });
}
