import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { dirname } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { makeDirectory } from '../base/make-directory.ts';
import { type Accelerator, acceleratorArguments } from './launch-arguments.ts';
import type { QemuBinary } from './qemu-binary.ts';
import { QemuError } from './qemu-error.ts';
import { lastLines, QemuProcess } from './qemu-process.ts';

const KVM_DEVICE = '/dev/kvm';

export interface ProbeGuest {
  readonly kernel: string;
  readonly initrd?: string;
  readonly cmdline?: string;
  /** What the guest writes on its first serial port when it has come up. */
  readonly marker: string;
}

export interface ProbeOptions {
  readonly requested: 'auto' | Accelerator;
  readonly qemu: QemuBinary;
  readonly guest: ProbeGuest;
  /** How long the guest may take to come up under KVM. */
  readonly deadlineMs: number;
  /** Remembers the answer until QEMU, the kernel, the CPU or the boot is another. */
  readonly cacheFile: string;
  /** Gets what QEMU says. */
  readonly logPath: string;
  /** The user that QEMU will run as. */
  readonly user?: string | undefined;
  /** Added to our own environment for QEMU, e.g. what makes it end with this process. */
  readonly environment?: Readonly<Record<string, string>>;
  readonly clock: Clock;
  readonly log: Logger;
  /** Ends the trial; nothing is remembered then. */
  readonly signal?: AbortSignal | undefined;
}

export interface ProbeResult {
  readonly accel: Accelerator;
  /** Why, as a sentence. */
  readonly reason: string;
  /** Whether a guest was booted for it now. */
  readonly source: 'requested' | 'remembered' | 'booted' | 'no device';
}

/**
 * Chooses the accelerator. KVM is taken only where a guest came up under it: that /dev/kvm opens proves nothing, as
 * a nested or paravirtual KVM may start QEMU and the firmware and then spin for ever in the kernel.
 * @throws {QemuError} QEMU_KVM_UNUSABLE when KVM was asked for by name and no guest comes up under it
 */
export async function probeAccelerator(options: ProbeOptions): Promise<ProbeResult> {
  const { requested } = options;
  if (requested === 'tcg') return { accel: 'tcg', reason: 'TCG was asked for', source: 'requested' };
  const { works, reason, source } = await kvmAnswer(options);
  if (works) return { accel: 'kvm', reason, source };
  if (requested === 'auto') return { accel: 'tcg', reason, source };
  throw new QemuError('QEMU_KVM_UNUSABLE', `KVM does not run a guest here: ${reason}`, {
    hint: 'Use accel: auto or accel: tcg, or enable virtualisation in firmware and host.',
    facts: { reason },
  });
}

/**
 * Boots the guest and waits for its marker.
 * @throws {QemuError} QEMU_MISSING, QEMU_USER_UNKNOWN, QEMU_START_FAILED; the signal's reason
 */
export async function bootsUnder(
  accel: Accelerator,
  options: Pick<
    ProbeOptions,
    'qemu' | 'guest' | 'deadlineMs' | 'logPath' | 'user' | 'environment' | 'clock' | 'signal'
  >,
): Promise<{ works: boolean; reason: string }> {
  const { qemu, guest, deadlineMs, logPath, user, environment, clock, signal } = options;
  signal?.throwIfAborted();
  await using process = await QemuProcess.launch({
    binary: qemu.path,
    args: probeArguments(accel, guest),
    logPath,
    user,
    ...(environment !== undefined && { environment }),
    clock,
  });
  return await new Promise((resolve, reject) => {
    const abort = () => reject(signal?.reason);
    signal?.addEventListener('abort', abort);
    const answer = (works: boolean, reason: string) => {
      cancelDeadline();
      signal?.removeEventListener('abort', abort);
      resolve({ works, reason });
    };
    const cancelDeadline = clock.after(deadlineMs, () =>
      answer(false, `a guest did not come up under ${accel} within ${deadlineMs} ms`),
    );
    let seen = '';
    process.onOutput((text) => {
      seen = (seen + text).slice(-(text.length + guest.marker.length));
      if (seen.includes(guest.marker)) answer(true, `a guest came up under ${accel}`);
    });
    void process.exited.then(async () => {
      await process.drained();
      answer(false, `QEMU ended under ${accel}: ${lastLines(process.outputTail, 1) || 'it said nothing'}`);
    });
  });
}

function probeArguments(
  accel: Accelerator,
  { kernel, initrd, cmdline = 'console=ttyS0' }: ProbeGuest,
): string[] {
  return [
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-vga', 'none', '-no-reboot'],
    ...['-machine', 'q35', '-m', '256M', ...acceleratorArguments(accel)],
    ...['-kernel', kernel, '-append', cmdline],
    ...(initrd === undefined ? [] : ['-initrd', initrd]),
    ...['-serial', 'stdio'],
  ];
}

interface KvmAnswer {
  readonly works: boolean;
  readonly reason: string;
  readonly source: ProbeResult['source'];
}

async function kvmAnswer(options: ProbeOptions): Promise<KvmAnswer> {
  if (!existsSync(KVM_DEVICE))
    return { works: false, reason: `there is no ${KVM_DEVICE}`, source: 'no device' };
  const key = hostKey(options);
  const known = recall(options.cacheFile, key);
  // A refusal may have been a host under load: who asks for KVM by name gets a new trial.
  if (known !== undefined && (known.works || options.requested === 'auto')) {
    return { ...known, source: 'remembered' };
  }
  const answer = await bootsUnder('kvm', options);
  // A refusal says nothing about KVM: whoever is let in afterwards shall not have to wait for the next boot.
  if (answer.works || !/permission denied/i.test(answer.reason)) remember(options, { key, ...answer });
  return { ...answer, source: 'booted' };
}

interface Remembered {
  readonly key: string;
  readonly works: boolean;
  readonly reason: string;
}

/** All that the answer depends on. The boot: firmware settings and kernel modules change only with it, mostly. */
function hostKey({ qemu, user }: ProbeOptions): string {
  const bootId = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  return JSON.stringify([release(), qemu.path, qemu.version, cpus()[0]?.model, bootId, user]);
}

/** What the last trial on this machine found, for people: a start asks anew. Undefined before there was one. */
export function knownAccelerator(cacheFile: string): Accelerator | undefined {
  if (!existsSync(KVM_DEVICE)) return 'tcg';
  const found = remembered(cacheFile);
  if (found === undefined) return undefined;
  return found.works ? 'kvm' : 'tcg';
}

function recall(cacheFile: string, key: string): Remembered | undefined {
  const found = remembered(cacheFile);
  return found?.key === key ? found : undefined;
}

function remembered(cacheFile: string): Remembered | undefined {
  let found: Partial<Remembered> | null;
  try {
    found = JSON.parse(readFileSync(cacheFile, 'utf8'));
  } catch {
    return undefined;
  }
  const { key, works, reason } = found ?? {};
  if (typeof key !== 'string' || typeof works !== 'boolean' || typeof reason !== 'string') return undefined;
  return { key, works, reason };
}

/** A cache that cannot be written costs the next start a probe, nothing else. */
function remember({ cacheFile, log }: ProbeOptions, answer: Remembered): void {
  const draft = `${cacheFile}.${process.pid}`;
  try {
    makeDirectory(dirname(cacheFile));
    writeFileSync(draft, `${JSON.stringify(answer, null, 2)}\n`);
    renameSync(draft, cacheFile);
  } catch (error) {
    log.warn('the answer of the accelerator probe is not remembered', { cacheFile, error: messageOf(error) });
  }
}
