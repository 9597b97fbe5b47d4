import type { HostEvent } from '../api/resources.ts';
import { HostError } from './host-error.ts';
import type { SavedKind } from './saved-states.ts';

export function isSuspended(vm: string): HostError {
  return new HostError('HOST_VM_SUSPENDED', `${vm} is suspended, and would lose that state`, {
    hint: 'Start it without a snapshot to go on, or discard that state: --discard.',
    facts: { vm },
  });
}

export function noSavedState(vm: string, kind: SavedKind): HostError {
  const what = kind === 'snapshot' ? 'snapshot' : 'suspended state';
  return new HostError('HOST_NO_SAVED_STATE', `there is no ${what} of ${vm}`, {
    hint: '`understudy snapshots ls` lists what there is.',
    facts: { vm },
  });
}

export function noStore(): HostError {
  return new HostError('HOST_NO_SERIES', 'this host keeps no samples: its series store could not be opened', {
    hint: 'The log of the daemon says why. `telemetry` of its configuration says where they are kept.',
  });
}

export function noTelemetry(vm: string): HostError {
  return new HostError('HOST_NO_TELEMETRY', `there is no sample of ${vm} yet`, {
    hint: 'Samples come from VMs that act on this host, some seconds after their start.',
    facts: { vm },
  });
}

export function runs(vm: string): HostError {
  return new HostError('HOST_VM_RUNS', `${vm} runs, is being started or is being stopped`, {
    hint: `Stop it first, and wait until \`understudy ls\` shows that it is absent.`,
    facts: { vm },
  });
}

export function actsElsewhere(vm: string, host: string): HostError {
  return new HostError('HOST_VM_ELSEWHERE', `${vm} acts on ${host}`, {
    hint: `Give the command on ${host}, or have it come back first: \`understudy migrate ${vm}\` there.`,
    facts: { vm, host },
  });
}

export function cannotEnd(vm: string, facts: HostEvent['facts']): HostError {
  return new HostError('HOST_VM_STUCK', `${vm} cannot be ended yet: ${facts.error}`, {
    hint: `The host goes on trying, and forgets it then. \`understudy stop ${vm} --force\` ends a keeper that hangs.`,
    facts: { vm },
  });
}
