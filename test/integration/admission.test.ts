import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it, onTestFinished, vi } from 'vitest';
import { ensureDemoGuest } from '../../guest/build.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { MIB } from '../../src/base/units.ts';
import { KeeperProcess } from '../../src/control/keeper-process.ts';
import { RunDirectory } from '../../src/control/run-directory.ts';
import { SmallTmpfs } from '../kit/small-tmpfs.ts';

it('memory is promised once: a second VM is refused though the first has not used its own yet', async () => {
  const guest = await ensureDemoGuest();
  await using open = new AsyncDisposableStack();
  // Room for one and a half.
  const tmpfs = open.use(new SmallTmpfs(700 * MIB));
  const folder = mkdtempSync(join(tmpdir(), 'us-room-'));
  open.defer(() => rmSync(folder, { recursive: true }));
  vi.stubEnv('UNDERSTUDY_RUN_DIR', join(folder, 'run'));
  vi.stubEnv('UNDERSTUDY_MEMORY_DIR', tmpfs.path);
  onTestFinished(() => {
    vi.unstubAllEnvs();
  });
  const start = async (name: string): Promise<void> => {
    const path = join(folder, `${name}.yaml`);
    const { kernel, initrd, cmdline } = guest;
    writeFileSync(
      path,
      JSON.stringify({ name, memory: '128MiB', accel: 'tcg', boot: { kernel, initrd, cmdline } }),
    );
    const keeper = new KeeperProcess(path, { vm: name });
    open.defer(async () => {
      await keeper.giveUp({ deadlineMs: 10_000, clock });
      await RunDirectory.sweep(name, { clock });
    });
    await keeper.started();
  };
  await start('first');
  await expect(start('second')).rejects.toMatchObject({ code: 'MEMORY_NO_ROOM' });
});
