import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { systemClock as clock } from '../../src/base/clock.ts';
import { MIB } from '../../src/base/units.ts';
import { NbdServer } from '../../src/block/nbd-server.ts';
import { type Luck, PowerLog } from '../../src/block/power-fixture.ts';
import { endChild } from './child-end.ts';
import { makeExt4 } from './data-disk.ts';

const run = promisify(execFile);
const DISK_BYTES = 32 * MIB;
const DEADLINE_MS = 30_000;
const POLL_MS = 5;

/**
 * A folder on a file system of its own (ext4), on a disk that loses what it was not told to flush when its power fails. The disk
 * is this process: what it serves over NBD, qemu-storage-daemon makes a file of (FUSE), and the kernel a block device of that
 * (loop). So **this process must not touch the folder with a call that blocks**: it would wait for itself. Needs root.
 */
export class ForgetfulDisk implements AsyncDisposable {
  readonly #log = new PowerLog({ image: Buffer.alloc(DISK_BYTES), journal: Buffer.alloc(0) });
  readonly #owned = new AsyncDisposableStack();

  static async mountedAt(folder: string): Promise<ForgetfulDisk> {
    const disk = new ForgetfulDisk();
    try {
      await disk.#mount(folder);
      return disk;
    } catch (thrown) {
      await disk[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  /** How much has happened to it; a moment for `afterPowerLoss`. */
  get now(): number {
    return this.#log.steps.length;
  }

  /** What is left where the power fails at this moment. It does not fail: everything goes on. */
  afterPowerLoss(moment: number, luck: Luck): Buffer {
    return this.#log.afterPowerLoss(moment, luck).image;
  }

  /** The same for one that says that it has flushed, and from `since` on has not. */
  afterPowerLossOfLiar(moment: number, { since, luck }: { since: number; luck: Luck }): Buffer {
    const lied = this.#log.steps.slice(since, moment).filter(({ kind }) => kind !== 'sync');
    const liar = new PowerLog({ image: Buffer.alloc(DISK_BYTES), journal: Buffer.alloc(0) });
    liar.steps.push(...this.#log.steps.slice(0, since), ...lied);
    return liar.afterPowerLoss(liar.steps.length, luck).image;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned.disposeAsync();
  }

  async #mount(folder: string): Promise<void> {
    const own = mkdtempSync(join(tmpdir(), 'us-forgetful-'));
    this.#owned.defer(() => rmSync(own, { recursive: true }));
    const socketPath = join(own, 'nbd');
    const exports = [{ name: '', device: this.#log.device(), readOnly: false }];
    const server = await NbdServer.listen({ socketPath, exports });
    this.#owned.defer(() => server.close());
    const file = join(own, 'disk');
    writeFileSync(file, '');
    await this.#makeFile(file, socketPath);
    await makeExt4(file, { sizeBytes: DISK_BYTES });
    await run('mount', ['-o', 'loop', file, folder]);
    this.#owned.defer(async () => {
      // Lazily, because a test that failed may still have files open in it.
      await run('umount', ['--lazy', folder]);
    });
  }

  async #makeFile(file: string, socketPath: string): Promise<void> {
    const below = ['--blockdev', `driver=nbd,node-name=disk,server.type=unix,server.path=${socketPath}`];
    const fuse = ['--export', `type=fuse,id=file,node-name=disk,mountpoint=${file},writable=on`];
    // A FUSE file whose server is stopped would hold up whoever looks at it.
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', 'qemu-storage-daemon', ...below, ...fuse], {
      stdio: ['ignore', 'inherit', 'inherit'],
    });
    this.#owned.defer(() => endFuse(child, file));
    const endMs = clock.nowMs() + DEADLINE_MS;
    while ((await stat(file)).size !== DISK_BYTES) {
      if (clock.nowMs() > endMs || child.exitCode !== null) throw new Error('there is no file over FUSE');
      await clock.sleep(POLL_MS);
    }
  }
}

async function endFuse(child: ChildProcess, file: string): Promise<void> {
  await endChild(child);
  // Its end takes the mount with it unless it was killed too early for that.
  await run('umount', ['--lazy', file]).catch(() => {});
}
