import { createHash } from 'node:crypto';
import { z } from 'zod';
import { GIB, MIB, parseBytes, TIB } from '../base/units.ts';
import { allocationSchema, forecastSchema } from './allocation-schema.ts';
import { hostName } from './site-config.ts';
import { snapshotsSchema } from './snapshots-schema.ts';
import { vmTelemetrySchema } from './vm-telemetry-schema.ts';

const MEMORY_BYTES_MIN = 32 * MIB;
const MEMORY_BYTES_MAX = 1024 * GIB;
const DISK_BYTES_MAX = 64 * TIB;
const DISKS_MAX = 16;

/** Linux: IFNAMSIZ is 16 bytes with the closing zero, and a device name is a file name in sysfs. */
const deviceName = z
  .string()
  .regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$/, 'no name of a network device (1 to 15 of A-Z a-z 0-9 _ . -)');
const netnsName = z.string().regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$/, 'no name of a network namespace');
const port = z.int().min(1).max(65535);
const filePath = z
  .string()
  .min(1, 'is empty')
  .refine((path) => !path.includes('\0'), 'has a NUL byte');

const memory = z
  .union([z.string(), z.int()], 'expected a size such as 256MiB or 4G')
  .transform((size, context) => {
    const bytes = parseBytes(String(size));
    if (bytes === undefined) {
      context.addIssue({
        code: 'custom',
        message: `${JSON.stringify(size)} is no size such as 256MiB or 4G`,
      });
    } else if (bytes < MEMORY_BYTES_MIN || bytes > MEMORY_BYTES_MAX) {
      context.addIssue({ code: 'custom', message: 'expected 32 MiB to 1 TiB' });
    } else if (bytes % MIB !== 0) {
      // QEMU rounds RAM up to 8 KiB; whole MiB keep the file, the machine and the page tables of one size.
      context.addIssue({ code: 'custom', message: 'expected a whole number of MiB' });
    }
    return bytes ?? z.NEVER;
  });

const imageFormat = z.enum(['raw', 'qcow2']);

const diskSize = z
  .union([z.string(), z.int()], 'expected a size such as 10GiB')
  .transform((size, context) => {
    const bytes = parseBytes(String(size));
    const problem =
      bytes === undefined
        ? `${JSON.stringify(size)} is no size such as 10GiB`
        : bytes < MIB || bytes > DISK_BYTES_MAX
          ? 'expected 1 MiB to 64 TiB'
          : // Half a cluster would be rounded up by one format and not by the other.
            bytes % MIB !== 0
            ? 'expected a whole number of MiB'
            : undefined;
    if (problem !== undefined) context.addIssue({ code: 'custom', message: problem });
    return bytes ?? z.NEVER;
  });

const disk = z
  .strictObject({
    path: filePath,
    /** Never guessed: a guest can write to a raw disk what makes it look like another format. */
    format: imageFormat,
    readOnly: z.boolean().default(false),
    size: diskSize.optional(),
    create: z.boolean().default(false),
    backing: z.strictObject({ path: filePath, format: imageFormat }).optional(),
    cache: z.enum(['writeback', 'none']).default('writeback'),
    serial: z
      .string()
      .regex(/^[A-Za-z0-9_.-]{1,20}$/, 'expected 1 to 20 of A-Z a-z 0-9 _ . -')
      .optional(),
    unprotectedDisk: z.boolean().default(false),
  })
  .superRefine(({ format, readOnly, size, create, backing }, context) => {
    const contradict = (field: string, message: string) =>
      context.addIssue({ code: 'custom', path: [field], message });
    if (create && size === undefined) contradict('create', 'needs a size');
    if (create && readOnly) contradict('create', 'contradicts readOnly: a new image has nothing to read');
    if (backing !== undefined && format !== 'qcow2')
      contradict('backing', 'contradicts format: only a qcow2 image can stand on another one');
  });

const boot = z
  .strictObject({
    kernel: filePath.optional(),
    initrd: filePath.optional(),
    cmdline: z.string().optional(),
    disk: disk.optional(),
  })
  .superRefine((given, context) => {
    const contradict = (field: string, message: string) =>
      context.addIssue({ code: 'custom', path: [field], message });
    if (given.kernel === undefined && given.disk === undefined) {
      context.addIssue({ code: 'custom', message: 'expected either kernel or disk' });
    }
    if (given.disk === undefined) return;
    for (const field of ['kernel', 'initrd', 'cmdline'] as const) {
      if (given[field] !== undefined)
        contradict(field, 'contradicts disk: boot from a kernel or from a disk');
    }
  })
  .transform(({ kernel, initrd, cmdline, disk }) =>
    disk === undefined
      ? { kind: 'kernel' as const, kernel: kernel ?? '', initrd, cmdline: cmdline ?? '' }
      : { kind: 'disk' as const, disk },
  );

