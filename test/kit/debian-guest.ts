import { execFile } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ensureDemoGuest } from '../../guest/build.ts';
import { type CpioEntry, writeCpio } from '../../guest/cpio.ts';
import { systemClock } from '../../src/base/clock.ts';
import { acceleratorArguments } from '../../src/qemu/launch-arguments.ts';
import { QemuProcess } from '../../src/qemu/qemu-process.ts';
import { REPOSITORY } from './static-checks.ts';

/** What the script needs of the repository: the rooms that it may use, and the packages that these use. */
const FOLDERS = ['src/base', 'src/linux', 'src/memory', 'test/kit'];
const PACKAGES = ['koffi', '@koromix/koffi-linux-x64', '@node-rs/xxhash', '@node-rs/xxhash-linux-x64-gnu'];
const LOADED_BY_NODE = /(?<!\.test|\.d)\.(?:ts|[cm]?js|json|node)$/;

/** Twice what the initramfs takes, because the kernel gives it half of the memory. */
const MEMORY = '512M';
/** Far more than it takes: a guest that hangs is the exception. */
const DEADLINE_MS = 4 * 60_000;

interface GuestScript {
  /** In the repository. */
  readonly script: string;
  readonly args: readonly string[];
  /** Programs and libraries that the script starts or loads. */
  readonly programs: readonly string[];
}

interface GuestRun {
  /** What the script wrote on its standard output. */
  readonly output: string;
  /** The end of the guest's console, with what the script wrote on its standard error. */
  readonly console: string;
}

/**
 * Boots the kernel of the demo guest, Debian's own, under TCG, and runs a script of this repository in it, as root,
 * with /dev/shm and cgroups of version 2. Every file stands in the guest at the path that it has here, so paths
 * mean the same in both.
 * @throws Error with the console when the guest has not powered off in time.
 */
export async function runInDebianGuest(script: GuestScript): Promise<GuestRun> {
  const { kernel, cmdline, probeInitrd } = await ensureDemoGuest();
  await using owned = new AsyncDisposableStack();
  const folder = await mkdtemp(join(tmpdir(), 'us-debian-'));
  owned.defer(() => rm(folder, { recursive: true }));
  const initrd = join(folder, 'initrd');
  const output = join(folder, 'output');
  // The kernel unpacks one archive after the other: busybox comes from the first, and our init replaces its own.
  await writeFile(initrd, Buffer.concat([await readFile(probeInitrd), await initramfs(script)]));
  const qemu = owned.use(
    await QemuProcess.launch({
      binary: 'qemu-system-x86_64',
      args: [
        ...['-nodefaults', '-no-user-config', '-display', 'none', '-vga', 'none', '-no-reboot'],
        ...['-machine', 'q35', '-m', MEMORY, ...acceleratorArguments('tcg')],
        ...['-kernel', kernel, '-initrd', initrd, '-append', cmdline],
        // Two ports, so that the kernel cannot speak into the script's lines.
        ...['-serial', 'stdio', '-chardev', `file,id=output,path=${output}`, '-serial', 'chardev:output'],
      ],
      logPath: join(folder, 'console'),
      clock: systemClock,
    }),
  );
  const exit = await qemu.awaitExit(DEADLINE_MS);
  await qemu.drained();
  if (exit === undefined) throw new Error(`the guest did not power off:\n${qemu.outputTail}`);
  return { output: await readFile(output, 'latin1'), console: qemu.outputTail };
}

async function initramfs({ script, args, programs }: GuestScript): Promise<Buffer> {
  const command = [process.execPath, join(REPOSITORY, script), ...args].map((word) => `'${word}'`).join(' ');
  const init = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# A page that is moved may become soft-dirty: harmless, but no check would know why.
echo 0 >/proc/sys/vm/compaction_proactiveness
NO_COLOR=1 ${command} </dev/null >/dev/ttyS1
poweroff -f
`;
  const folders = [...FOLDERS, ...PACKAGES.map((name) => `node_modules/${name}`)];
  const modules = (await Promise.all(folders.map(modulesIn))).flat();
  const native = [process.execPath, ...programs, ...modules.filter((path) => path.endsWith('.node'))];
  const files = new Set([
    ...native,
    ...modules,
    ...(await librariesOf(native)),
    join(REPOSITORY, 'package.json'),
  ]);
  return writeCpio([
    { kind: 'file', path: 'init', mode: 0o755, data: Buffer.from(init) },
    ...(await Promise.all([...files].map(atItsPath))),
  ]);
}

/** The libraries that the dynamic loader finds for these programs, and the loader itself. */
async function librariesOf(programs: readonly string[]): Promise<string[]> {
  const { stdout } = await promisify(execFile)('ldd', programs);
  // `libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f0000000000)`
  return Array.from(stdout.matchAll(/(\/\S+) \(0x/g), ([, path = '']) => path);
}

async function modulesIn(folder: string): Promise<string[]> {
  const entries = await readdir(join(REPOSITORY, folder), { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile() && LOADED_BY_NODE.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name));
}

async function atItsPath(path: string): Promise<CpioEntry> {
  return { kind: 'file', path: path.slice(1), mode: 0o755, data: await readFile(path) };
}
