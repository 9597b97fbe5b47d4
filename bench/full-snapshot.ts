import { closeSync, constants, openSync, rmSync, writeSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import type { Clock } from '../src/base/clock.ts';
import { messageOf } from '../src/base/errors.ts';
import { MIB } from '../src/base/units.ts';
import type { Machine } from '../src/qemu/machine.ts';
import { BenchError } from './bench-error.ts';

const MIGRATION_DEADLINE_MS = 120_000;
/** More than a memory bus moves: QEMU's default of 128 MiB/s would make the peer look bad. */
const UNLIMITED_BYTES_PER_SECOND = 1e12;
const CHUNK_BYTES = MIB;

/**
 * A peer: a whole snapshot as QEMU makes it, `stop`, `migrate` to a file, `cont`. The file lies in memory, and QEMU
 * writes to it through a unix socket, as 7.2 has no `file:` yet and `exec:` needs a shell.
 */
export class FullSnapshots implements AsyncDisposable {
  readonly #machine: Machine;
  readonly #clock: Clock;
  readonly #server: Server;
  readonly #socketPath: string;
  readonly #filePath: string;
  #ended = Promise.withResolvers<void>();

  private constructor(machine: Machine, server: Server, { clock, socketPath, filePath }: SnapshotOptions) {
    this.#machine = machine;
    this.#clock = clock;
    this.#server = server;
    this.#socketPath = socketPath;
    this.#filePath = filePath;
  }

  static async of(
    machine: Machine,
    places: { clock: Clock; runDirectory: string; memoryDirectory: string },
  ): Promise<FullSnapshots> {
    const { clock, runDirectory, memoryDirectory } = places;
    const socketPath = join(runDirectory, 'snapshot');
    const filePath = join(memoryDirectory, 'snapshot');
    await machine.qmp.execute('migrate-set-capabilities', {
      capabilities: [{ capability: 'events', state: true }],
    });
    await machine.qmp.execute('migrate-set-parameters', { 'max-bandwidth': UNLIMITED_BYTES_PER_SECOND });
    const server = createServer({ highWaterMark: CHUNK_BYTES });
    await new Promise<void>((resolve, reject) => server.once('error', reject).listen(socketPath, resolve));
    const snapshots = new FullSnapshots(machine, server, { clock, socketPath, filePath });
    server.on('connection', (socket) => {
      // Written over, not anew: fetching fresh memory from the kernel would take longer than the snapshot.
      const fd = openSync(filePath, constants.O_WRONLY | constants.O_CREAT, 0o600);
      socket.on('data', (chunk) => {
        try {
          writeSync(fd, chunk);
        } catch (cause) {
          // QEMU then calls its migration failed.
          socket.destroy(cause as Error);
        }
      });
      socket.on('error', () => {});
      socket.on('close', () => {
        closeSync(fd);
        snapshots.#ended.resolve();
      });
    });
    return snapshots;
  }

  /** Milliseconds from before `stop` until the guest runs again. @throws BenchError BENCH_PEER_FAILED */
  async take(): Promise<number> {
    this.#ended = Promise.withResolvers<void>();
    const startMs = this.#clock.nowMs();
    await this.#machine.stop();
    try {
      await this.#migrate();
    } finally {
      await this.#machine.cont();
    }
    const pauseMs = this.#clock.nowMs() - startMs;
    await this.#ended.promise;
    return pauseMs;
  }

  async #migrate(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<string>();
    const forget = [
      this.#machine.qmp.on('MIGRATION', ({ status }) => {
        if (status === 'completed' || status === 'failed') resolve(status);
      }),
      this.#machine.qmp.onClosed(() => resolve('cut off')),
      this.#clock.after(MIGRATION_DEADLINE_MS, () => resolve('late')),
    ];
    this.#machine.qmp
      .execute('migrate', { uri: `unix:${this.#socketPath}` })
      .catch((cause) => resolve(`refused (${messageOf(cause)})`));
    try {
      const status = await promise;
      if (status === 'completed') return;
      throw new BenchError('BENCH_PEER_FAILED', `QEMU's migration to a file is ${status}`, {
        hint: 'Look at how much memory is free, and try again.',
      });
    } finally {
      for (const undo of forget) undo();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    rmSync(this.#filePath, { force: true });
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }
}

interface SnapshotOptions {
  readonly clock: Clock;
  readonly socketPath: string;
  readonly filePath: string;
}
