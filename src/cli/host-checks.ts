import { execFile } from 'node:child_process';
import { accessSync, closeSync, constants, existsSync, readFileSync } from 'node:fs';
import { release, userInfo } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { z } from 'zod';
import { cacheDirectory } from '../base/cache-directory.ts';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import { formatBytes, GIB, MIB, PAGE_BYTES } from '../base/units.ts';
import { acceleratorCacheFile, memoryRoot, runRoot } from '../control/run-paths.ts';
import { CgroupTree } from '../linux/cgroup.ts';
import { freeBytesOf } from '../linux/file.ts';
import { Mapping } from '../linux/mapping.ts';
import { kernelKeepsSoftDirty, Pagemap } from '../linux/pagemap.ts';
import { openTap } from '../linux/tap.ts';
import { probeUserfaultfd } from '../linux/userfaultfd.ts';
import { ensurePreloadLibrary } from '../memory/preload-library.ts';
import { QemuFinder } from '../qemu/qemu-binary.ts';
import type { Mark } from './output.ts';

/** One thing that was looked at on this machine. */
export interface Finding {
  readonly id: string;
  readonly title: string;
  /** `fail`: no VM can be protected without it. `warn`: something is slower, or not to be had. */
  readonly mark: Mark;
  readonly found: string;
  /** What to do; only where something is not as it should be. */
  readonly advice?: string;
}

type Result = Omit<Finding, 'id' | 'title'>;

interface Check {
  readonly id: string;
  readonly title: string;
  readonly look: () => Result | Promise<Result>;
}

const COMMAND_DEADLINE_MS = 10_000;
const MEMORY_BYTES_COMFORTABLE = GIB;
/** The smallest VM twice, with its epochs. */
const MEMORY_BYTES_MIN = 128 * MIB;

const ok = (found: string): Result => ({ mark: 'ok', found });
const warn = (found: string, advice: string): Result => ({ mark: 'warn', found, advice });
const fail = (found: string, advice: string): Result => ({ mark: 'fail', found, advice });

/** In the order in which they are shown. */
export const HOST_CHECKS: readonly Check[] = [
  { id: 'node', title: 'Node', look: () => ok(process.versions.node) },
  { id: 'kernel', title: 'Linux kernel', look: () => ok(release()) },
  { id: 'user', title: 'user', look: user },
  { id: 'qemu', title: 'QEMU', look: qemu },
  { id: 'accelerator', title: 'accelerator', look: accelerator },
  { id: 'preload', title: 'preload library', look: preloadLibrary },
  { id: 'userfaultfd', title: 'userfaultfd', look: userfaultfd },
  { id: 'pagemap-scan', title: 'dirty log: pagemap scan', look: pagemapScan },
  { id: 'soft-dirty', title: 'dirty log: soft-dirty', look: softDirty },
  { id: 'compare', title: 'dirty log: compare', look: () => ok('works everywhere') },
  { id: 'memory', title: 'room for guest memory', look: memory },
  { id: 'run-directory', title: 'run directory', look: () => ok(runRoot()) },
  { id: 'cgroups', title: 'cgroups', look: cgroups },
  { id: 'tap', title: 'network: TAP', look: tap },
  { id: 'netns', title: 'network namespaces', look: networkNamespaces },
  { id: 'passt', title: 'network: passt', look: () => program('passt', 'passt') },
  { id: 'qemu-img', title: 'images of disks', look: () => program('qemu-img', 'qemu-utils') },
  { id: 'gcc', title: 'C compiler', look: () => program('gcc', 'gcc libc6-dev') },
];

/** Looks at everything; a check that itself fails is a finding too. */
export async function checkHost(checks: readonly Check[] = HOST_CHECKS): Promise<Finding[]> {
  const findings: Finding[] = [];
  // One after the other: some of them take the CPU that others measure by.
  for (const { id, title, look } of checks) {
    findings.push({ id, title, ...(await Promise.resolve().then(look).catch(broken)) });
  }
  return findings;
}

function broken(thrown: unknown): Result {
  const hint = thrown instanceof UnderstudyError ? thrown.hint : undefined;
  return fail(messageOf(thrown), hint ?? 'Repeat with UNDERSTUDY_DEBUG=1 and report what it says.');
}

function user(): Result {
  const { username, uid } = userInfo();
  return uid === 0
    ? ok('root')
    : warn(
        `${username}, not root`,
        'Networks work through passt only, and a standby is not limited in CPU time.',
      );
}

async function qemu(): Promise<Result> {
  const { path, version } = await new QemuFinder().find('qemu-system-x86_64');
  return ok(`${version}, ${path}`);
}

/** That the device opens proves nothing: only a guest that came up does. */
function accelerator(): Result {
  if (!existsSync('/dev/kvm'))
    return warn(
      'TCG; there is no /dev/kvm',
      'TCG works but is slow. Enable virtualisation in firmware and host.',
    );
  const answer = rememberedAnswer();
  if (answer?.works === true) return ok(`KVM: ${answer.reason}`);
  if (answer?.works === false)
    return warn(`TCG; ${answer.reason}`, 'TCG works but is slow. `understudy doctor --probe` tries again.');
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return warn('TCG; /dev/kvm may not be used by this user', 'Add this user to the group kvm.');
  }
  return warn('KVM is there but not tried yet', '`understudy doctor --probe` boots a guest with it.');
}