const tap = z
  .strictObject({
    kind: z.literal('tap'),
    device: deviceName,
    netns: netnsName.optional(),
    address: z
      .union([z.cidrv4(), z.cidrv6()], 'expected an address with its prefix, e.g. 10.77.0.1/24')
      .optional(),
    bridge: deviceName.optional(),
  })
  .superRefine(({ address, bridge }, context) => {
    if (address === undefined || bridge === undefined) return;
    context.addIssue({
      code: 'custom',
      path: ['bridge'],
      message: 'contradicts address: a device in a bridge has no address of its own',
    });
  });

const passt = z.strictObject({
  kind: z.literal('passt'),
  forward: z
    .array(z.strictObject({ hostPort: port, guestPort: port }))
    .superRefine(distinct((entry) => String(entry.hostPort), 'hostPort', 'is forwarded already'))
    .default([]),
  /** Whether the guest reaches what listens on the loopback of the host, at the address of its gateway. */
  hostLoopback: z.boolean().default(true),
});

const nic = z.strictObject({
  mac: z
    .string()
    .regex(/^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$/, 'expected six bytes such as 52:54:00:12:34:56')
    .refine(
      (mac) => (Number.parseInt(mac, 16) & 1) === 0,
      'is a multicast address: the first byte must be even',
    )
    .transform((mac) => mac.toLowerCase())
    .optional(),
  uplink: z.discriminatedUnion('kind', [tap, passt, z.strictObject({ kind: z.literal('none') })]),
});

const nics = z
  .array(nic)
  .max(8)
  .superRefine(distinct((entry) => entry.mac, 'mac', 'is taken by another nic'));

const disks = z
  .array(disk)
  .max(DISKS_MAX)
  .superRefine(distinct((entry) => entry.path, 'path', 'is a disk of this VM already'));

const qemu = z.strictObject({
  binary: z.string().min(1, 'is empty').default('qemu-system-x86_64'),
  user: z
    .string()
    .regex(/^[a-z_][a-z0-9_-]{0,31}$/, 'no name of a user')
    .optional(),
  extraArgs: z.array(z.string()).default([]),
});

const siteHosts = z
  .array(hostName)
  .min(2)
  .max(8)
  .refine((names) => new Set(names).size === names.length, 'names a host twice');

/** Not a union: what is wrong with a list is to be told as of a list. */
const shadowHosts = z.unknown().transform((given, context): 'auto' | string[] => {
  if (given === 'auto') return given;
  if (!Array.isArray(given)) {
    context.addIssue({ code: 'custom', message: 'expected auto, or a list of hosts' });
    return z.NEVER;
  }
  const { data, error } = siteHosts.safeParse(given);
  for (const issue of error?.issues ?? [])
    context.addIssue({ ...issue } as Parameters<typeof context.addIssue>[0]);
  return data ?? z.NEVER;
});

const antiAffinity = z
  .array(z.string().regex(/^[a-z0-9][a-z0-9-]{0,39}$/, 'expected the name of a VM, or a word like one'))
  .max(64);

export const shadowSchema = z
  .strictObject({
    enabled: z.boolean().default(true),
    /** Where the VM and its shadow may be; left out: both on this host. */
    hosts: shadowHosts.optional(),
    /** A host that has no state in sync may begin the VM anew by itself when who acted alone is gone. */
    restartElsewhere: z.boolean().default(false),
    maxIntervalMs: z.number().min(1).max(60_000).default(100),
    pauseShare: z.number().min(0.01).max(0.9).default(0.3),
    pauseBurstMs: z.number().min(1).max(10_000).default(20),
    dirtyPagesMax: z.int().min(1).max(268_435_456).default(8192),
    epochsInFlightMax: z.int().min(1).max(64).default(4),
    /**
     * Where an epoch's writes to disks are when its output leaves: with the shadow, or also on disk. No default, as
     * specifications on record have to stay equal to those that are read anew.
     */
    commit: z.enum(['memory', 'durable']).optional(),
    hangTimeoutMs: z.number().min(100).max(600_000).default(2000),
    /** No default, for the same reason; it is in src/keeper/primary-watching.ts. */
    restartTimeoutMs: z.number().min(100).max(3_600_000).optional(),
    dirtyLog: z.enum(['auto', 'pagemap-scan', 'soft-dirty', 'compare']).default('auto'),
    standbyCpuShare: z.number().min(0.001).max(1).default(0.01),
    /** VMs, or words that VMs have in common, whose hosts its shadow avoids. No default, as with `generationId`. */
    antiAffinity: antiAffinity.optional(),
  })
  .refine(({ hosts, restartElsewhere }) => hosts !== undefined || !restartElsewhere, {
    path: ['restartElsewhere'],
    message: 'is about other hosts: name them in shadow.hosts',
  })
  .refine(({ hangTimeoutMs, restartTimeoutMs = hangTimeoutMs }) => restartTimeoutMs >= hangTimeoutMs, {
    path: ['restartTimeoutMs'],
    message: 'expected at least hangTimeoutMs: nothing is lost that is not silent yet',
  })
  .superRefine(({ hangTimeoutMs, maxIntervalMs }, context) => {
    if (hangTimeoutMs > maxIntervalMs) return;
    context.addIssue({
      code: 'custom',
      path: ['hangTimeoutMs'],
      message: `expected more than maxIntervalMs (${maxIntervalMs}), else a quiet QEMU is taken for dead`,
    });
  });

