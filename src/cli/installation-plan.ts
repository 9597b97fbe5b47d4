import { join } from 'node:path';
import { commentedHostConfig } from '../config/host-config-example.ts';
import type { HostConfig } from '../config/host-config-schema.ts';
import type { CommandNode } from './command-tree.ts';
import { bashCompletion } from './completion-bash.ts';
import { fishCompletion } from './completion-fish.ts';
import { zshCompletion } from './completion-zsh.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { manPage } from './man-page.ts';
import { systemdUnits } from './systemd-units.ts';

/** What the installation consists of. Paths are those of the installed system, without the root to write below. */
export type PlannedEntry =
  | {
      readonly kind: 'file';
      readonly path: string;
      readonly content: string;
      /** Of the administrator: written when it is not there, and not touched again. */
      readonly ifAbsent?: true;
    }
  | { readonly kind: 'link'; readonly path: string; readonly target: string }
  | { readonly kind: 'directory'; readonly path: string; readonly mode: number };

export const CONFIG_PATH = '/etc/understudy/host.yaml';
export const MANIFEST_PATH = '/usr/local/lib/understudy/installed.json';
const UNITS = '/usr/local/lib/systemd/system';
const SHARE = '/usr/local/share';

interface PlanOptions {
  readonly packageDirectory: string;
  readonly version: string;
  readonly config: HostConfig;
  readonly program: CommandNode;
}

/** Local software belongs below /usr/local; the files of a distribution are not touched. */
export function planInstallation(options: PlanOptions): readonly PlannedEntry[] {
  const { packageDirectory, version, config, program } = options;
  const node = join(packageDirectory, 'node_modules/.bin/node');
  const units = systemdUnits({ node, packageDirectory, config });
  const file = (path: string, content: string): PlannedEntry => ({ kind: 'file', path, content });
  return [
    { kind: 'directory', path: '/etc/understudy', mode: 0o755 },
    { kind: 'file', path: CONFIG_PATH, content: commentedHostConfig(), ifAbsent: true },
    { kind: 'directory', path: config.state ?? '/var/lib/understudy', mode: 0o700 },
    { kind: 'link', path: '/usr/local/bin/understudy', target: join(packageDirectory, 'bin/understudy') },
    ...[...units].map(([name, text]) => file(`${UNITS}/${name}`, text)),
    file(
      `${SHARE}/man/man1/understudy.1`,
      manPage(program, { version, exitCodes: Object.values(EXIT_CODES) }),
    ),
    file(`${SHARE}/bash-completion/completions/understudy`, bashCompletion(program)),
    file(`${SHARE}/zsh/site-functions/_understudy`, zshCompletion(program)),
    file(`${SHARE}/fish/vendor_completions.d/understudy.fish`, fishCompletion(program)),
  ];
}
