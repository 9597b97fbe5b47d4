import { existsSync, readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { type Document, isScalar, LineCounter, parseDocument, visit } from 'yaml';
import { ConfigError } from './config-error.ts';
import { CONSENT_HINT, disksOf, needsConsent } from './spec-disks.ts';
import { fieldName, firstOf, placeOf, type SpecText, specProblems } from './spec-problems.ts';
import { type BootSpec, type DiskSpec, type VmSpec, vmSpecSchema } from './vm-spec-schema.ts';

/** Longer texts are no specification. Protects the parser. */
const SPEC_BYTES_MAX = 1024 * 1024;

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
}

/**
 * Checks a VM specification without looking at the disk. All problems are reported at once.
 * @throws {ConfigError} CONFIG_INVALID, CONFIG_UNPROTECTABLE
 */
export function parseVmSpec(text: string, { source, directory = dirname(source) }: ParseOptions): VmSpec {
  if (text.length > SPEC_BYTES_MAX) throw invalid([`${source}:1: specification: is longer than 1 MiB`]);
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, uniqueKeys: false });
  const errors = document.errors.map(({ pos, message }) => ({ offset: pos[0], message }));
  const wrong = errors.length > 0 ? errors : keysGivenTwice(document);
  if (wrong.length > 0) {
    throw invalid(
      firstOf(wrong).map(({ offset, message }) => `${source}:${lines.linePos(offset).line}: ${message}`),
    );
  }
  const specText: SpecText = { document, lines, source };
  const result = vmSpecSchema.safeParse(plainValue(specText));
  if (!result.success) throw invalid(specProblems(result.error.issues, vmSpecSchema, specText));
  refuseUnprotectable(result.data, specText);
  return withAbsolutePaths(result.data, resolve(directory));
}

function readSpec(path: string): string {
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

function plainValue({ document, source }: SpecText): unknown {
  try {
    return document.toJS();
  } catch (cause) {
    // Aliases that multiply ("billion laughs").
    throw invalid([`${source}:1: specification: too many aliases`], cause);
  }
}

function invalid(problems: readonly string[], cause?: unknown): ConfigError {
  return new ConfigError('CONFIG_INVALID', problems.join('\n'), {
    hint: 'Correct the lines that are named.',
    facts: { problems },
    cause,
  });
}

/** The parser has this check too, but compares each key with each: a minute for a specification full of them. */
function keysGivenTwice(document: Document): { offset: number; message: string }[] {
  const found: { offset: number; message: string }[] = [];
  visit(document, {
    Map: (_, { items }) => {
      const seen = new Set<unknown>();
      for (const { key } of items) {
        if (!isScalar(key)) continue;
        if (seen.has(key.value))
          found.push({ offset: key.range?.[0] ?? 0, message: 'Map keys must be unique' });
        seen.add(key.value);
      }
    },
  });
  return found;
}

/** Disks are not part of an epoch yet: after a failover they are newer than memory. Who accepts that has to say so. */
function refuseUnprotectable(spec: VmSpec, text: SpecText): void {
  if (!spec.shadow.enabled) return;
  const refused = disksOf(spec).filter(({ disk }) => needsConsent(disk));
  if (refused.length === 0) return;
  const problems = refused.map(
    ({ field, disk }) =>
      `${placeOf(field, text)}: ${disk.path} is writable, and disks are not replicated yet`,
  );
  throw new ConfigError('CONFIG_UNPROTECTABLE', problems.join('\n'), {
    hint: CONSENT_HINT,
    facts: { problems },
  });
}

function withAbsolutePaths(spec: VmSpec, directory: string): VmSpec {
  const absolute = (path: string) => resolve(directory, path);
  const disks = spec.disks.map((disk) => absoluteDisk(disk, absolute));
  return { ...spec, boot: absoluteBoot(spec.boot, absolute), disks };
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
    const name = fieldName(field);
    return [
      // One that is to be made need not be there.
      ...(create ? [] : [{ field: `${name}.path`, file: path }]),
      ...(backing === undefined ? [] : [{ field: `${name}.backing.path`, file: backing.path }]),
    ];
  });
  return [...bootFiles, ...diskFiles];
}
