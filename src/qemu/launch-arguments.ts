import { assert } from '../base/assert.ts';
import { MIB } from '../base/units.ts';
import { disksOf, type SpecDisk } from '../config/spec-disks.ts';
import type { BootSpec, VmSpec } from '../config/vm-spec-schema.ts';
import type { InstancePaths } from './instance-paths.ts';

export type Accelerator = 'kvm' | 'tcg';

export interface ArgumentOptions {
  /** A primary waits for `cont`; a standby waits for `migrate-incoming`, a device state and `cont`. */
  readonly role: 'primary' | 'standby';
  readonly paths: InstancePaths;
  readonly accel: Accelerator;
  /** Names of the disks that the keeper serves. */
  readonly served?: readonly string[] | undefined;
  /** Of a VM that has such a number, the same for its primary and standby: VMGenID. */
  readonly generationId?: string | undefined;
}

/** The name of guest memory among QEMU's RAM blocks. */
export const MEMORY_BLOCK = 'ram';

/**
 * A modern virtio device saves the state of 1024 queues whether it has them or not: 45 KB and 0.4 ms of pause in
 * every epoch, for each device (vmstate_virtio_pci_modern_state_sub). The legacy interface has the same virtqueues
 * and is in every guest that has virtio.
 */
const LEGACY_VIRTIO = 'disable-modern=on,disable-legacy=off';

/** Ten years: for ever. */
const RECONNECT_DELAY_S = 315_360_000;

/** Parts of the machine that nobody here uses, each with state of its own to be saved in every epoch. */
const WITHOUT = 'vmport=off,sata=off,smbus=off,usb=off';

/**
 * The command line of one QEMU process. Primary and standby get the same but for their paths: device state is
 * only understood by a machine that was built in the same way. Neither runs before `cont`, so that what has to
 * be proven first (dirty log, RAM blocks) is proven before the guest's first instruction.
 */
export function buildArguments(
  spec: VmSpec,
  { role, paths, accel, generationId, served = [] }: ArgumentOptions,
): string[] {
  assert(paths.nics.length === spec.nics.length, 'every nic has a socket');
  const memory = `${spec.memoryBytes / MIB}M`;
  return [
    // No devices that we did not ask for, no configuration of the host, nothing with video memory.
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-vga', 'none'],
    ...['-name', `guest=${spec.name},debug-threads=on`, '-msg', 'timestamp=on'],
    // suppress-vmdesc and send-configuration: the stream of device state is nothing but device state.
    ...['-machine', `${spec.machine},memory-backend=${MEMORY_BLOCK},suppress-vmdesc=on,${WITHOUT}`],
    ...['-global', 'migration.send-configuration=off'],
    ...acceleratorArguments(accel),
    ...['-smp', String(spec.vcpus), '-m', memory],
    '-object',
    `memory-backend-file,id=${MEMORY_BLOCK},size=${memory},mem-path=${escaped(paths.memory)},share=on`,
    // A guest that powers off or panics stands still instead of vanishing: its last output must be committed first.
    ...['-action', 'shutdown=pause,panic=pause', '-device', 'pvpanic-pci'],
    // Without it a guest without a history of its own waits seconds for entropy while it boots.
    ...['-device', `virtio-rng-pci,${LEGACY_VIRTIO}`],
    ...(spec.generationId ? generationArguments(generationId) : []),
    ...bootArguments(spec.boot),
    ...disksOf(spec).flatMap((disk) =>
      diskArguments(disk, served.includes(disk.id) ? servedNode(disk.id, paths) : fileBackedNode(disk)),
    ),
    ...spec.nics.flatMap(({ mac }, index) => nicArguments(mac, { index, path: paths.nics[index] ?? '' })),
    ...(spec.console
      ? ['-chardev', clientSocket('console', paths.console), '-serial', 'chardev:console']
      : ['-serial', 'none']),
    ...(spec.agent ? agentArguments(paths.agent) : []),
    ...['-chardev', `socket,id=qmp,path=${escaped(paths.qmp)},server=on,wait=off`],
    ...['-mon', 'chardev=qmp,mode=control', '-S'],
    ...(role === 'standby' ? ['-incoming', 'defer'] : []),
    ...spec.qemu.extraArgs,
  ];
}

/** Accelerator and CPU model. The probe uses them too: what it proves must be what is started. */
export function acceleratorArguments(accel: Accelerator): string[] {
  if (accel === 'kvm') {
    // With an invariant TSC Linux takes the TSC as its clock source, not kvmclock, and QEMU writes the TSC only on
    // reset and after loading state, not on `cont` (kvm_put_msrs: KVM_PUT_RESET_STATE): guest time runs on in our
    // pauses. QEMU hides the flag and blocks migration because the frequency is the host's; we stay on this host,
    // and saving device state does not ask the blockers. Where the host has no such TSC, QEMU warns and goes on.
    return ['-accel', 'kvm', '-cpu', 'host,migratable=off,+invtsc'];
  }
  // x86-64-v2 without AVX, whose emulation is new in 7.2, and without 57-bit addresses, which slow the walk of page
  // tables down: boots Debian as fast as `max`. rdrand: a guest without it waits for entropy.
  return ['-accel', 'tcg', '-cpu', 'Nehalem,+rdrand'];
}

