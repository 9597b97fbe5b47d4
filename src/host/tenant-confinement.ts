import { lstatSync, realpathSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Limits } from '../api/access-resources.ts';
import { disksOf } from '../config/spec-disks.ts';
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
  const problems = [
    ...qemuProblems(spec),
    ...spec.nics.flatMap((nic, index) => nicProblems(nic, { index, limits })),
    ...fileProblems(spec, limits),
  ];
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

function fileProblems(spec: VmSpec, { directories }: Limits): string[] {
  const roots = directories.flatMap((directory) => realPathOf(directory) ?? []);
  return filesOf(spec).flatMap(({ field, file }) =>
    isBelow(file, roots) ? [] : [`${field} ${file} is no file below a directory of this tenant`],
  );
}

function filesOf(spec: VmSpec): { readonly field: string; readonly file: string }[] {
  const { boot } = spec;
  const files =
    boot.kind === 'disk'
      ? []
      : [
          { field: 'boot.kernel', file: boot.kernel },
          ...(boot.initrd === undefined ? [] : [{ field: 'boot.initrd', file: boot.initrd }]),
        ];
  const images = disksOf(spec).flatMap(({ id, disk: { path, backing } }) => [
    { field: `${id}.path`, file: path },
    ...(backing === undefined ? [] : [{ field: `${id}.backing.path`, file: backing.path }]),
  ]);
  return [...files, ...images];
}

/** Wherever links lead. What exists has to be an ordinary file: a device or a pipe is a part of the host. */
function isBelow(file: string, roots: readonly string[]): boolean {
  const real = realPathOf(file);
  if (real === undefined) return false;
  const isInside = roots.some((root) => real.startsWith(root === '/' ? root : `${root}/`));
  return isInside && (statSync(real, { throwIfNoEntry: false })?.isFile() ?? true);
}

/**
 * Of an absolute path without `..`, also of one that is to be made. Undefined where nobody can tell where it would end,
 * as behind a link to what does not exist: who makes the file would follow it.
 */
function realPathOf(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code !== 'ENOENT') return undefined;
  }
  const parent = dirname(path);
  if (parent === path || lstatSync(path, { throwIfNoEntry: false }) !== undefined) return undefined;
  const realParent = realPathOf(parent);
  return realParent === undefined
    ? undefined
    : join(realParent, path.slice(parent.length).replace(/^\/+/, ''));
}
