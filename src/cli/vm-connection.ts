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
  throw new KeeperError(
    'KEEPER_LOST',
    failed ? `${name} failed and is not running` : `the keeper of ${name} was killed`,
    {
      hint: `\`understudy events ${name}\` shows what happened, \`understudy stop ${name}\` clears it away.`,
      facts: { vm: name },
    },
  );
}

export function openControl(name: string): Promise<ControlClient> {
  return ControlClient.connect(controlSocketOf(name), { vm: name, clock: systemClock });
}
