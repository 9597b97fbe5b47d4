import { readdir, readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { type CpioEntry, writeCpio } from './cpio.ts';
import { readElf } from './elf.ts';
import { unexpectedPackage } from './guest-error.ts';

/** Drivers that the guest loads at boot, with what they depend on. */
const DRIVERS = [
  ...[
    'virtio_pci',
    'virtio_net',
    'virtio_blk',
    'virtio_balloon',
    'virtio_mem',
    'virtio_console',
    'virtio-rng',
  ],
  ...['pvpanic-mmio', 'pvpanic-pci'],
];
const LIBRARY_FOLDER = 'lib/x86_64-linux-gnu';
const PACKAGED_LIBRARY_FOLDERS = [LIBRARY_FOLDER, `usr/${LIBRARY_FOLDER}`];
/** Debian's server is this file under another name: the program looks at the name it was called by. */
const REDIS_FILE = 'usr/bin/redis-check-rdb';
const EXECUTABLE = 0o755;
const PLAIN = 0o644;

interface GuestParts {
  /** Folder with the unpacked packages. */
  readonly packagesRoot: string;
  readonly kernelRelease: string;
  /** Folder with this room's own files: `rootfs/`, `probe/`. */
  readonly sources: string;
  /** Folder with the compiled programs `agent`, `disk-writer` and `memory-writer`. */
  readonly programs: string;
}

/**
 * The demo guest's initramfs. Not compressed: QEMU copies it in one piece, and unpacking in an emulated
 * guest would cost more than reading.
 */
export async function demoInitramfs(parts: GuestParts): Promise<Buffer> {
  const { drivers, entries: modules } = await kernelModules(parts);
  const programs = ['agent', 'disk-writer', 'memory-writer'].map((name) =>
    fileEntry(`bin/${name}`, join(parts.programs, name)),
  );
  return writeCpio([
    ...['proc', 'sys', 'dev', 'run', 'tmp', 'root'].map((path) => ({ kind: 'directory' as const, path })),
    { kind: 'symlink', path: 'init', target: 'bin/busybox' },
    { kind: 'symlink', path: 'bin/sh', target: 'busybox' },
    await busybox(parts),
    ...(await Promise.all(programs)),
    ...(await redisServer(parts)),
    { kind: 'file', path: 'etc/modules', mode: PLAIN, data: Buffer.from(`${drivers.join('\n')}\n`) },
    ...modules,
    ...(await rootfsEntries(join(parts.sources, 'rootfs'))),
  ]);
}

/** The smallest guest that shows that an accelerator runs this kernel. */
export async function probeInitramfs(parts: GuestParts): Promise<Buffer> {
  return writeCpio([await fileEntry('init', join(parts.sources, 'probe/init')), await busybox(parts)]);
}

function busybox(parts: GuestParts): Promise<CpioEntry> {
  return fileEntry('bin/busybox', join(parts.packagesRoot, 'bin/busybox'));
}

async function redisServer({ packagesRoot }: GuestParts): Promise<CpioEntry[]> {
  const server = await fileEntry('bin/redis-server', join(packagesRoot, REDIS_FILE));
  const { interpreter } = readElf(server.data, REDIS_FILE);
  if (interpreter === undefined) throw unexpectedPackage(`${REDIS_FILE} names no dynamic loader`);
  const { files, missing } = await libraryClosure(packagesRoot, REDIS_FILE);
  if (missing.length > 0) throw unexpectedPackage(`no package brings ${missing.join(', ')}`);
  const libraries = [...files].map(([name, path]) => fileEntry(join(LIBRARY_FOLDER, name), path));
  // The C library is linked to the loader, so the loader is among the libraries.
  const target = `/${join(LIBRARY_FOLDER, basename(interpreter))}`;
  return [server, ...(await Promise.all(libraries)), { kind: 'symlink', path: interpreter.slice(1), target }];
}

/** All shared libraries that Redis needs, directly or not, that none of the unpacked packages holds. */
export async function missingLibraries(packagesRoot: string): Promise<string[]> {
  return (await libraryClosure(packagesRoot, REDIS_FILE)).missing;
}

async function libraryClosure(
  packagesRoot: string,
  program: string,
): Promise<{ files: Map<string, string>; missing: string[] }> {
  const files = new Map<string, string>();
  const missing = new Set<string>();
  const open = [join(packagesRoot, program)];
  for (let path = open.pop(); path !== undefined; path = open.pop()) {
    for (const name of readElf(await readPackaged(path), path).neededLibraries) {
      if (files.has(name) || missing.has(name)) continue;
      const found = await findLibrary(packagesRoot, name);
      if (found === undefined) missing.add(name);
      else files.set(name, found);
      if (found !== undefined) open.push(found);
    }
  }
  return { files, missing: [...missing] };
}

async function findLibrary(packagesRoot: string, name: string): Promise<string | undefined> {
  for (const folder of PACKAGED_LIBRARY_FOLDERS) {
    const path = join(packagesRoot, folder, name);
    if (await stat(path).catch(() => undefined)) return path;
  }
  return undefined;
}

/** The drivers and what they depend on, in the order in which they must be loaded. */
async function kernelModules({
  packagesRoot,
  kernelRelease,
}: GuestParts): Promise<{ drivers: string[]; entries: CpioEntry[] }> {
  const root = join(packagesRoot, 'lib/modules', kernelRelease, 'kernel');
  const paths = await readdir(root, { recursive: true }).catch(() => []);
  const pathOf = new Map(paths.map((path) => [moduleName(path), join(root, path)]));
  const loaded = new Map<string, CpioEntry>();
  const load = async (driver: string): Promise<void> => {
    const name = moduleName(driver);
    if (loaded.has(name)) return;
    const path = pathOf.get(name);
    if (path === undefined) throw unexpectedPackage(`the kernel ${kernelRelease} has no module ${driver}`);
    const entry = await fileEntry(`lib/modules/${name}.ko`, path);
    for (const dependency of readElf(entry.data, path).moduleDependencies) await load(dependency);
    loaded.set(name, entry);
  };
  for (const driver of DRIVERS) await load(driver);
  return { drivers: [...loaded.keys()], entries: [...loaded.values()] };
}

/** Module names are spelt with `-` in some places and `_` in others; the kernel takes them as equal. */
function moduleName(path: string): string {
  return basename(path, '.ko').replaceAll('-', '_');
}

async function rootfsEntries(root: string): Promise<CpioEntry[]> {
  const files = (await readdir(root, { recursive: true, withFileTypes: true })).filter((entry) =>
    entry.isFile(),
  );
  const paths = files.map((entry) => join(entry.parentPath, entry.name));
  return Promise.all(paths.map((path) => fileEntry(path.slice(root.length + 1), path)));
}

async function fileEntry(path: string, source: string): Promise<Extract<CpioEntry, { kind: 'file' }>> {
  return { kind: 'file', path, mode: EXECUTABLE, data: await readPackaged(source) };
}

async function readPackaged(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw unexpectedPackage(`the packages bring no ${basename(path)}`, cause);
  }
}
