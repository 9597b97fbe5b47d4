import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, fdatasyncSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { EpochDisk } from '../src/block/epoch-disk.ts';
import { FileDevice } from '../src/block/file-device.ts';
import { openJournalFile } from '../src/block/journal-file.ts';
import { JournaledImage } from '../src/block/journaled-image.ts';
import { NbdServer } from '../src/block/nbd-server.ts';
import { epochId } from '../src/epoch/epoch-id.ts';
import { HELD_BYTES_MAX } from '../src/keeper/vm-disk.ts';
import { BareNbd } from './bare-nbd.ts';
import { BenchError } from './bench-error.ts';

const WAIT_MS = 10;
const START_DEADLINE_MS = 10_000;
/** Of /proc/PID/stat, on every Linux that there is. */
const TICK_MS = 10;

/** `protected`: in sync with a shadow. `alone`: without one. `bare`: one that does nothing else. All on one file. */
export type ServerName = 'protected' | 'alone' | 'bare' | 'qemuNbd';

/** Servers of one image file, of which one works at a time. */
export class NbdServers implements AsyncDisposable {
  readonly #folder = mkdtempSync(join(tmpdir(), 'us-nbd-'));
  readonly #owned = new AsyncDisposableStack();
  #disk: EpochDisk | undefined;
  #qemuNbd: ChildProcess | undefined;
  epochs = 0;

  static async start(make: (image: string) => void): Promise<NbdServers> {
    const servers = new NbdServers();
    try {
      make(servers.#image);
      servers.#disk = await servers.#serveOurs('protected');
      await servers.#serveOurs('alone');
      servers.#owned.use(await BareNbd.start({ socketPath: servers.#file('bare'), image: servers.#image }));
      await servers.#startQemuNbd();
      return servers;
    } catch (thrown) {
      await servers[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  uriOf(name: ServerName): string {
    return `nbd+unix:///?socket=${this.#file(name)}`;
  }

  /** Milliseconds of CPU that it has used, in user and system mode. Ours are in this process. */
  cpuMsOf(name: ServerName): number {
    if (name === 'qemuNbd') {
      const stat = readFileSync(`/proc/${this.#qemuNbd?.pid}/stat`, 'latin1');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      return (Number(fields[11]) + Number(fields[12])) * TICK_MS;
    }
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000;
  }

  /** Nothing that one of them has written is left for the time of the next one. */
  async settle(): Promise<void> {
    while (this.#disk?.isWriting) await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
    const fd = openSync(this.#image, 'r');
    fdatasyncSync(fd);
    closeSync(fd);
  }

  get #image(): string {
    return this.#file('image');
  }

  #file(name: string): string {
    return join(this.#folder, name);
  }

  async #serveOurs(name: 'protected' | 'alone'): Promise<EpochDisk> {
    const disk = new EpochDisk({
      image: await JournaledImage.open({
        device: await FileDevice.open(this.#image),
        journal: await openJournalFile(this.#file(`${name}.journal`)),
      }),
      mode: name === 'protected' ? 'in-sync' : 'alone',
      token: () => 1,
      heldBytesMax: HELD_BYTES_MAX,
      onFailed: (failure) => {
        throw failure;
      },
      onCutWanted: () => {
        // Asked for with every write until there is room: one epoch at a time.
        if (this.epochs > 0 && disk.isWriting) return;
        this.epochs += 1;
        disk.seal(epochId(this.epochs));
        disk.commit(epochId(this.epochs));
      },
    });
    this.#owned.use(disk);
    const exports = [{ name: '', device: disk, readOnly: false }];
    this.#owned.use(await NbdServer.listen({ socketPath: this.#file(name), exports }));
    return disk;
  }

  async #startQemuNbd(): Promise<void> {
    const socketPath = this.#file('qemuNbd');
    const words = ['-f', 'raw', '-t', '-e', '4', '-k', socketPath, this.#image];
    const server = spawn('qemu-nbd', words, { stdio: 'inherit' });
    this.#qemuNbd = server;
    const missing = once(server, 'error').then(([cause]) => {
      throw new BenchError('BENCH_TOOL_MISSING', 'qemu-nbd cannot be started', {
        hint: 'Install it: apt-get install --no-install-recommends qemu-utils.',
        cause,
      });
    });
    missing.catch(() => {});
    for (let waitedMs = 0; !existsSync(socketPath); waitedMs += WAIT_MS) {
      if (server.exitCode !== null || waitedMs > START_DEADLINE_MS) {
        throw new BenchError('BENCH_PEER_FAILED', 'qemu-nbd does not serve', {
          hint: 'See what it said above.',
        });
      }
      await Promise.race([missing, new Promise((resolve) => setTimeout(resolve, WAIT_MS))]);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const server = this.#qemuNbd;
    if (server?.pid !== undefined && server.exitCode === null) {
      const ended = once(server, 'exit');
      server.kill('SIGKILL');
      await ended;
    }
    await this.#owned.disposeAsync();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
