import { messageOf } from '../base/errors.ts';
import { filesOutside } from '../config/spec-files.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { KeeperError } from '../control/keeper-error.ts';
import type { Phase } from '../shadow/protection.ts';

export function notProtected(vm: string, phase: Phase): KeeperError {
  return new KeeperError('KEEPER_NOT_PROTECTED', `${vm} has no shadow in sync (${phase})`, {
    hint: 'Wait until `understudy status` says protected, then try again.',
  });
}

export function isStopping(vm: string): KeeperError {
  return new KeeperError('KEEPER_STOPPING', `${vm} is being stopped`, {
    hint: 'Start it again when it shall run.',
  });
}

export function cutShort(): KeeperError {
  return new KeeperError('KEEPER_TEST_CUT_SHORT', 'the shadow was needed, or ended, during the test', {
    hint: 'Try again when `understudy status` says protected.',
  });
}

export function shadowIsLent(vm: string, to: 'test' | 'snapshot'): KeeperError {
  if (to === 'test')
    return new KeeperError('KEEPER_TEST_UNDER_WAY', `the failover of ${vm} is being tested`, {
      hint: 'Wait for the event failover-test.',
    });
  return new KeeperError('KEEPER_SNAPSHOT_UNDER_WAY', `a snapshot of ${vm} is being written`, {
    hint: 'Wait for the event snapshot or snapshot-failed.',
  });
}

export function disksWouldBeWritten(vm: string): KeeperError {
  const message = `${vm} has disks that QEMU opens itself, which a second one that runs would write to`;
  return new KeeperError('KEEPER_TEST_REFUSED', message, {
    hint: 'Its failover can be tested only where no disk that is written to is an unprotectedDisk.',
    facts: { vm },
  });
}

export function ofOneHost(vm: string): KeeperError {
  return new KeeperError('KEEPER_HOST_REFUSED', `${vm} is a VM of this host alone`, {
    hint: 'Name the hosts that it may be on in shadow.hosts, and start it anew.',
    facts: { vm },
  });
}

export function noPlaceToSave(vm: string, kind: 'suspended' | 'snapshot'): KeeperError {
  const what = kind === 'suspended' ? 'be suspended' : 'leave a snapshot';
  return new KeeperError('KEEPER_NO_PLACE', `${vm} cannot ${what}: there is no place to save its state`, {
    hint: 'Only a host keeps states: declare the VM with `understudy create`, or stop it with --then remove.',
    facts: { vm },
  });
}

export function cannotSave(vm: string, cause: unknown): KeeperError {
  return new KeeperError('KEEPER_CANNOT_SAVE', `the state of ${vm} cannot be saved: ${messageOf(cause)}`, {
    hint: 'Remove what is named from its specification, or stop it with --then remove.',
    facts: { vm },
    cause,
  });
}

export function saveFailed(vm: string, why: string): KeeperError {
  return new KeeperError('KEEPER_SAVE_FAILED', `the state of ${vm} was not saved: ${why}`, {
    hint: `\`understudy events ${vm}\` shows what became of the VM; stop it again, or with --then remove.`,
    facts: { vm },
  });
}

const GO_ON_OR_DISCARD =
  'Start it without --from-snapshot to go on, or with --discard to give that state up.';

export function isSuspended(vm: string, hint = GO_ON_OR_DISCARD): KeeperError {
  return new KeeperError('KEEPER_SUSPENDED', `${vm} is suspended, and would lose that state`, {
    hint,
    facts: { vm },
  });
}

export function noSnapshot(vm: string): KeeperError {
  return new KeeperError('KEEPER_NO_SNAPSHOT', `there is no snapshot of ${vm}`, {
    hint: 'Stop it with --then snapshot to make one; `understudy snapshots ls` lists them.',
    facts: { vm },
  });
}

export function promoteFailed(vm: string): KeeperError {
  return new KeeperError('KEEPER_PROMOTE_FAILED', `the shadow of ${vm} could not take over`, {
    hint: `\`understudy events ${vm}\` shows why, and what became of the VM.`,
  });
}

export function noConsole(vm: string): KeeperError {
  return new KeeperError('KEEPER_NO_CONSOLE', `${vm} has no serial console`, {
    hint: 'Set console: true in its specification and start it again.',
  });
}

