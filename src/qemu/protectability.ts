import { CONSENT_HINT, disksOf, needsEpochs, servedNames } from '../config/spec-disks.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { blockNodeNames, MEMORY_BLOCK } from './launch-arguments.ts';
import type { Machine } from './machine.ts';
import { QemuError } from './qemu-error.ts';

/** Something that stands against protecting a VM. */
export interface Obstacle {
  /** What it is: an argument, a RAM block, a device. */
  readonly what: string;
  readonly why: string;
}

const NOT_REPLICATED = 'it does not commit with the epochs of the VM';
const OUTSIDE = 'it is memory outside main memory, which the device state does not hold';
const VFIO = 'a passed-through device pins guest memory and has state that cannot be saved';
const UNHELD = 'what goes through it is not held until the epoch is committed';
const FOREIGN_WRITER = 'another process writes guest memory unseen by the dirty log';
const DISCARDS = 'it takes pages from the guest unseen by the dirty log';

/** Devices whose state is wholly in main memory and device state. Any other one is refused: on doubt, no protection. */
const KNOWN_DEVICES = new Set([
  'virtio-rng-pci',
  'i6300esb',
  'pcie-root-port',
  'pvpanic',
  'pvpanic-pci',
  'vmgenid',
]);

/** Why well-known devices cannot be protected, by the beginning of their names. */
const DEVICE_OBSTACLES: readonly (readonly [RegExp, string])[] = [
  [/^vfio/, VFIO],
  [
    /^(VGA|qxl|cirrus|bochs|ati-|ramfb|secondary-vga|vmware-svga|virtio-(vga|gpu))/i,
    `${OUTSIDE} (video memory)`,
  ],
  [/^(ivshmem|nvdimm|pc-dimm|virtio-(pmem|mem))/, OUTSIDE],
  [/^vhost-/, FOREIGN_WRITER],
  [/^virtio-balloon/, DISCARDS],
  [/^(virtio-blk|scsi-|ide-|nvme|usb-storage|sd-card|floppy)/, NOT_REPLICATED],
  [/^(virtio-net|e1000|rtl8139|vmxnet|igb|ne2k|i825|tulip|pcnet|usb-net)/, UNHELD],
];

/** Options of QEMU that a protected VM may be given. A value follows each of them. */
const KNOWN_OPTIONS = new Set(
  'device object global cpu smbios fw_cfg uuid boot rtc bios msg overcommit sandbox trace d D L'.split(' '),
);

const OPTION_OBSTACLES: readonly (readonly [RegExp, string])[] = [
  [/^pflash$/, `${OUTSIDE} (firmware flash)`],
  [/^vga$/, `${OUTSIDE} (video memory)`],
  [/^(drive|blockdev|[hf]d[abcd]|cdrom|mtdblock|sd)$/, NOT_REPLICATED],
  [/^(netdev|nic|net|chardev|serial|parallel|virtfs|fsdev)$/, UNHELD],
];

/** Options that Understudy itself gives: a second one would contradict it, protected or not. */
const OUR_OPTIONS = new Set(
  `M machine m smp accel enable-kvm numa mem-path mem-prealloc incoming S daemonize pidfile runas chroot action
  no-shutdown no-reboot no-panic snapshot loadvm only-migratable name nodefaults no-user-config readconfig preconfig
  kernel initrd append`.split(/\s+/),
);

/**
 * Looks at a specification before anything is started. `served` are the disks that the keeper serves, where that was decided by another specification.
 * @throws {QemuError} QEMU_ARGUMENT_REFUSED, QEMU_UNPROTECTABLE; each names all that stands against it
 */
export function checkSpec(spec: VmSpec, served: readonly string[] = servedNames(spec)): void {
  const { extraArgs } = spec.qemu;
  const contradictions = extraArgs.filter((arg) => arg.startsWith('-') && OUR_OPTIONS.has(optionName(arg)));
  if (contradictions.length > 0) {
    throw new QemuError(
      'QEMU_ARGUMENT_REFUSED',
      `qemu.extraArgs: ${contradictions.join(', ')}: Understudy sets this`,
      {
        hint: 'Use the fields of the specification.',
        facts: { arguments: contradictions },
      },
    );
  }
  if (!spec.shadow.enabled) return;
  const disks = diskObstacles(spec, served);
  refuse([...disks, ...argumentObstacles(extraArgs)], disks.length > 0 ? CONSENT_HINT : undefined);
}

/**
 * Looks at what a machine really has, before its guest runs: RAM blocks, devices, what it has open as a disk, and
 * QEMU's own reasons against migration. Disks of the specification are as they have to be.
 * @throws {QemuError} QEMU_UNPROTECTABLE
 */
export async function checkMachine(
  machine: Machine,
  spec: VmSpec,
  served: readonly string[] = servedNames(spec),
): Promise<void> {
  const { qmp } = machine;
  const [blocks, anonymous, named, nodes, migration] = await Promise.all([
    machine.monitor('info ramblock'),
    qmp.execute<readonly QomProperty[]>('qom-list', { path: '/machine/peripheral-anon' }),
    qmp.execute<readonly QomProperty[]>('qom-list', { path: '/machine/peripheral' }),
    qmp.execute<readonly BlockNode[]>('query-named-block-nodes', { flat: true }),
    qmp.execute<{ 'blocked-reasons'?: readonly string[] }>('query-migrate'),
  ]);
  refuse([
    ...ramBlockObstacles(blocks),
    ...qomObstacles([...anonymous, ...named.filter((property) => !isOurDisk(property, spec))]),
    ...blockObstacles(nodes, blockNodeNames(spec, served)),
    ...(migration['blocked-reasons'] ?? [])
      .filter((reason) => !reason.includes('invtsc'))
      .map((reason) => ({ what: 'QEMU refuses migration', why: reason })),
  ]);
}

