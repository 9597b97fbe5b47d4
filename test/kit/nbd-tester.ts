import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { DebianPackages } from '../../guest/debian-packages.ts';
import { cacheDirectory } from '../../src/base/cache-directory.ts';
import { messageOf } from '../../src/base/errors.ts';
import { makeDirectory } from '../../src/base/make-directory.ts';

const run = promisify(execFile);
const DEADLINE_MS = 60_000;
const APT_FOLDER = '/etc/apt';
const TARBALL = /^nbd_.*\.orig\.tar\.\w+$/;

/** What its configure script would say of any machine that we run on. */
const CONFIGURATION = {
  ...{ _GNU_SOURCE: 1, NBD_LFS: 1, ISSERVER: 1, HAVE_MKSTEMP: 1, HAVE_GNUTLS: 0 },
  ...{ SIZEOF_UNSIGNED_SHORT_INT: 2, SIZEOF_UNSIGNED_INT: 4 },
  ...{ SIZEOF_UNSIGNED_LONG_INT: 8, SIZEOF_UNSIGNED_LONG_LONG_INT: 8 },
};

/** The program, and the folder with the requests that it replays. */
type NbdTester =
  | { readonly kind: 'built'; readonly program: string; readonly traces: string }
  | { readonly kind: 'missing'; readonly why: string };

/**
 * `nbd-tester-client` of the project nbd, which is in no Debian package: built in `folder` from Debian's sources. They are
 * fetched once and then taken from `nbd-tester` in the cache folder, where a release of nbd may also be put by hand.
 */
export async function buildNbdTester(folder: string): Promise<NbdTester> {
  const cache = join(cacheDirectory(), 'nbd-tester');
  const headers = join(folder, 'glib');
  let tarball: string;
  try {
    makeDirectory(cache);
    tarball = (await tarballIn(cache)) ?? (await fetchSources(cache));
    await unpackHeaders(cache, headers);
  } catch (thrown) {
    return { kind: 'missing', why: reasonOf(thrown) };
  }
  await run('tar', ['--extract', '--strip-components=1', '--file', tarball], { cwd: folder });
  const definitions = Object.entries(CONFIGURATION).map(([name, value]) => `#define ${name} ${value}\n`);
  await writeFile(join(folder, 'config.h'), definitions.join(''));
  const traces = join(folder, 'tests/run');
  const program = join(traces, 'nbd-tester-client');
  const includes = [
    folder,
    join(headers, 'usr/include/glib-2.0'),
    join(headers, 'usr/lib/x86_64-linux-gnu/glib-2.0/include'),
  ].map((path) => `-I${path}`);
  const sources = [`${program}.c`, join(folder, 'cliserv.c')];
  // GLib by its name at run time: QEMU brings that along, and nothing brings its development files.
  await run('gcc', ['-O1', '-w', ...includes, ...sources, '-o', program, '-l:libglib-2.0.so.0']);
  return { kind: 'built', program, traces };
}

/** What apt says of it, where it says something. */
function reasonOf(thrown: unknown): string {
  const { stderr } = thrown as { stderr?: string };
  return stderr?.split('\n').find((line) => line.startsWith('E: ')) ?? messageOf(thrown);
}

async function tarballIn(folder: string): Promise<string | undefined> {
  const found = (await readdir(folder)).find((name) => TARBALL.test(name));
  return found === undefined ? undefined : join(folder, found);
}

/** By apt, which checks it, with package lists of its own: this machine's say nothing of sources, and stay as they are. */
async function fetchSources(cache: string): Promise<string> {
  const folder = await mkdtemp(join(cache, 'arriving-'));
  try {
    await mkdir(join(folder, 'sources'));
    await mkdir(join(folder, 'lists/partial'), { recursive: true });
    await writeSourceLists(join(folder, 'sources'));
    const settings = [
      'APT::Sandbox::User=root',
      'Dir::Etc::SourceList=/dev/null',
      `Dir::Etc::SourceParts=${join(folder, 'sources')}`,
      `Dir::State::Lists=${join(folder, 'lists')}`,
      `Dir::Cache=${folder}`,
      'Acquire::Retries=0',
    ].flatMap((setting) => ['-o', setting]);
    const apt = (...words: readonly string[]) =>
      run('apt-get', ['-q', ...settings, ...words], { cwd: folder, timeout: DEADLINE_MS });
    await apt('update');
    await apt('source', '--download-only', 'nbd');
    const arrived = await tarballIn(folder);
    if (arrived === undefined) throw new Error('apt-get brought no sources of nbd');
    const kept = join(cache, arrived.slice(folder.length + 1));
    await rename(arrived, kept);
    return kept;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** The machine's own sources of packages, for the sources of these packages. */
async function writeSourceLists(target: string): Promise<void> {
  const parts = join(APT_FOLDER, 'sources.list.d');
  const files = [
    join(APT_FOLDER, 'sources.list'),
    ...(existsSync(parts) ? (await readdir(parts)).map((name) => join(parts, name)) : []),
  ];
  for (const [index, file] of files.entries()) {
    if (!existsSync(file)) continue;
    const name = `${index}${file.slice(file.lastIndexOf('.'))}`;
    await writeFile(join(target, name), sourceListOf(await readFile(file, 'utf8')));
  }
}

/** What lists packages, in either form that apt knows, for the sources of these packages. */
export function sourceListOf(packageList: string): string {
  return packageList.replaceAll(/^deb(?=\s)/gm, 'deb-src').replaceAll(/^Types:.*$/gm, 'Types: deb-src');
}

async function unpackHeaders(cache: string, target: string): Promise<void> {
  const options = { onProgress: () => {} };
  await using packages = await DebianPackages.open(join(cache, 'packages'), options);
  for (const found of await packages.obtain(['libglib2.0-dev'])) await packages.unpack(found, target);
}
