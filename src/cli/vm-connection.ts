import { systemClock } from '../base/clock.ts';
import { ControlClient } from '../control/control-client.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { controlSocketOf, type FoundVm, RunDirectory } from '../control/run-directory.ts';

/** @throws KeeperError KEEPER_NOT_RUNNING */
export function findVm(name: string): FoundVm {
  const vm = RunDirectory.find(name);
  if (vm !== undefined) return vm;
  throw new KeeperError('KEEPER_NOT_RUNNING', `there is no VM named ${name}`, {
    hint: '`understudy ls` lists the VMs of this user.',
    facts: { vm: name },
  });
}

/** @throws KeeperError KEEPER_NOT_RUNNING, KEEPER_LOST, KEEPER_NO_ANSWER */
export async function connectTo(name: string): Promise<ControlClient> {
  const vm = findVm(name);
  if (vm.keeper === 'alive') return openControl(name);
  const failed = vm.record?.failed === true;
  const stands =
    vm.orphan === undefined ? '' : `, and its QEMU (process ${vm.orphan.process.pid}) stands still`;
  const back = 'The host, or `understudy run` with the same specification, goes on with it';
  throw new KeeperError(
    'KEEPER_LOST',
    failed ? `${name} failed and is not running` : `the keeper of ${name} was killed${stands}`,
    {
      hint: failed
        ? `\`understudy events ${name}\` shows what happened, \`understudy stop ${name}\` clears it away.`
        : `${back}, \`understudy stop ${name}\` ends it and clears it away.`,
      facts: { vm: name, ...(vm.orphan !== undefined && { qemuPid: vm.orphan.process.pid }) },
    },
  );
}

export function openControl(name: string): Promise<ControlClient> {
  return ControlClient.connect(controlSocketOf(name), { vm: name, clock: systemClock });
}

/** The host where a VM acts whose keeper is here. Undefined where that is this one, or its keeper does not say. */
export async function actingHost(name: string): Promise<string | undefined> {
  try {
    using control = await openControl(name);
    return (await control.status()).actsOn;
  } catch {
    return undefined;
  }
}
