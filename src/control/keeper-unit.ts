import { execFile } from 'node:child_process';
import { statSync } from 'node:fs';
import { promisify } from 'node:util';
import { messageOf } from '../base/errors.ts';
import { KeeperError } from './keeper-error.ts';
import { dropOrder, outcomeOf, placeOrder } from './keeper-order.ts';
import type { KeeperWishes } from './keeper-wishes.ts';
import { assertStarted } from './start-outcome.ts';

export const HOST_UNIT = 'understudy-host.service';
/** Of `understudy site`. */
export const SITE_UNIT = 'understudy-site.service';
export const KEEPER_UNIT = 'understudy-keeper@.service';
/** In the unit of a keeper, for a start that hangs: probing the accelerator and compiling take a minute each. */
export const KEEPER_START_MAX_SECONDS = 300;
const SYSTEMCTL_MARGIN_MS = 30_000;

export interface WantedKeeper {
  readonly name: string;
  /** The specification, YAML. */
  readonly spec: string;
  /** Where it came from, for messages and relative paths. */
  readonly source: string;
  readonly wishes: KeeperWishes;
}

/** `understudy-keeper@redis.service`. Names of VMs need no escaping: systemd.unit(5). */
function keeperUnitOf(vm: string): string {
  return KEEPER_UNIT.replace('@', `@${vm}`);
}

/**
 * Has systemd start the keeper of a VM; resolves when the VM runs. The keeper lives on whatever becomes of this
 * process and its unit.
 * @throws what kept it from starting; KeeperError KEEPER_START_FAILED when it had no time to say so
 */
export async function startKeeperUnit({ name, ...wanted }: WantedKeeper): Promise<void> {
  const unit = keeperUnitOf(name);
  const order = placeOrder(name, wanted);
  try {
    const refusal = await systemctl('start', unit);
    const outcome = outcomeOf(name, order);
    if (outcome !== undefined) assertStarted(outcome);
    if (refusal === undefined && outcome !== undefined) return;
    // Without an outcome systemd did nothing: its unit is still there, of a keeper that is about to end.
    const why = refusal ?? `${unit} is active already`;
    throw new KeeperError('KEEPER_START_FAILED', `the keeper of ${name} could not be started: ${why}`, {
      hint: `See \`journalctl -u ${unit}\`. With keepers.start: direct the host starts keepers by itself.`,
      facts: { vm: name, unit },
    });
  } finally {
    dropOrder(name);
  }
}

/** Undefined when it did as it was told, else what it said. */
async function systemctl(...words: string[]): Promise<string | undefined> {
  try {
    const timeout = KEEPER_START_MAX_SECONDS * 1000 + SYSTEMCTL_MARGIN_MS;
    await promisify(execFile)('systemctl', ['--no-ask-password', ...words], { timeout });
    return undefined;
  } catch (thrown) {
    const said = (thrown as { stderr?: unknown }).stderr;
    return (typeof said === 'string' && said.trim().split('\n')[0]) || messageOf(thrown);
  }
}

/** What decides how keepers are started. */
interface ServiceSurroundings {
  /** systemd is the system's manager: sd_booted(3). */
  readonly systemdRuns: boolean;
  /** /proc/self/cgroup of this process. */
  readonly cgroup: string;
}

/** As units where that was asked for, or where systemd runs this process as the host's unit. */
export function keepersAreUnits(
  setting: 'auto' | 'direct' | 'systemd',
  { systemdRuns, cgroup }: ServiceSurroundings,
): boolean {
  if (setting !== 'auto') return setting === 'systemd';
  return systemdRuns && cgroup.split('\n').some((line) => line.endsWith(`/${HOST_UNIT}`));
}

export function systemdRuns(): boolean {
  return statSync('/run/systemd/system', { throwIfNoEntry: false })?.isDirectory() ?? false;
}
