import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { acceleratorCacheFile } from '../control/run-paths.ts';
import { ensurePreloadLibrary } from '../memory/preload-library.ts';
import { type ProbeGuest, probeAccelerator } from '../qemu/accelerator-probe.ts';
import type { Accelerator } from '../qemu/launch-arguments.ts';
import { type QemuBinary, QemuFinder } from '../qemu/qemu-binary.ts';

const PROBE_DEADLINE_MS = 20_000;

/** What this machine brings for a VM. */
export interface VmHost {
  readonly qemu: QemuBinary;
  readonly accel: Accelerator;
  /** Path of the library that is loaded into QEMU. */
  readonly preloadLibrary: string;
}

export interface VmHostOptions {
  readonly cacheDir: string;
  /** Where the probe's QEMU may write its log. */
  readonly directory: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly signal?: AbortSignal;
}

/** @throws QemuError, MemoryError: what is missing here, and how to get it; the signal's reason */
export async function prepareHost(spec: VmSpec, options: VmHostOptions): Promise<VmHost> {
  const { cacheDir, directory, clock, log, signal } = options;
  const qemu = await new QemuFinder().find(spec.qemu.binary);
  const preloadLibrary = await ensurePreloadLibrary({ cacheDir });
  const guest = probeGuest(spec);
  // Nothing to try it with: TCG always works.
  if (guest === undefined) return { qemu, preloadLibrary, accel: spec.accel === 'kvm' ? 'kvm' : 'tcg' };
  const { accel, reason, source } = await probeAccelerator({
    requested: spec.accel,
    qemu,
    guest,
    deadlineMs: PROBE_DEADLINE_MS,
    cacheFile: acceleratorCacheFile(cacheDir),
    logPath: join(directory, 'probe.log'),
    user: spec.qemu.user,
    environment: endingWithThisProcess(preloadLibrary),
    clock,
    log,
    signal,
  });
  log.info('accelerator chosen', { accel, reason, source });
  return { qemu, preloadLibrary, accel };
}

/**
 * The VM's own kernel without an initramfs: that it comes as far as to miss its root file system shows that
 * processors, timers and memory work, and nothing has to be fetched for it.
 */
function probeGuest({ boot }: VmSpec): ProbeGuest | undefined {
  if (boot.kind === 'disk') return undefined;
  return { kernel: boot.kernel, cmdline: 'console=ttyS0 panic=-1', marker: 'Unable to mount root fs' };
}

/** For a QEMU of ours that nobody takes over: one that outlived us would spin for ever. */
export function endingWithThisProcess(preloadLibrary: string): Record<string, string> {
  return { LD_PRELOAD: preloadLibrary, UNDERSTUDY_KEEPER_PID: String(process.pid) };
}
