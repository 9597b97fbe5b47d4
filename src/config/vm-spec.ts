import { existsSync, readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { parse, stringify } from 'yaml';
import { ConfigError } from './config-error.ts';
import { type SpecDefaults, withDefaults } from './spec-defaults.ts';
import { disksOf, servedDisks } from './spec-disks.ts';
import { fieldName, placeOf, type SpecText } from './spec-problems.ts';
import { type BootSpec, type DiskSpec, type VmSpec, vmSpecSchema } from './vm-spec-schema.ts';
import { parseYamlText } from './yaml-text.ts';

/** What a specification is called in messages. */
const WHOLE = 'specification';

/**
 * Reads and checks a VM specification, and that the files it names exist.
 * @throws {ConfigError} CONFIG_NOT_FOUND, CONFIG_INVALID, CONFIG_UNPROTECTABLE, CONFIG_FILE_MISSING
 */
export function loadVmSpec(path: string): VmSpec {
  return readVmSpec(path).spec;
}

/** The same with the text, for whoever hands it on: a pipe can be read only once. */
export function readVmSpec(path: string): { readonly spec: VmSpec; readonly text: string } {
  const text = readSpec(path);
  const spec = parseVmSpec(text, { source: path });
  const missing = namedFiles(spec).filter(({ file }) => !existsSync(file));
  if (missing.length > 0) {
    throw new ConfigError(
      'CONFIG_FILE_MISSING',
      missing.map(({ field, file }) => `${path}: ${field}: ${file} does not exist`).join('\n'),
      {
        hint: 'Relative paths begin at the folder of the specification.',
        facts: { files: missing.map(({ file }) => file) },
      },
    );
  }
  return { spec, text };
}

export interface ParseOptions {
  /** How the text is called in messages, usually its path. */
  readonly source: string;
  /** Where relative paths begin. Default: the folder of `source`. */
  readonly directory?: string;
  /** What it says where it says nothing itself. */
  readonly defaults?: SpecDefaults;
}

/**
 * Checks a VM specification without looking at the disk. All problems are reported at once.
 * @throws {ConfigError} CONFIG_INVALID, CONFIG_UNPROTECTABLE
 */
export function parseVmSpec(
  text: string,
  { source, directory = dirname(source), defaults = {} }: ParseOptions,
): VmSpec {
  const { value, text: specText } = parseYamlText(text, vmSpecSchema, {
    ...{ source, whole: WHOLE },
    prepare: (said) => withDefaults(said, defaults),
  });
  refuseUnprotectable(value, specText);
  refuseOnTwoHosts(value, specText);
  return withAbsolutePaths(value, resolve(directory));
}

/** A text that says what `change` makes of what `text` says. Comments are lost. */
export function rewrittenSpec(text: string, change: (said: unknown) => unknown): string {
  return stringify(change(parse(text)));
}

/** The text of a specification, unchecked. @throws {ConfigError} CONFIG_NOT_FOUND */
export function readSpec(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    throw new ConfigError('CONFIG_NOT_FOUND', `cannot read the VM specification ${path}`, {
      hint: 'Give the path of a YAML file; `understudy run --help` shows one.',
      facts: { path },
      cause,
    });
  }
}

/** What commits with epochs goes through the page cache of the host, and to the disk when the guest says so. */
function refuseUnprotectable(spec: VmSpec, text: SpecText): void {
  const refused = servedDisks(spec).filter(({ disk }) => disk.cache !== 'writeback');
  if (refused.length === 0) return;
  const problems = refused.map(
    ({ field, disk }) =>
      `${placeOf([...field, 'cache'], text)}: ${disk.cache} is not for a disk that commits with epochs`,
  );
  throw new ConfigError('CONFIG_UNPROTECTABLE', problems.join('\n'), {
    hint: 'Leave cache out; or say unprotectedDisk: true, or shadow.enabled: false: then QEMU opens the image itself.',
    facts: { problems },
  });
}

/** What does not commit with epochs would stay where it was: on the other host the VM would go on with another disk. */
function refuseOnTwoHosts(spec: VmSpec, text: SpecText): void {
  if (spec.shadow.hosts === undefined) return;
  const copied = servedDisks(spec).filter(({ disk }) => disk.backing === undefined);
  const problems = disksOf(spec)
    .filter(({ id, disk }) => !disk.readOnly && !copied.some((it) => it.id === id))
    .map(({ field, disk }) => {
      const why = disk.unprotectedDisk || disk.backing === undefined ? 'stays' : 'what it stands on stays';
      return `${placeOf(field, text)}: ${disk.path} is writable, and ${why} on this host`;
    });
  if (problems.length === 0) return;
  throw new ConfigError('CONFIG_UNPROTECTABLE', problems.join('\n'), {
    hint: 'Make it an image that stands alone (qemu-img convert) without unprotectedDisk, which is copied; or readOnly: true, with the same content on all hosts.',
    facts: { problems },
  });
}

function withAbsolutePaths(spec: VmSpec, directory: string): VmSpec {
  const absolute = (path: string) => resolve(directory, path);
  const disks = spec.disks.map((disk) => absoluteDisk(disk, absolute));
  const snapshots = absoluteSnapshots(spec.snapshots, absolute);
  return { ...spec, boot: absoluteBoot(spec.boot, absolute), disks, ...(snapshots && { snapshots }) };
}

function absoluteSnapshots(
  said: VmSpec['snapshots'],
  absolute: (path: string) => string,
): VmSpec['snapshots'] {
  const { directory, keyFile } = said ?? {};
  return (
    said && {
      ...said,
      ...(directory !== undefined && { directory: absolute(directory) }),
      ...(keyFile !== undefined && { keyFile: absolute(keyFile) }),
    }
  );
}

function absoluteDisk(disk: DiskSpec, absolute: (path: string) => string): DiskSpec {
  const backing = disk.backing && { ...disk.backing, path: absolute(disk.backing.path) };
  return { ...disk, path: absolute(disk.path), ...(backing && { backing }) };
}

function absoluteBoot(boot: BootSpec, absolute: (path: string) => string): BootSpec {
  if (boot.kind === 'disk') return { ...boot, disk: absoluteDisk(boot.disk, absolute) };
  const initrd = boot.initrd === undefined ? undefined : absolute(boot.initrd);
  return { ...boot, kernel: absolute(boot.kernel), initrd };
}

function namedFiles(spec: VmSpec): { field: string; file: string }[] {
  const { boot } = spec;
  const bootFiles =
    boot.kind === 'disk'
      ? []
      : [
          { field: 'boot.kernel', file: boot.kernel },
          ...(boot.initrd === undefined ? [] : [{ field: 'boot.initrd', file: boot.initrd }]),
        ];
  const diskFiles = disksOf(spec).flatMap(({ field, disk: { path, create, backing } }) => {
    const name = fieldName(field, { whole: WHOLE });
    return [
      // One that is to be made need not be there.
      ...(create ? [] : [{ field: `${name}.path`, file: path }]),
      ...(backing === undefined ? [] : [{ field: `${name}.backing.path`, file: backing.path }]),
    ];
  });
  const { keyFile } = spec.snapshots ?? {};
  const keyFiles = keyFile === undefined ? [] : [{ field: 'snapshots.keyFile', file: keyFile }];
  return [...bootFiles, ...diskFiles, ...keyFiles];
}
