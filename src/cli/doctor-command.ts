import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cacheDirectory } from '../base/cache-directory.ts';
import { systemClock as clock } from '../base/clock.ts';
import { silentLogger } from '../base/logger.ts';
import { acceleratorCacheFile } from '../control/run-paths.ts';
import { CliError } from './cli-error.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { checkHost, type Finding } from './host-checks.ts';
import { marked, type Output } from './output.ts';

const PROBE_DEADLINE_MS = 60_000;
const SIGNS = { ok: '✓', warn: '!', fail: '✗' } as const;

/** Says what works on this machine. Exit code 4 when no VM can be protected here. */
export async function doctor({ probe }: { probe: boolean }, out: Output): Promise<number> {
  if (probe) await probeAnew(out);
  const findings = await checkHost();
  const failed = findings.filter(({ mark }) => mark === 'fail').map(({ title }) => title);
  const canProtect = failed.length === 0;
  out.result({ canProtect, findings }, () => [...findings.map(findingText), '', verdict(failed)].join('\n'));
  return canProtect ? EXIT_CODES.ok.code : EXIT_CODES.impossible.code;
}

/** Boots the probe guest with KVM; where that is not to be had, with TCG, to see that a guest runs at all. */
async function probeAnew(out: Output): Promise<void> {
  const { ensureDemoGuest } = await import('../../guest/build.ts');
  const { bootsUnder, probeAccelerator } = await import('../qemu/accelerator-probe.ts');
  const { QemuFinder } = await import('../qemu/qemu-binary.ts');
  const cacheDir = cacheDirectory();
  const {
    kernel,
    probeInitrd: initrd,
    cmdline,
    probeMarker: marker,
  } = await ensureDemoGuest({
    cacheDir,
    onProgress: (step) => out.progress(step),
  });
  const directory = mkdtempSync(join(tmpdir(), 'us-doctor-'));
  try {
    const qemu = await new QemuFinder().find('qemu-system-x86_64');
    const guest = { kernel, initrd, cmdline, marker };
    const trial = {
      qemu,
      guest,
      deadlineMs: PROBE_DEADLINE_MS,
      logPath: join(directory, 'probe.log'),
      clock,
    };
    const cacheFile = acceleratorCacheFile(cacheDir);
    rmSync(cacheFile, { force: true });
    out.progress('booting a guest with KVM');
    const { accel } = await probeAccelerator({ ...trial, requested: 'auto', cacheFile, log: silentLogger });
    if (accel === 'kvm') return;
    out.progress('booting a guest with TCG');
    const { works, reason } = await bootsUnder('tcg', trial);
    if (!works) {
      throw new CliError('CLI_MACHINE_UNFIT', `no guest runs on this machine: ${reason}`, {
        hint: 'Look whether QEMU is complete: apt-get install --reinstall qemu-system-x86',
      });
    }
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function findingText({ title, mark, found, advice }: Finding): string {
  const line = `${marked(mark, SIGNS[mark])} ${title.padEnd(26)}${found}`;
  return advice === undefined ? line : `${line}\n  ${''.padEnd(26)}${advice}`;
}

function verdict(failed: readonly string[]): string {
  return failed.length === 0
    ? marked('ok', 'VMs can be protected on this machine.')
    : marked('fail', `No VM can be protected on this machine before this is put right: ${failed.join(', ')}`);
}
