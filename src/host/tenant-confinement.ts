import type { Limits } from '../api/access-resources.ts';
import { disksOf } from '../config/spec-disks.ts';
import { filesOutside } from '../config/spec-files.ts';
import type { NicSpec, VmSpec } from '../config/vm-spec-schema.ts';
import { HostError } from './host-error.ts';

/** Below it, ports are those of the machine's own services. */
const FORWARDED_PORT_MIN = 1024;
const QEMU_BINARY = 'qemu-system-x86_64';

/**
 * The boundary between a tenant and the host: what a specification of a tenant may not reach. Messages name paths as
 * they were given and nothing of what was found there: a refusal must not say what there is on this machine.
 * @throws HostError HOST_SPEC_REFUSED, with all problems
 */
export function confine(spec: VmSpec, limits: Limits): void {
  refuse([
    ...qemuProblems(spec),
    ...spec.nics.flatMap((nic, index) => nicProblems(nic, { index, limits })),
    ...diskProblems(spec, limits),
    ...fileProblems(spec, limits),
    // They take room that no limit counts, and read a key as the host's own user.
    ...(spec.snapshots === undefined ? [] : ['snapshots is not for tenants']),
  ]);
}

/**
 * The same for a VM that goes on where it was, whose policy may have changed since it was started: only of its files,
 * which are opened anew. @throws HostError HOST_SPEC_REFUSED
 */
export function confineFiles(spec: VmSpec, limits: Pick<Limits, 'directories'>): void {
  refuse(fileProblems(spec, limits));
}

function refuse(problems: readonly string[]): void {
  if (problems.length === 0) return;
  throw new HostError('HOST_SPEC_REFUSED', `the policy of this tenant refuses it: ${problems.join('; ')}`, {
    hint: 'Change the specification, or have an administrator of the host change the policy.',
    facts: { problems },
  });
}

function qemuProblems({ qemu }: VmSpec): string[] {
  const refused = {
    binary: qemu.binary !== QEMU_BINARY,
    user: qemu.user !== undefined,
    extraArgs: qemu.extraArgs.length > 0,
  };
  return Object.entries(refused).flatMap(([field, isRefused]) =>
    isRefused ? [`qemu.${field} is not for tenants`] : [],
  );
}

function nicProblems(
  { uplink }: NicSpec,
  { index, limits: { uplinks } }: { index: number; limits: Limits },
): string[] {
  const field = `nics[${index}].uplink`;
  if (!uplinks.includes(uplink.kind)) {
    return [
      `${field}.kind ${uplink.kind} is none of ${uplinks.join(', ') || 'those allowed, as there are none'}`,
    ];
  }
  if (uplink.kind !== 'passt') return [];
  return uplink.forward.flatMap(({ hostPort }, forward) =>
    hostPort < FORWARDED_PORT_MIN
      ? [`${field}.forward[${forward}].hostPort ${hostPort} is below ${FORWARDED_PORT_MIN}`]
      : [],
  );
}

/** What is not said cannot be counted. A size that is said is compared with that of the image when the VM is started. */
function diskProblems(spec: VmSpec, { diskBytesMax }: Limits): string[] {
  if (diskBytesMax === null) return [];
  const unsaid = disksOf(spec).filter(({ disk }) => !disk.readOnly && disk.size === undefined);
  return unsaid.map(({ id }) => `${id} has to say its size, as the policy limits disk space`);
}

function fileProblems(spec: VmSpec, { directories }: Pick<Limits, 'directories'>): string[] {
  return filesOutside(spec, directories).map(
    ({ field, file }) => `${field} ${file} is no file below a directory of this tenant`,
  );
}