function bootArguments(boot: BootSpec): string[] {
  if (boot.kind === 'disk') return [];
  return [
    ...['-kernel', boot.kernel],
    ...(boot.initrd === undefined ? [] : ['-initrd', boot.initrd]),
    ...(boot.cmdline === '' ? [] : ['-append', boot.cmdline]),
  ];
}

function diskArguments({ id, disk }: SpecDisk, node: object): string[] {
  const device = [
    `virtio-blk-pci,id=${id},drive=${id},${LEGACY_VIRTIO}`,
    // A VM that QEMU stops on an error of the storage would be taken to stand still in an epoch: the guest is told.
    'werror=report,rerror=report',
    ...(disk.serial === undefined ? [] : [`serial=${disk.serial}`]),
    ...(id === 'boot' ? ['bootindex=0'] : []),
  ];
  return ['-blockdev', JSON.stringify(node), '-device', device.join(',')];
}

/**
 * A disk that the keeper serves. Of a keeper that was killed QEMU waits for the next one, and repeats what was not answered;
 * it stands still itself meanwhile, so that any end of the wait could only be wrong.
 */
function servedNode(id: string, { disks }: InstancePaths): object {
  return {
    driver: 'nbd',
    'node-name': id,
    server: { type: 'unix', path: disks },
    export: id,
    'reconnect-delay': RECONNECT_DELAY_S,
  };
}

/**
 * A disk and everything below it, each part by its own name and with its format given: nothing is guessed from what
 * a guest or a stranger wrote into an image, and no other file is opened because an image names it.
 */
export function fileBackedNode({ id, disk }: SpecDisk): object {
  const { path, format, readOnly, cache, backing } = disk;
  return {
    driver: format,
    'node-name': id,
    'read-only': readOnly,
    cache: { direct: cache === 'none', 'no-flush': false },
    file: fileNode(`${id}-file`, { path, readOnly }),
    ...(format === 'qcow2' && { backing: backing === undefined ? null : backingNode(id, backing) }),
  };
}

function backingNode(id: string, { path, format }: NonNullable<SpecDisk['disk']['backing']>): object {
  return {
    driver: format,
    'node-name': `${id}-backing`,
    'read-only': true,
    file: fileNode(`${id}-backing-file`, { path, readOnly: true }),
    ...(format === 'qcow2' && { backing: null }),
  };
}

/**
 * Locked, so that no two QEMUs write to one image; a standby, whose disks are inactive, takes its locks when it is
 * promoted. The host's page cache is right for both of them, as they run on one host.
 */
function fileNode(name: string, { path, readOnly }: { path: string; readOnly: boolean }): object {
  return {
    driver: 'file',
    'node-name': name,
    filename: path,
    'read-only': readOnly,
    locking: 'on',
    'drop-cache': false,
  };
}

/** The names of all block nodes that a VM of this specification has, whose keeper serves some of its disks. */
export function blockNodeNames(spec: VmSpec, served: readonly string[]): string[] {
  return disksOf(spec).flatMap(({ id, disk: { backing } }) => [
    ...(served.includes(id) ? [id] : [id, `${id}-file`]),
    ...(backing === undefined || served.includes(id) ? [] : [`${id}-backing`, `${id}-backing-file`]),
  ]);
}

function nicArguments(mac: string, { index, path }: { index: number; path: string }): string[] {
  return [
    ...['-netdev', `stream,id=nic${index},server=off,addr.type=unix,addr.path=${escaped(path)}`],
    // No option ROM: it would be one more RAM block, and nobody boots from this network. No announcements by the
    // guest: QEMU makes them itself, and a guest that was just promoted has requests to answer.
    '-device',
    `virtio-net-pci,netdev=nic${index},mac=${mac},romfile=,guest_announce=off,${LEGACY_VIRTIO}`,
  ];
}

/**
 * The number is no part of device state: after loading, QEMU writes that of its own command line into the guest's memory,
 * and tells the guest, which looks whether it is another one (vmgenid_post_load in hw/acpi/vmgenid.c).
 */
function generationArguments(generationId: string | undefined): string[] {
  assert(generationId !== undefined, 'a VM that is to have a generation has one');
  return ['-device', `vmgenid,guid=${generationId}`];
}

function agentArguments(path: string): string[] {
  return [
    ...['-device', `virtio-serial-pci,${LEGACY_VIRTIO}`, '-chardev', clientSocket('agent', path)],
    ...['-device', 'virtserialport,chardev=agent,name=org.qemu.guest_agent.0'],
  ];
}

function clientSocket(id: string, path: string): string {
  return `socket,id=${id},path=${escaped(path)},server=off`;
}

/** In a value of QEMU's options a comma is written twice. */
function escaped(value: string): string {
  return value.replaceAll(',', ',,');
}