/** Another host acts as the VM. */
export function superseded(vm: string, host: string): KeeperError {
  return new KeeperError('KEEPER_SUPERSEDED', `${host} acts as ${vm} now`, {
    hint: `See \`understudy status ${vm}\` on ${host}.`,
    facts: { vm, host },
  });
}

/** Its state lies on the disk of another host. */
export function suspendedElsewhere(vm: string, host: string): KeeperError {
  return new KeeperError(
    'KEEPER_SUSPENDED_ELSEWHERE',
    `${vm} is suspended on ${host}, and goes on from there`,
    {
      hint: `Start it on ${host}. If that host is lost for good: \`understudy run SPEC --anew\`.`,
      facts: { vm, host },
    },
  );
}

/** What its guest wrote last is in the images of another host. */
export function disksElsewhere(vm: string, host: string): KeeperError {
  const message = `${vm} acted on ${host} last: what lies here of its disks is older`;
  return new KeeperError('KEEPER_DISKS_ELSEWHERE', message, {
    hint: `Start it on ${host}. If that host is lost for good: \`understudy run SPEC --anew\`; what was written there last is lost then.`,
    facts: { vm, host },
  });
}

/** It has acted elsewhere since: to go on from here would be to forget that. */
export function stateOutlived(vm: string, directory: string): KeeperError {
  const message = `${vm} has gone on elsewhere since it was suspended here: the state in ${directory} is the past`;
  return new KeeperError('KEEPER_STATE_OUTLIVED', message, {
    hint: `Give it up: \`understudy start ${vm} --discard\`.`,
    facts: { vm, directory },
  });
}

const GONE_ON: readonly string[] = [
  'KEEPER_SUPERSEDED',
  'KEEPER_SUSPENDED_ELSEWHERE',
  'KEEPER_DISKS_ELSEWHERE',
];

/** This VM is the affair of another host: what is left of it here is older. */
export function hasGoneOn(cause: unknown): boolean {
  return cause instanceof KeeperError && GONE_ON.includes(cause.code);
}

/** The VM has ended, and others do not know: `shadowHost` has a shadow that may take it over. */
export function endUnrecorded(vm: string, shadowHost: string | undefined): KeeperError {
  const message = `${vm} has ended here, but that is not on record: the store of leases did not answer`;
  const hint =
    shadowHost === undefined
      ? 'Until it does, and the right of this host has ended, no other host starts the VM.'
      : `Its shadow on ${shadowHost} could not be told either, and takes the VM over as soon as it can. Stop it there as well: \`understudy stop ${vm}\`.`;
  return new KeeperError('KEEPER_END_UNRECORDED', message, {
    hint,
    facts: { vm, ...(shadowHost !== undefined && { shadowHost }) },
  });
}

/** It was to be ended or to go on alone, and what its guest wrote last is on the disks of another host only. */
export function leftToShadow(vm: string, { host, acts }: { host: string; acts: boolean }): KeeperError {
  const how = acts ? `goes on at ${host}` : `is left to its shadow on ${host}, which has said nothing`;
  return new KeeperError(
    'KEEPER_DISK_FAILED',
    `${vm} ${how}: its disk here failed, and the newest is there`,
    {
      hint: `See \`understudy status ${vm}\` on ${host}, and stop it there if it shall end: \`understudy stop ${vm}\`.`,
      facts: { vm, host },
    },
  );
}

export function isSuperseded(cause: unknown): boolean {
  return cause instanceof KeeperError && cause.code === 'KEEPER_SUPERSEDED';
}

export function peerLost(host: string, why: string): KeeperError {
  return new KeeperError('KEEPER_PEER_LOST', `the shadow's host ${host} is lost: ${why}`, {
    hint: `Look whether ${host} runs and can be reached; the VM goes on without a shadow meanwhile.`,
    facts: { host },
  });
}

/**
 * Whoever opens files of a VM again looks first where they lie by now.
 * @throws KeeperError KEEPER_FILES_REFUSED
 */
export function ensureFilesWithin(spec: VmSpec, directories: readonly string[] | undefined): void {
  if (directories === undefined) return;
  const outside = filesOutside(spec, directories);
  if (outside.length === 0) return;
  const named = outside.map(({ field, file }) => `${field} ${file}`).join(', ');
  throw new KeeperError('KEEPER_FILES_REFUSED', `no longer below a directory that is allowed: ${named}`, {
    hint: 'Bring back the files that were there when the VM was declared, or declare others.',
    facts: { vm: spec.name },
  });
}