export const clockSchema = z.strictObject({
  syncIntervalMs: z.number().min(10).max(60_000).default(1000),
  errorMaxMs: z.number().min(1).max(10_000).default(40),
});

/** A VM specification as written in YAML; its output is a {@link VmSpec}. All fields: `VM_SPEC_EXAMPLE`. */
export const vmSpecSchema = z
  .strictObject({
    name: z
      .string()
      .regex(/^[a-z0-9][a-z0-9-]{0,39}$/, 'expected 1 to 40 of a-z 0-9 -, not beginning with -'),
    vcpus: z.int().min(1).max(64).default(1),
    memory,
    accel: z.enum(['auto', 'kvm', 'tcg']).default('auto'),
    machine: z.literal('q35').default('q35'),
    boot,
    disks: disks.default([]),
    nics: nics.default([]),
    console: z.boolean().default(true),
    agent: z.boolean().default(true),
    /** No default: specifications on record, of older releases, have to stay equal to those that are read anew. */
    generationId: z.boolean().optional(),
    qemu: qemu.prefault({}),
    shadow: shadowSchema.prefault({}),
    clock: clockSchema.prefault({}),
    /** No defaults, for the same reason. */
    snapshots: snapshotsSchema.optional(),
    telemetry: vmTelemetrySchema.optional(),
    forecast: forecastSchema.optional(),
    allocation: allocationSchema.optional(),
    termination: z.enum(['remove', 'suspend', 'snapshot']).default('remove'),
    shutdownTimeoutMs: z.int().min(0).max(100_000).default(10_000),
  })
  .superRefine(({ boot, disks, shadow }, context) => {
    const all = boot.kind === 'disk' ? [boot.disk, ...disks] : disks;
    if (!shadow.restartElsewhere || all.every((it) => it.readOnly || it.unprotectedDisk)) return;
    context.addIssue({
      code: 'custom',
      path: ['shadow', 'restartElsewhere'],
      message: 'contradicts disks that are written to: those of the host that is gone may be newer',
    });
  })
  .transform(({ memory: memoryBytes, nics, ...rest }) => ({
    ...rest,
    memoryBytes,
    nics: nics.map((nic, index) => ({ ...nic, mac: nic.mac ?? derivedMac(rest.name, index) })),
  }));

/** What a VM shall be: validated, defaults filled in, file paths absolute, sizes in bytes. */
export type VmSpec = z.output<typeof vmSpecSchema>;
export type Termination = VmSpec['termination'];
export type BootSpec = VmSpec['boot'];
export type DiskSpec = VmSpec['disks'][number];
export type NicSpec = VmSpec['nics'][number];
export type UplinkSpec = NicSpec['uplink'];

/** The same VM gets the same address on every host and start. 52:54:00 is the prefix that QEMU uses. */
function derivedMac(name: string, index: number): string {
  const digest = createHash('sha256').update(`${name}/${index}`).digest('hex');
  return `52:54:00:${digest.slice(0, 2)}:${digest.slice(2, 4)}:${digest.slice(4, 6)}`;
}

function distinct<Entry>(keyOf: (entry: Entry) => string | undefined, field: string, message: string) {
  return (entries: readonly Entry[], context: z.RefinementCtx): void => {
    const seen = new Set<string>();
    for (const [index, entry] of entries.entries()) {
      const key = keyOf(entry);
      if (key !== undefined && seen.has(key))
        context.addIssue({ code: 'custom', path: [index, field], message: `${key} ${message}` });
      if (key !== undefined) seen.add(key);
    }
  };
}
