import { KeeperError } from '../control/keeper-error.ts';
import { isSuspendedElsewhere, type LeaseRecord, type StoredLease } from '../lease/lease-record.ts';
import { disksElsewhere, superseded, suspendedElsewhere } from './refusals.ts';

/** Who wants to start the VM, and on which host. */
interface Asking {
  readonly vm: string;
  readonly host: string;
}

/** Why a VM may not be started here. */
export function actsElsewhere({ vm, host }: Asking, record: LeaseRecord | undefined): KeeperError {
  if (record?.mode === 'in-sync' && record.shadow !== undefined)
    return maybeBothLost(vm, { host, acting: record.holder, shadow: record.shadow.host });
  return superseded(vm, (record?.holder === host ? undefined : record?.holder) ?? 'another host');
}

/** Why a VM may not be started here from its disks. */
export function actedLastElsewhere(
  { vm, host }: Asking,
  { record, isHeld }: StoredLease & { readonly record: LeaseRecord },
): KeeperError {
  if (record.mode === 'in-sync' || (record.mode === 'alone' && isHeld))
    return actsElsewhere({ vm, host }, record);
  return isSuspendedElsewhere(record, host)
    ? suspendedElsewhere(vm, record.holder)
    : disksElsewhere(vm, record.holder);
}

/**
 * On record are a host that acts and a shadow in sync, and who wants to start the VM on `host` is neither the shadow's
 * keeper nor that of the VM. One of the two acts, unless both were lost at once: only a person can know that.
 */
function maybeBothLost(
  vm: string,
  { host, acting, shadow }: { readonly host: string; readonly acting: string; readonly shadow: string },
): KeeperError {
  const other = acting === host ? shadow : acting;
  const message =
    acting === host
      ? `the shadow of ${vm} on ${shadow} acts, or will as soon as it learns that ${host} has lost the VM`
      : `${acting} acts as ${vm}, or did until it was lost together with the shadow on ${shadow}`;
  return new KeeperError('KEEPER_SUPERSEDED', message, {
    hint: `See \`understudy status ${vm}\` on ${other}. If both hosts were lost at once, and it runs nowhere: \`understudy run SPEC --anew\`.`,
    facts: { vm, host: other },
  });
}
