import { dirname, resolve } from 'node:path';
import type { Vm } from '../api/resources.ts';
import { readSpec, readVmSpec } from '../config/vm-spec.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { isOwnHost } from './host-choice.ts';
import { type Goal, hostClient, untilVm } from './host-connection.ts';
import type { Output } from './output.ts';

export interface StartOptions {
  readonly wait: Goal;
  readonly timeoutMs: number;
}

/** Declares the VM of a specification on the host of this machine, and waits until it is as far as asked for. */
export async function create(
  specPath: string,
  options: StartOptions & { readonly stopped: boolean; readonly tenant?: string | undefined },
  out: Output,
): Promise<number> {
  const { tenant } = options;
  // Files of another machine are not here, and what a tenant's policy fills in is not known here: the host checks it all.
  const isJudgedHere = isOwnHost() && tenant === undefined;
  const text = isJudgedHere ? readVmSpec(specPath).text : readSpec(specPath);
  const body = {
    spec: text,
    directory: dirname(resolve(specPath)),
    ...(tenant !== undefined && { tenant }),
    desired: options.stopped ? ('stopped' as const) : ('running' as const),
  };
  const declared = await hostClient().call('declareVm', { body });
  const goal = options.stopped ? 'none' : goalOf(options.wait, declared.shadowWanted);
  const vm = goal === 'none' ? declared : await untilVm(declared.name, { ...options, goal, out });
  out.result(vm, () => vmText(vm));
  return EXIT_CODES.ok.code;
}

/** Has the host start a VM that it knows. */
export async function start(
  name: string,
  options: StartOptions & { readonly fromSnapshot: boolean; readonly discard: boolean },
  out: Output,
): Promise<number> {
  const { fromSnapshot, discard } = options;
  const body = { discard, ...(fromSnapshot && { from: 'snapshot' as const }) };
  const { shadowWanted } = await hostClient().call('startVm', { params: { name }, body });
  const vm = await untilVm(name, { ...options, goal: goalOf(options.wait, shadowWanted), out });
  out.result(vm, () => vmText(vm));
  return EXIT_CODES.ok.code;
}

/** Has the host end a VM and forget it. */
export async function remove(name: string, out: Output): Promise<number> {
  await hostClient().call('deleteVm', { params: { name } });
  out.result({ name, deleted: true }, () => `${name} is deleted`);
  return EXIT_CODES.ok.code;
}

/** Without a shadow there is nothing to wait for but the start. */
function goalOf(wait: Goal, hasShadow: boolean): Goal {
  return wait === 'protected' && !hasShadow ? 'started' : wait;
}

function vmText({ name, desired, observed, version }: Vm): string {
  return `${name} is ${observed.state} (desired: ${desired}, specification ${version})`;
}
