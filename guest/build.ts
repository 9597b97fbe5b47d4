import { copyFile, mkdir, mkdtemp, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { cacheDirectory } from '../src/base/cache-directory.ts';
import { systemClock } from '../src/base/clock.ts';
import { messageOf, UnderstudyError } from '../src/base/errors.ts';
import { makeDirectory } from '../src/base/make-directory.ts';
import { tryLockExclusive } from '../src/linux/file.ts';
import { type DebianPackage, DebianPackages, sha256 } from './debian-packages.ts';
import { GuestError, unexpectedPackage } from './guest-error.ts';
import { runTool } from './host-tool.ts';
import { demoInitramfs, missingLibraries, probeInitramfs } from './initramfs.ts';
import { type Manifest, OUTPUTS, verifiedManifest, writeManifest } from './manifest.ts';

const SOURCES = import.meta.dirname;
const KERNEL_PACKAGE = 'linux-image-cloud-amd64';
const PROGRAMS = ['agent', 'disk-writer', 'memory-writer'];
const LIBRARY_LEVELS_MAX = 8;
const LOCK_WAIT_MS = 10 * 60 * 1000;
const LOCK_RETRY_MS = 100;

/**
 * Kernel command line for both guests, to which `us.ip=` and `us.gw=` are added (guest/rootfs/etc/boot).
 * `panic=-1` restarts at once where no pvpanic device stops the VM. `cryptomgr.notests` saves a quarter of a
 * second of boot. With KVM, the TSC runs on while the other clocks of a paused VM stand still: the kernel's
 * watchdog would take that for a broken TSC and change to a slow clock source, so it is told to trust it.
 */
const CMDLINE = 'console=ttyS0 quiet panic=-1 cryptomgr.notests mitigations=off tsc=reliable clocksource=tsc';

export interface DemoGuest {
  /** Absolute paths of the kernel image and the initramfs, for `-kernel` and `-initrd`. */
  readonly kernel: string;
  readonly initrd: string;
  /** Recommended kernel command line, also for the probe. */
  readonly cmdline: string;
  readonly kernelRelease: string;
  readonly redisVersion: string;
  /** Printed on the serial console once Redis answers. */
  readonly readyMarker: string;
  /** Initramfs that prints `probeMarker` on the serial console and powers off. */
  readonly probeInitrd: string;
  readonly probeMarker: string;
  /** Debian packages it was made from: name to version. */
  readonly packages: Readonly<Record<string, string>>;
}

export interface DemoGuestOptions {
  /** Default: `cacheDirectory()`. The guest lies in its folder `guest`. */
  readonly cacheDir?: string;
  /** Told each step that may take more than a second. */
  readonly onProgress?: (step: string) => void;
  /** Ends the build; what it had fetched whole stays. */
  readonly signal?: AbortSignal | undefined;
}

interface BuildOptions {
  readonly onProgress: (step: string) => void;
  readonly signal: AbortSignal | undefined;
}

/**
 * The demo guest from the cache, built from Debian packages if it is not there, damaged, or made from other
 * sources than these. Installs nothing. Several processes may call it at once: one builds, the others wait.
 * @throws GuestError; the signal's reason, once nothing of the build runs any more
 */
export async function ensureDemoGuest(options: DemoGuestOptions = {}): Promise<DemoGuest> {
  const { cacheDir = cacheDirectory(), onProgress = () => {}, signal } = options;
  const cache = join(cacheDir, 'guest');
  const folder = join(cache, await sourceFingerprint());
  const ready = await verifiedManifest(folder);
  if (ready !== undefined) return describe(folder, ready);
  try {
    makeDirectory(cache);
    await using _lock = await lock(join(cache, 'lock'), { onProgress, signal });
    // Another process may have built it while this one waited.
    const manifest = (await verifiedManifest(folder)) ?? (await build(cache, folder, { onProgress, signal }));
    return describe(folder, manifest);
  } catch (thrown) {
    throw cacheFault(thrown, cache) ?? thrown;
  }
}

function describe(folder: string, manifest: Manifest): DemoGuest {
  const versions = Object.entries(manifest.packages).map(([name, { version }]) => [name, version]);
  return {
    kernel: join(folder, OUTPUTS.kernel),
    initrd: join(folder, OUTPUTS.initrd),
    cmdline: CMDLINE,
    kernelRelease: manifest.kernelRelease,
    redisVersion: manifest.redisVersion,
    readyMarker: 'understudy-guest: ready',
    probeInitrd: join(folder, OUTPUTS.probeInitrd),
    probeMarker: 'understudy-probe: alive',
    packages: Object.fromEntries(versions),
  };
}

/** A name for what the guest is made of on our side: every file in this folder but the tests. */
async function sourceFingerprint(): Promise<string> {
  const files = (await readdir(SOURCES, { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile() && !entry.name.endsWith('.test.ts'))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
  const sums = await Promise.all(
    files.map(async (file) => `${file.slice(SOURCES.length)} ${sha256(await readFile(file))}`),
  );
  return sha256(sums.join('\n')).slice(0, 16);
}

async function lock(path: string, { onProgress, signal }: BuildOptions): Promise<AsyncDisposable> {
  const file = await open(path, 'w');
  const deadlineMs = systemClock.nowMs() + LOCK_WAIT_MS;
  try {
    for (let waited = false; !tryLockExclusive(file.fd); waited = true) {
      if (!waited) onProgress('Waiting for another process that builds the demo guest');
      if (systemClock.nowMs() > deadlineMs) {
        throw new GuestError(
          'GUEST_BUILD_BUSY',
          'another process has been building the demo guest for ten minutes',
          { hint: `See which process holds the lock: fuser ${path}`, facts: { path } },
        );
      }
      await systemClock.sleep(LOCK_RETRY_MS, signal);
    }
    return file;
  } catch (thrown) {
    await file.close();
    throw thrown;
  }
}

/** Builds next to `folder` and moves the result there whole. Runs under the lock. */
async function build(cache: string, folder: string, options: BuildOptions): Promise<Manifest> {
  const { onProgress, signal } = options;
  // Left by a builder that was killed.
  for (const name of await readdir(cache)) {
    if (name.startsWith('building-')) await rm(join(cache, name), { recursive: true });
  }
  const work = await mkdtemp(join(cache, 'building-'));
  try {
    const packagesRoot = join(work, 'root');
    const programs = join(work, 'programs');
    const out = join(work, 'out');
    await Promise.all([packagesRoot, programs, out].map((path) => mkdir(path)));
    await compilePrograms(programs, signal);
    await using archive = await DebianPackages.open(join(cache, 'packages'), options);
    const packages = await unpackPackages(archive, packagesRoot, onProgress);
    signal?.throwIfAborted();
    onProgress('Assembling the demo guest');
    const kernelRelease = await findKernelRelease(packagesRoot);
    const parts = { packagesRoot, kernelRelease, sources: SOURCES, programs };
    await copyFile(join(packagesRoot, 'boot', `vmlinuz-${kernelRelease}`), join(out, OUTPUTS.kernel));
    await writeFile(join(out, OUTPUTS.initrd), await demoInitramfs(parts));
    await writeFile(join(out, OUTPUTS.probeInitrd), await probeInitramfs(parts));
    await writeManifest(out, { kernelRelease, ...packageFacts(packages) });
    await rm(folder, { recursive: true, force: true });
    await rename(out, folder);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  const manifest = await verifiedManifest(folder);
  if (manifest === undefined) throw unexpectedPackage('the demo guest cannot be read back');
  return manifest;
}

async function compilePrograms(target: string, signal: AbortSignal | undefined): Promise<void> {
  for (const program of PROGRAMS) {
    const source = join(SOURCES, `${program}.c`);
    const flags = ['-std=gnu17', '-O2', '-Wall', '-Wextra', '-static', '-s', '-Wl,--build-id=none'];
    const outcome = await runTool('gcc', [...flags, '-o', join(target, program), source], { signal });
    if (outcome.kind === 'done') continue;
    throw new GuestError('GUEST_COMPILE_FAILED', `gcc cannot compile ${source}: ${outcome.stderr}`, {
      hint: 'Install the C library for static programs with: apt-get install gcc libc6-dev',
      facts: { source },
    });
  }
}

/** Unpacks the kernel, busybox and Redis, then libraries level by level until Redis lacks none. */
async function unpackPackages(
  archive: DebianPackages,
  root: string,
  onProgress: (step: string) => void,
): Promise<DebianPackage[]> {
  const kernels = await archive.obtain([KERNEL_PACKAGE]);
  // The package of this name is empty and depends on the kernel of the day.
  kernels.push(...(await archive.obtain(await dependenciesOf(archive, kernels, isKernel))));
  let level = [...kernels, ...(await archive.obtain(['busybox-static', 'redis-tools']))];
  const unpacked: DebianPackage[] = [];
  for (let depth = 0; depth < LIBRARY_LEVELS_MAX && level.length > 0; depth++) {
    onProgress(`Unpacking ${level.map(({ name }) => name).join(', ')}`);
    for (const member of level) await archive.unpack(member, root);
    unpacked.push(...level);
    if ((await missingLibraries(root)).length === 0) break;
    const known = new Set(unpacked.map(({ name }) => name));
    const isNew = (name: string) => isLibrary(name) && !known.has(name);
    level = await archive.obtain(await dependenciesOf(archive, level, isNew));
  }
  return unpacked;
}

async function dependenciesOf(
  archive: DebianPackages,
  parents: readonly DebianPackage[],
  wanted: (name: string) => boolean,
): Promise<string[]> {
  const names = new Set<string>();
  for (const parent of parents) for (const name of await archive.dependencies(parent)) names.add(name);
  return [...names].filter(wanted);
}

function isKernel(name: string): boolean {
  return name.startsWith('linux-image-');
}

function isLibrary(name: string): boolean {
  return name.startsWith('lib') || name === 'zlib1g';
}

async function findKernelRelease(packagesRoot: string): Promise<string> {
  const files = await readdir(join(packagesRoot, 'boot')).catch(() => []);
  const image = files.find((name) => name.startsWith('vmlinuz-'));
  if (image === undefined) throw unexpectedPackage(`${KERNEL_PACKAGE} brings no kernel image`);
  return image.slice('vmlinuz-'.length);
}

function packageFacts(packages: readonly DebianPackage[]): Pick<Manifest, 'packages' | 'redisVersion'> {
  const redis = packages.find(({ name }) => name === 'redis-tools');
  // Debian's version is epoch:upstream-revision.
  const redisVersion = /^(?:\d+:)?(.*?)(?:-[^-]*)?$/.exec(redis?.version ?? '')?.[1] ?? '';
  const entries = packages.map(({ name, version, sha256 }) => [name, { version, sha256 }] as const);
  return { redisVersion, packages: Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1))) };
}

/** Faults of the file system that a person can do something about. */
function cacheFault(thrown: unknown, cache: string): GuestError | undefined {
  const errno = (thrown as NodeJS.ErrnoException).code ?? '';
  if (!['EACCES', 'EPERM', 'ENOSPC', 'EROFS', 'EDQUOT', 'ENOTDIR', 'EEXIST', 'ENOENT'].includes(errno))
    return undefined;
  return new GuestError(
    'GUEST_CACHE_UNWRITABLE',
    `cannot build the demo guest in ${cache}: ${messageOf(thrown)}`,
    {
      hint: 'Set UNDERSTUDY_CACHE to a folder that this user may write and that has 300 MB free.',
      facts: { cache, errno },
      cause: thrown,
    },
  );
}

if (import.meta.main) {
  try {
    const guest = await ensureDemoGuest({ onProgress: (step) => process.stderr.write(`${step}\n`) });
    process.stdout.write(`${JSON.stringify(guest, null, 2)}\n`);
  } catch (thrown) {
    if (!(thrown instanceof UnderstudyError)) throw thrown;
    process.stderr.write(`${thrown.code}: ${thrown.message}\n${thrown.hint ?? ''}\n`);
    process.exitCode = 1;
  }
}
