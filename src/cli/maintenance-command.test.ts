import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it, onTestFinished, vi } from 'vitest';
import { systemClock as clock } from '../base/clock.ts';
import { RunDirectory } from '../control/run-directory.ts';
import { maintenanceOf } from '../site/maintenance.ts';
import { exitCodeOf } from './exit-codes.ts';
import { maintenanceOn } from './maintenance-command.ts';
import { Output } from './output.ts';

/** Somebody presses Ctrl-C when the first thing is said. */
class Impatient extends Output {
  override progress(): void {
    process.emit('SIGINT', 'SIGINT');
  }
}

it('maintenance that Ctrl-C interrupts stays, and whoever pressed it is told how it goes on or ends', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'us-interrupted-'));
  onTestFinished(() => {
    vi.unstubAllEnvs();
    rmSync(folder, { recursive: true });
  });
  for (const name of ['RUN_DIR', 'STATE_DIR', 'MEMORY_DIR'])
    vi.stubEnv(`UNDERSTUDY_${name}`, join(folder, name));
  const vm = await RunDirectory.open('vm', { clock });
  const interrupted = await maintenanceOn(
    { force: false, timeoutMs: 1000 },
    new Impatient({ json: false }),
  ).catch((thrown) => thrown);
  expect(interrupted).toMatchObject({
    code: 'CLI_INTERRUPTED',
    hint: expect.stringMatching(/stays in maintenance.*maintenance on.*maintenance off/),
  });
  expect(exitCodeOf(interrupted)).toBe(130);
  expect(maintenanceOf()).toBeDefined();
  vm.remove();
});
