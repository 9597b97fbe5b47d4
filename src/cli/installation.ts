import {
  chmodSync,
  lstatSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { makeDirectory } from '../base/make-directory.ts';
import { errnoNameOf, fromNodeError } from '../linux/linux-error.ts';
import { CliError } from './cli-error.ts';
import {
  type Manifest,
  type ManifestEntry,
  manifestEntry,
  readManifest,
  sha256,
} from './installation-manifest.ts';
import { MANIFEST_PATH, type PlannedEntry } from './installation-plan.ts';

/** What was done about one thing, or would be. */
export interface Step {
  readonly done: 'created' | 'updated' | 'unchanged' | 'kept' | 'removed' | 'absent' | 'skipped';
  readonly what: string;
  /** Why, where that is not plain. */
  readonly why?: string;
}

export interface InstallOptions {
  /** Everything is written below it. */
  readonly root: string;
  readonly dryRun: boolean;
  /** Replace what others wrote or changed. */
  readonly force: boolean;
  readonly version: string;
  readonly packageDirectory: string;
}

/** The group that the manifest says was made by the installation. */
export function groupMadeBy(root: string): string | null {
  return readManifest(join(root, MANIFEST_PATH))?.group ?? null;
}

/**
 * Writes what is planned. Everything is looked at before anything is written; repeated, it changes nothing.
 * @throws CliError CLI_FILE_EXISTS, CLI_MANIFEST_UNREADABLE; LinuxError
 */
export function installEntries(plan: readonly PlannedEntry[], options: InstallOptions): Step[] {
  const { root, force, dryRun } = options;
  const before = readManifest(join(root, MANIFEST_PATH));
  const known = new Map((before?.entries ?? []).map((entry) => [entry.path, entry]));
  const planned = plan.map((entry) => ({
    entry,
    state: stateOf(entry, { root, known: known.get(entry.path) }),
  }));
  const foreign = planned.filter(({ state }) => state === 'foreign').map(({ entry }) => entry.path);
  if (foreign.length > 0 && !force) throw exists(foreign);
  const paths = new Set(plan.map(({ path }) => path));
  const dropped = (before?.entries ?? []).filter(({ path }) => !paths.has(path));
  if (!dryRun) {
    // First the list, then what it lists: were this process killed, all that it wrote could be taken away again.
    writeManifest(options, {
      group: before?.group ?? null,
      entries: planned.flatMap(({ entry, state }) => listed(entry, { state, known: known.get(entry.path) })),
    });
    for (const { entry, state } of planned) if (state !== 'same' && state !== 'kept') write(entry, root);
  }
  return [
    ...planned.map(({ entry, state }): Step => ({ done: DONE[state], what: entry.path })),
    ...dropped.map((entry) => remove(entry, { root, dryRun })),
  ];
}

/** Notes in the manifest that the group was made, for uninstall. */
export function noteGroup(group: string, options: InstallOptions): void {
  const manifest = readManifest(join(options.root, MANIFEST_PATH));
  writeManifest(options, { group, entries: manifest?.entries ?? [] });
}

const DONE = {
  missing: 'created',
  same: 'unchanged',
  ours: 'updated',
  foreign: 'updated',
  kept: 'kept',
} as const satisfies Record<EntryState, Step['done']>;

/** `ours`: as it was written before, and now to be another. `foreign`: written or changed by somebody else. */
type EntryState = 'missing' | 'same' | 'ours' | 'foreign' | 'kept';

interface Knowledge {
  readonly known: ManifestEntry | undefined;
}

function stateOf(entry: PlannedEntry, { root, known }: Knowledge & { root: string }): EntryState {
  const found = look(join(root, entry.path));
  if (found === undefined) return 'missing';
  if (entry.kind === 'directory') return found.kind === 'directory' ? 'same' : 'foreign';
  if (isAs(manifestEntry(entry), found)) return 'same';
  if (entry.kind === 'file' && entry.ifAbsent && found.kind === 'file') return 'kept';
  return known !== undefined && isAs(known, found) ? 'ours' : 'foreign';
}

/** What was there before anybody installed is not ours to remove one day. */
function listed(entry: PlannedEntry, { state, known }: Knowledge & { state: EntryState }): ManifestEntry[] {
  const wasThere = state === 'kept' || (state === 'same' && entry.kind === 'directory');
  if (wasThere) return known === undefined ? [] : [known];
  return [manifestEntry(entry)];
}

type Found =
  | { readonly kind: 'file'; readonly sha256: string }
  | { readonly kind: 'link'; readonly target: string }
  | { readonly kind: 'directory' }
  | { readonly kind: 'other' };

/** What lies there; links are not followed. */
function look(path: string): Found | undefined {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return undefined;
  if (stat.isSymbolicLink()) return { kind: 'link', target: readlinkSync(path) };
  if (stat.isDirectory()) return { kind: 'directory' };
  return stat.isFile() ? { kind: 'file', sha256: sha256(readFileSync(path)) } : { kind: 'other' };
}

function isAs(entry: ManifestEntry, found: Found): boolean {
  if (entry.kind === 'file') return found.kind === 'file' && found.sha256 === entry.sha256;
  if (entry.kind === 'link') return found.kind === 'link' && found.target === entry.target;
  return found.kind === 'directory';
}

/** Renamed into place: whoever reads finds the old or the new one. */
function write(entry: PlannedEntry, root: string): void {
  const path = join(root, entry.path);
  try {
    if (entry.kind === 'directory') {
      makeDirectory(path);
      chmodSync(path, entry.mode);
      return;
    }
    makeDirectory(dirname(path));
    rmSync(`${path}.new`, { force: true });
    if (entry.kind === 'link') symlinkSync(entry.target, `${path}.new`);
    else writeFileSync(`${path}.new`, entry.content, { mode: 0o644, flush: true });
    renameSync(`${path}.new`, path);
  } catch (thrown) {
    throw fromNodeError(`write ${path}`, thrown, { facts: { path } });
  }
}

function writeManifest(
  options: InstallOptions,
  { group, entries }: Pick<Manifest, 'group' | 'entries'>,
): void {
  const { root, version, packageDirectory } = options;
  const manifest: Manifest = { form: 1, version, package: packageDirectory, group, entries };
  write({ kind: 'file', path: MANIFEST_PATH, content: `${JSON.stringify(manifest, null, 2)}\n` }, root);
}

/**
 * Takes away what the manifest lists, but for what was changed since; the manifest last. Undefined when there is none.
 * @throws CliError CLI_MANIFEST_UNREADABLE; LinuxError
 */
export function uninstallEntries({ root, dryRun }: { root: string; dryRun: boolean }): Step[] | undefined {
  const path = join(root, MANIFEST_PATH);
  const manifest = readManifest(path);
  if (manifest === undefined) return undefined;
  // Directories after what lies in them.
  const entries = manifest.entries.toSorted(
    (a, b) => Number(a.kind === 'directory') - Number(b.kind === 'directory'),
  );
  const steps = entries.map((entry) => remove(entry, { root, dryRun }));
  if (!dryRun) {
    rmSync(path);
    removeIfEmpty(dirname(path));
  }
  return [...steps, { done: 'removed', what: MANIFEST_PATH }];
}

function remove(entry: ManifestEntry, { root, dryRun }: { root: string; dryRun: boolean }): Step {
  const path = join(root, entry.path);
  const found = look(path);
  if (found === undefined) return { done: 'absent', what: entry.path };
  if (!isAs(entry, found)) return { done: 'kept', what: entry.path, why: 'it was changed by somebody else' };
  if (entry.kind === 'directory') {
    const isEmpty = dryRun || removeIfEmpty(path);
    return isEmpty
      ? { done: 'removed', what: entry.path }
      : { done: 'kept', what: entry.path, why: 'it is not empty' };
  }
  if (!dryRun) {
    try {
      rmSync(path);
    } catch (thrown) {
      throw fromNodeError(`remove ${path}`, thrown, { facts: { path } });
    }
  }
  return { done: 'removed', what: entry.path };
}

function removeIfEmpty(path: string): boolean {
  try {
    rmdirSync(path);
    return true;
  } catch (thrown) {
    if (errnoNameOf(thrown) === 'ENOTEMPTY') return false;
    throw fromNodeError(`remove ${path}`, thrown, { facts: { path } });
  }
}

function exists(paths: readonly string[]): CliError {
  return new CliError(
    'CLI_FILE_EXISTS',
    `not written by \`understudy install\`, or changed since:\n${paths.join('\n')}`,
    {
      hint: 'Nothing was changed. Move these away, or have them replaced with --force.',
      facts: { paths },
    },
  );
}
