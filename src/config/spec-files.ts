import { lstatSync, realpathSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { disksOf } from './spec-disks.ts';
import type { VmSpec } from './vm-spec-schema.ts';

/** A file that a specification names, and where. */
export interface SpecFile {
  readonly field: string;
  readonly file: string;
}

/**
 * Those of its files that do not lie below one of `directories`, wherever links lead at this moment. What exists has to
 * be an ordinary file: a device or a pipe is a part of the host.
 */
export function filesOutside(spec: VmSpec, directories: readonly string[]): SpecFile[] {
  const roots = directories.flatMap((directory) => realPathOf(directory) ?? []);
  return filesOf(spec).filter(({ file }) => !isBelow(file, roots));
}

function filesOf(spec: VmSpec): SpecFile[] {
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
