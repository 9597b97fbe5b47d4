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

/** Whether a shadow would go on with another content than the memory it has, unless the disk commits with the VM's epochs. */
export function needsEpochs({
  readOnly,
  unprotectedDisk,
}: Pick<DiskSpec, 'readOnly' | 'unprotectedDisk'>): boolean {
  return !readOnly && !unprotectedDisk;
}

/**
 * The disks that the keeper serves, so that they commit with the VM's epochs. Of a VM that is started without a shadow QEMU
 * opens all by itself.
 */
export function servedDisks(spec: VmSpec): SpecDisk[] {
  return spec.shadow.enabled ? disksOf(spec).filter(({ disk }) => needsEpochs(disk)) : [];
}

/** What they are called. */
export function servedNames(spec: VmSpec): string[] {
  return servedDisks(spec).map(({ id }) => id);
}

/** What a person can do about a disk that cannot commit with epochs. */
export const CONSENT_HINT =
  'Start the VM with shadow.enabled: true (`understudy unprotect` gives the shadow up for a while), or make the disk ' +
  'readOnly: true, or say unprotectedDisk: true: a failover then goes on with the memory of the last epoch and the disk ' +
  'as it is, which may be newer. docs/disks.md says what stands that.';
