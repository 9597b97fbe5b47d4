import type { DiskSpec, VmSpec } from './vm-spec-schema.ts';

/** A disk of a VM, and what it is called. */
export interface SpecDisk {
  /** The same in every QEMU of the VM: `boot`, `disk0`, `disk1`, … */
  readonly id: string;
  /** Where it stands in the specification. */
  readonly field: readonly (string | number)[];
  readonly disk: DiskSpec;
}

/** All disks of a VM, that which it boots from first. */
export function disksOf({ boot, disks }: Pick<VmSpec, 'boot' | 'disks'>): SpecDisk[] {
  const first = boot.kind === 'disk' ? [{ id: 'boot', field: ['boot', 'disk'], disk: boot.disk }] : [];
  return [...first, ...disks.map((disk, index) => ({ id: `disk${index}`, field: ['disks', index], disk }))];
}

/** Whether a shadow would go on with another content than the memory it has: writable, and nobody said that this may be. */
export function needsConsent({ readOnly, unprotectedDisk }: DiskSpec): boolean {
  return !readOnly && !unprotectedDisk;
}

/** What a person can do about a disk that needs consent. */
export const CONSENT_HINT =
  'Make it readOnly: true, or set shadow.enabled: false, or say unprotectedDisk: true: a failover then goes on with ' +
  'the memory of the last epoch and the disk as it is, which may be newer. docs/disks.md says what stands that.';
