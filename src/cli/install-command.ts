import { existsSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline/promises';
import { fileURLToPath } from 'node:url';
import { loadHostConfig } from '../config/host-config.ts';
import { HOST_UNIT, SITE_UNIT, systemdRuns } from '../control/keeper-unit.ts';
import { RunDirectory } from '../control/run-directory.ts';
import { CliError } from './cli-error.ts';
import type { CommandNode } from './command-tree.ts';
import { EXIT_CODES } from './exit-codes.ts';
import {
  groupMadeBy,
  type InstallOptions,
  installEntries,
  noteGroup,
  type Step,
  uninstallEntries,
} from './installation.ts';
import { CONFIG_PATH, planInstallation } from './installation-plan.ts';
import type { Output } from './output.ts';
import { ensureGroup, removeGroup, runTool, type Where } from './system-group.ts';

const PACKAGE = resolve(fileURLToPath(new URL('../..', import.meta.url)));
const GROUP = 'understudy';

interface InstallFlags extends Where {
  readonly force: boolean;
  /** Where the package will lie; by default where it is. */
  readonly package?: string;
  readonly version: string;
  readonly program: CommandNode;
}

/** Makes the package a part of the system. Every step is told; repeated, it changes nothing. */
export async function install(flags: InstallFlags, out: Output): Promise<number> {
  const root = resolve(flags.root);
  needRoot(root, flags);
  const config = loadHostConfig({ path: join(root, CONFIG_PATH), named: false });
  const packageDirectory = resolve(flags.package ?? PACKAGE);
  const options: InstallOptions = { ...flags, root, packageDirectory };
  const plan = planInstallation({ ...flags, packageDirectory, config });
  const steps = installEntries(plan, options);
  const group = config.socket.group ?? GROUP;
  const grouped = await ensureGroup(group, options);
  if (grouped.done === 'created' && !flags.dryRun) noteGroup(group, options);
  const reloaded = steps.some(({ done }) => done === 'created' || done === 'updated')
    ? await reloadSystemd(options)
    : { done: 'unchanged' as const, what: 'systemd' };
  tell([...steps, grouped, reloaded], { ...options, after: nextSteps(root), out });
  return EXIT_CODES.ok.code;
}

interface UninstallFlags extends Where {
  readonly purge: boolean;
  readonly yes: boolean;
  readonly leaveRunning: boolean;
}

/** Takes away what `install` wrote. */
export async function uninstall(flags: UninstallFlags, out: Output): Promise<number> {
  const where = { root: resolve(flags.root), dryRun: flags.dryRun };
  const { root, dryRun } = where;
  needRoot(root, flags);
  refuseWithVms(root, flags);
  // Also refused, and before anything was changed, when there is no list of what to remove.
  const group = groupMadeBy(root);
  if (uninstallEntries({ root, dryRun: true }) === undefined) throw notInstalled(root);
  const config = loadHostConfig({ path: join(root, CONFIG_PATH), named: false });
  const doomed = flags.purge
    ? [
        config.state ?? '/var/lib/understudy',
        config.cacheDirectory ?? '/var/cache/understudy',
        '/etc/understudy',
      ]
    : [];
  if (flags.purge && !dryRun) await confirm(doomed, flags);
  const steps = await stopHost(where);
  steps.push(...(uninstallEntries(where) ?? []));
  for (const path of doomed) steps.push(purge(path, where));
  if (group !== null) steps.push(await removeGroup(group, where));
  steps.push(await reloadSystemd(where));
  tell(steps, { ...where, after: '', out });
  return EXIT_CODES.ok.code;
}

function purge(path: string, { root, dryRun }: Where): Step {
  if (!existsSync(join(root, path))) return { done: 'absent', what: path };
  if (!dryRun) rmSync(join(root, path), { recursive: true });
  return { done: 'removed', what: path, why: '--purge' };
}

function needRoot(root: string, { dryRun }: { dryRun: boolean }): void {
  if (root !== '/' || dryRun || process.geteuid?.() === 0) return;
  throw new CliError('CLI_ROOT_NEEDED', 'only root may change what is installed on this machine', {
    hint: 'Repeat it as root, or write below a folder of yours with --root.',
  });
}

/** What is installed below another root does not run these VMs. @throws CliError CLI_VMS_RUN */
function refuseWithVms(root: string, { purge, leaveRunning }: UninstallFlags): void {
  const running = root === '/' ? RunDirectory.list().filter(({ keeper }) => keeper === 'alive') : [];
  if (running.length === 0 || (leaveRunning && !purge)) return;
  const vms = running.map(({ name }) => name);
  throw new CliError('CLI_VMS_RUN', `VMs run on this machine: ${vms.join(', ')}`, {
    hint: purge
      ? 'Stop them first: with --purge their state goes.'
      : 'Stop them first, or let them run on without a host: --leave-running.',
    facts: { vms },
  });
}

function notInstalled(root: string): CliError {
  return new CliError('CLI_NOT_INSTALLED', `nothing is installed below ${root}`, {
    hint: 'Give the --root that `understudy install` was given.',
    facts: { root },
  });
}

/** @throws CliError CLI_USAGE without a yes */
async function confirm(doomed: readonly string[], { yes }: UninstallFlags): Promise<void> {
  if (yes) return;
  const question = `Declared VMs, events and configuration will be gone for good: ${doomed.join(', ')}`;
  if (process.stdin.isTTY && process.stderr.isTTY) {
    const asked = createInterface({ input: process.stdin, output: process.stderr });
    const answer = await asked.question(`${question}\nType yes to go on: `).finally(() => asked.close());
    if (answer.trim() === 'yes') return;
  }
  throw new CliError('CLI_USAGE', `--purge was not confirmed. ${question}`, { hint: 'Repeat with --yes.' });
}

async function reloadSystemd({ root, dryRun }: Where): Promise<Step> {
  const what = 'systemd';
  if (root !== '/') return { done: 'skipped', what, why: 'it does not manage what lies below another root' };
  if (!systemdRuns()) return { done: 'skipped', what, why: 'it does not run here' };
  if (!dryRun) await runTool('systemctl', ['daemon-reload']);
  return { done: 'updated', what, why: 'it has read its units again' };
}

async function stopHost({ root, dryRun }: Where): Promise<Step[]> {
  if (root !== '/' || !systemdRuns()) return [];
  const units = [HOST_UNIT, SITE_UNIT];
  if (!dryRun) await runTool('systemctl', ['disable', '--now', ...units]);
  return units.map((what) => ({ done: 'removed', what, why: 'stopped, and not started at boot any more' }));
}

function nextSteps(root: string): string {
  return root === '/'
    ? '\nStart the host now and at every boot: systemctl enable --now understudy-host\nIts configuration: /etc/understudy/host.yaml\nFor shadows on other hosts, with /etc/understudy/site.yaml: systemctl enable --now understudy-site'
    : '';
}

function tell(
  steps: readonly Step[],
  { root, dryRun, after, out }: Where & { after: string; out: Output },
): void {
  out.result({ root, dryRun, steps }, () =>
    [
      ...(dryRun ? ['Nothing was changed. This would be done:'] : []),
      ...steps.map(
        ({ done, what, why }) => `${done.padEnd(10)}${what}${why === undefined ? '' : ` (${why})`}`,
      ),
      ...(after === '' || dryRun ? [] : [after]),
    ].join('\n'),
  );
}
