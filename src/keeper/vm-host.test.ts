import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { cacheDirectory } from '../base/cache-directory.ts';
import { identityOf } from '../control/process-identity.ts';
import { ensurePreloadLibrary } from '../memory/preload-library.ts';
import { writeGuest } from '../qemu/machine-fixture.ts';
import { endingWithThisProcess } from './vm-host.ts';

const DEADLINE_MS = 60_000;

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-vm-host-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** A process that boots a guest which never answers, for the accelerator probe, and is killed meanwhile. */
async function qemuOfKilledProbe(environment: Record<string, string>): Promise<number> {
  const kernel = join(folder, 'guest');
  writeGuest(kernel, 'silent');
  const module = (path: string) => JSON.stringify(new URL(path, import.meta.url).href);
  const code = `
    const { bootsUnder } = await import(${module('../qemu/accelerator-probe.ts')});
    const { systemClock: clock } = await import(${module('../base/clock.ts')});
    const environment = JSON.parse(${JSON.stringify(JSON.stringify(environment))});
    if (environment.UNDERSTUDY_KEEPER_PID) environment.UNDERSTUDY_KEEPER_PID = String(process.pid);
    const guest = ${JSON.stringify({ kernel, marker: 'never' })};
    const qemu = { path: 'qemu-system-x86_64', version: '7.2.0' };
    await bootsUnder('tcg', { qemu, guest, deadlineMs: 600000, logPath: ${JSON.stringify(join(folder, 'log'))}, environment, clock });`;
  const probe = spawn(process.execPath, ['--input-type=module', '-e', code], { stdio: 'inherit' });
  const pid = await vi.waitFor(
    () => {
      const children = readFileSync(`/proc/${probe.pid}/task/${probe.pid}/children`, 'utf8').trim();
      const child = Number(children.split(' ')[0]);
      // Where the library has not been run yet it notices that its keeper is gone.
      expect(readFileSync(`/proc/${child}/maps`, 'utf8')).toContain('qemu-system');
      return child;
    },
    { timeout: DEADLINE_MS },
  );
  const ended = once(probe, 'exit');
  probe.kill('SIGKILL');
  await ended;
  return pid;
}

it("the accelerator probe's QEMU ends with its keeper; without what makes it do so it would spin for ever", async () => {
  const preloadLibrary = await ensurePreloadLibrary({ cacheDir: cacheDirectory() });
  const pid = await qemuOfKilledProbe(endingWithThisProcess(preloadLibrary));
  await vi.waitFor(() => expect(identityOf(pid)).toBeUndefined(), { timeout: DEADLINE_MS });
  const forgotten = await qemuOfKilledProbe({});
  try {
    expect(identityOf(forgotten)).toBeDefined();
  } finally {
    process.kill(forgotten, 'SIGKILL');
  }
});