const rememberedSchema = z.object({ key: z.string(), works: z.boolean(), reason: z.string() });

/** What the accelerator probe found since this machine was started. */
function rememberedAnswer(): z.infer<typeof rememberedSchema> | undefined {
  try {
    const bootId = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
    const text = readFileSync(acceleratorCacheFile(cacheDirectory()), 'utf8');
    const answer = rememberedSchema.parse(JSON.parse(text));
    return answer.key.includes(bootId) ? answer : undefined;
  } catch {
    return undefined;
  }
}

async function preloadLibrary(): Promise<Result> {
  return ok(await ensurePreloadLibrary({ cacheDir: cacheDirectory() }));
}

function userfaultfd(): Result {
  const support = probeUserfaultfd();
  if (support.kind === 'refused') {
    return warn(
      `refused: ${support.errnoName}`,
      'Run as root, or set the sysctl vm.unprivileged_userfaultfd to 1.',
    );
  }
  const features = `${support.features.join(' ')} (${support.reach})`;
  return support.features.includes('WP_ASYNC')
    ? ok(features)
    : warn(features, 'Without WP_ASYNC (Linux 6.7) writes are found in a slower way.');
}

function pagemapScan(): Result {
  using page = Mapping.anonymous(PAGE_BYTES);
  using pagemap = Pagemap.open(process.pid);
  try {
    pagemap.scanWritten({ startAddress: page.address, lengthBytes: PAGE_BYTES, rearm: false });
  } catch (thrown) {
    // Refused for a page that is not watched: the call is there.
    if (messageOf(thrown).includes('EPERM')) return ok('the kernel has it');
    return warn(messageOf(thrown), 'It needs Linux 6.7; until then writes are found in a slower way.');
  }
  return ok('the kernel has it');
}

function softDirty(): Result {
  return kernelKeepsSoftDirty()
    ? ok("the kernel has it; proven with Debian 12's 6.1 (docs/dirty-logs.md)")
    : warn('not in this kernel', 'Nothing to do where pagemap scan works.');
}

function memory(): Result {
  const free = freeBytesOf(nearestThatExists(memoryRoot()));
  const found = `${formatBytes(free)} free in ${memoryRoot()}`;
  const advice =
    'A protected VM needs twice its memory there: mount -o remount,size=… or set UNDERSTUDY_MEMORY_DIR.';
  if (free < MEMORY_BYTES_MIN) return fail(found, advice);
  return free < MEMORY_BYTES_COMFORTABLE ? warn(found, advice) : ok(found);
}

/** A directory that is not there yet is made by the first VM. */
function nearestThatExists(path: string): string {
  return existsSync(path) ? path : nearestThatExists(dirname(path));
}

function cgroups(): Result {
  const detected = CgroupTree.detect();
  return detected.kind === 'usable'
    ? ok(`version ${detected.tree.version}`)
    : warn(detected.reason, 'VMs can be protected; their standbys are not limited in CPU time.');
}

function tap(): Result {
  try {
    // Gone again with its descriptor.
    closeSync(openTap({ device: `us-doctor${process.pid % 100_000}` }));
    return ok('devices can be made');
  } catch (thrown) {
    return warn(messageOf(thrown), 'Run as root, or use uplinks of kind passt.');
  }
}

async function networkNamespaces(): Promise<Result> {
  const { mark, found } = await program('ip', 'iproute2');
  if (mark !== 'ok') return warn(found, 'Install it with: apt-get install iproute2');
  if (process.geteuid?.() !== 0) return warn('only root can use them', 'Run as root where a VM names one.');
  const netns = `us-doctor-${process.pid}`;
  try {
    await ip('netns', 'add', netns);
    // Some containers allow to make one, and nothing more.
    await ip('-n', netns, 'link', 'set', 'lo', 'up').finally(() => ip('netns', 'delete', netns));
    return ok('can be made and used');
  } catch (thrown) {
    return warn(messageOf(thrown), 'Uplinks with netns cannot be used; the demo uses passt.');
  }
}

async function ip(...words: string[]): Promise<void> {
  try {
    await promisify(execFile)('ip', words, { timeout: COMMAND_DEADLINE_MS });
  } catch (cause) {
    const said = cause instanceof Error && 'stderr' in cause ? String(cause.stderr).trim() : '';
    throw new Error(`ip ${words.join(' ')}: ${said.replaceAll('\n', ', ') || messageOf(cause)}`, { cause });
  }
}

function program(name: string, packages: string): Result {
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    const path = join(folder, name);
    try {
      accessSync(path, constants.X_OK);
      return ok(path);
    } catch {
      // Not in this folder.
    }
  }
  return warn('not found', `Install it with: apt-get install ${packages}`);
}