interface BlockNode {
  readonly 'node-name'?: string;
  readonly file: string;
}

interface QomProperty {
  readonly name: string;
  readonly type: string;
}

function argumentObstacles(args: readonly string[]): Obstacle[] {
  const obstacles: Obstacle[] = [];
  let refused = false;
  for (let index = 0; index < args.length; index += 1) {
    const arg = args[index] ?? '';
    if (!arg.startsWith('-')) {
      // The value of an option that is refused needs no line of its own; any other bare word is a disk for QEMU.
      if (!refused) obstacles.push({ what: arg, why: NOT_REPLICATED });
      refused = false;
      continue;
    }
    const takesValue = KNOWN_OPTIONS.has(optionName(arg));
    if (takesValue) index += 1;
    const value = takesValue ? (args[index] ?? '') : '';
    const why = optionObstacle(optionName(arg), value);
    if (why !== undefined) obstacles.push({ what: `${arg} ${value}`.trim(), why });
    refused = why !== undefined && !takesValue;
  }
  return obstacles;
}

function optionObstacle(option: string, value: string): string | undefined {
  const [head = ''] = value.split(',');
  if (option === 'device') return deviceObstacle(deviceName(value));
  if (option === 'object' && !/^(qom-type=)?rng-/.test(head)) return `${head} is not known to be safe`;
  if (option === 'global' && /^migration\b/.test(value))
    return 'the form of the device state is set by Understudy';
  if (KNOWN_OPTIONS.has(option)) return undefined;
  const known = OPTION_OBSTACLES.find(([pattern]) => pattern.test(option));
  return known?.[1] ?? `-${option} is not known to be safe`;
}

/** `-device` takes `driver,key=value`, `driver=…` anywhere, or JSON. */
function deviceName(value: string): string {
  if (value.startsWith('{')) return /"driver"\s*:\s*"([^"]*)"/.exec(value)?.[1] ?? value;
  return /(?:^|,)driver=([^,]*)/.exec(value)?.[1] ?? value.split(',')[0] ?? '';
}

function deviceObstacle(driver: string): string | undefined {
  if (KNOWN_DEVICES.has(driver)) return undefined;
  const known = DEVICE_OBSTACLES.find(([pattern]) => pattern.test(driver));
  return known?.[1] ?? `${driver} is not known to be safe`;
}

function diskObstacles(spec: VmSpec, served: readonly string[]): Obstacle[] {
  return disksOf(spec)
    .filter(({ id, disk }) => needsEpochs(disk) && !served.includes(id))
    .map(({ disk }) => ({ what: `disk ${disk.path}`, why: `it is writable, and ${NOT_REPLICATED}` }));
}

function isOurDisk({ name, type }: QomProperty, spec: VmSpec): boolean {
  return type === 'child<virtio-blk-pci>' && disksOf(spec).some(({ id }) => id === name);
}

/** Everything that QEMU has open as a disk and that the specification does not say, e.g. because an image names it. */
function blockObstacles(nodes: readonly BlockNode[], ours: readonly string[]): Obstacle[] {
  const foreign = nodes.filter((node) => !ours.includes(node['node-name'] ?? ''));
  // A format and the file below it are two nodes.
  const files = [...new Set(foreign.map(({ file }) => file))];
  return files.map((file) => ({ what: `drive ${file}`, why: NOT_REPLICATED }));
}

/**
 * Blocks that may exist beside main memory: firmware, which is read-only and the same in every QEMU started alike,
 * and the ACPI tables, which QEMU makes anew at every reset before the firmware reads them.
 */
const HARMLESS_BLOCK = /^(pc\.bios|pc\.rom|isa-bios|\/rom@etc\/(acpi\/tables|acpi\/rsdp|table-loader))$/;

/** Reads the table of `info ramblock`. Exported for its test. */
export function ramBlockObstacles(table: string): Obstacle[] {
  const names = table
    .split(/\r?\n/)
    .map((line) => /^\s*(\S+)\s+\d+ [KMG]iB\s+0x/.exec(line)?.[1])
    .filter((name) => name !== undefined);
  const missing = names.includes(MEMORY_BLOCK)
    ? []
    : [{ what: `RAM block ${MEMORY_BLOCK}`, why: 'main memory is not the file that Understudy watches' }];
  const others = names.filter((name) => name !== MEMORY_BLOCK && !HARMLESS_BLOCK.test(name));
  return [...missing, ...others.map((name) => ({ what: `RAM block ${name}`, why: OUTSIDE }))];
}

/** Only what is known to be bad: the devices that we give ourselves are here as well. Exported for its test. */
export function qomObstacles(properties: readonly QomProperty[]): Obstacle[] {
  return properties.flatMap(({ type }) => {
    const driver = /^child<(.+)>$/.exec(type)?.[1] ?? '';
    // Nics are ours: their output is held.
    const known = DEVICE_OBSTACLES.find(([pattern, why]) => why !== UNHELD && pattern.test(driver));
    return known === undefined ? [] : [{ what: `device ${driver}`, why: known[1] }];
  });
}

function optionName(arg: string): string {
  return arg.replace(/^--?/, '');
}

const REFUSAL_HINT = 'Remove what is named, or run the VM without a shadow (shadow.enabled: false).';

function refuse(obstacles: readonly Obstacle[], hint = REFUSAL_HINT): void {
  if (obstacles.length === 0) return;
  const list = obstacles.map(({ what, why }) => `${what}: ${why}`).join('\n');
  throw new QemuError('QEMU_UNPROTECTABLE', `this VM cannot be protected:\n${list}`, {
    hint,
    facts: { obstacles },
  });
}
