import { ApiClient } from '../api/api-client.ts';
import { ApiError } from '../api/api-error.ts';
import type { Vm } from '../api/resources.ts';
import { systemClock as clock } from '../base/clock.ts';
import { KeeperError, type KeeperErrorCode } from '../control/keeper-error.ts';
import { CliError } from './cli-error.ts';
import { chosenHost } from './host-choice.ts';
import { Interruption } from './interruption.ts';
import type { Output } from './output.ts';

const POLL_MS = 100;

export type Goal = 'protected' | 'started' | 'absent' | 'none';

export function hostClient(): ApiClient {
  return new ApiClient({ ...chosenHost(), clock });
}

/** Whether there is a host, and it knows this VM. @throws ApiError for a host that cannot be spoken to */
export async function knowsVm(name: string): Promise<boolean> {
  try {
    await hostClient().call('getVm', { params: { name } });
    return true;
  } catch (thrown) {
    if (thrown instanceof ApiError && ['API_UNREACHABLE', 'HOST_VM_UNKNOWN'].includes(thrown.code))
      return false;
    throw thrown;
  }
}

/**
 * Waits until the host has a VM as far as asked for. The host goes on when this ends, whatever the reason.
 * @throws what keeps the VM from starting, with its code; CLI_WAIT_TIMEOUT, CLI_INTERRUPTED
 */
export async function untilVm(
  name: string,
  { goal, timeoutMs, out }: { goal: Goal; timeoutMs: number; out: Output },
): Promise<Vm> {
  using interruption = new Interruption();
  const client = hostClient();
  const endMs = clock.nowMs() + timeoutMs;
  for (;;) {
    const vm = await client.call('getVm', { params: { name } }, interruption.signal);
    const { state, problem, actsOn } = vm.observed;
    if (isReached(goal, state)) return vm;
    if (actsOn !== null) throw actsElsewhere(name, actsOn);
    if (problem !== null) throw notStarted(name, problem);
    out.progress(`${name}:`, state);
    if (clock.nowMs() > endMs) {
      throw new CliError(
        'CLI_WAIT_TIMEOUT',
        `${name} is not ${goal} after ${timeoutMs / 1000} s (${state})`,
        {
          hint: `The host goes on trying. See \`understudy events ${name}\`.`,
          facts: { vm: name, state },
        },
      );
    }
    await clock.sleep(POLL_MS, interruption.signal);
  }
}

function isReached(goal: Goal, state: Vm['observed']['state']): boolean {
  if (goal === 'none') return true;
  if (goal === 'absent') return state === 'absent';
  if (state === 'protected') return true;
  return goal === 'started' && (state === 'alone' || state === 'syncing');
}

function actsElsewhere(name: string, host: string): KeeperError {
  return new KeeperError('HOST_VM_ELSEWHERE' as KeeperErrorCode, `${name} acts on ${host}`, {
    hint: `It is not started here as long as it does. \`understudy status ${name}\` on ${host} shows it.`,
    facts: { vm: name, host },
  });
}

function notStarted(name: string, problem: NonNullable<Vm['observed']['problem']>): KeeperError {
  return new KeeperError(problem.code as KeeperErrorCode, problem.message, {
    hint: `${problem.hint ?? ''} The host tries again by itself; \`understudy delete ${name}\` ends that.`.trim(),
    facts: { vm: name },
  });
}
