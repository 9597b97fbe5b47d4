import { existsSync, lchownSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { BlockError } from '../block/block-error.ts';
import { NbdClientDevice } from '../block/nbd-client-device.ts';
import type { SpecDisk } from '../config/spec-disks.ts';
import { fileBackedNode } from '../qemu/launch-arguments.ts';
import type { QemuError } from '../qemu/qemu-error.ts';
import { identityOf, QemuProcess } from '../qemu/qemu-process.ts';

const BINARY = 'qemu-storage-daemon';
const MISSING = new RegExp(`${BINARY}: not found`);
const START_DEADLINE_MS = 10_000;
/** For what is to be written down. */
const END_DEADLINE_MS = 60_000;
const POLL_MS = 10;

export interface QcowLayerOptions {
  readonly disk: SpecDisk;
  /** Where a directory for it is made. */
  readonly runDirectory: string;
  /** Who it runs as: it reads what a guest, or a stranger, made. */
  readonly user: string | undefined;
  readonly clock: Clock;
}

/**
 * An image in a format that is QEMU's: a process of QEMU, without a VM, serves what is in it, until the device is closed. When
 * this process ends, however that is, it is told to end as well, and writes down what it still holds.
 * @throws QemuError QEMU_DISK_IN_USE, QEMU_START_FAILED; BlockError BLOCK_TOOL_MISSING
 */
export async function openQcowLayer({
  disk,
  user,
  clock,
  ...options
}: QcowLayerOptions): Promise<NbdClientDevice> {
  await using opening = new AsyncDisposableStack();
  const directory = join(options.runDirectory, `lower-${disk.id}`);
  opening.defer(() => rmSync(directory, { recursive: true, force: true }));
  makeDirectory(directory, user);
  const socket = join(directory, 'nbd');
  const isReady = join(directory, 'pid');
  const layer = opening.use(
    await QemuProcess.launch({
      binary: 'setpriv',
      args: ['--pdeathsig', 'TERM', ...unlessOrphaned([BINARY, ...daemonWords(disk, { socket, isReady })])],
      ...{ user, clock, logPath: join(options.runDirectory, `lower-${disk.id}.log`) },
    }),
  );
  opening.defer(async () => {
    layer.signal('SIGTERM');
    await layer.awaitExit(END_DEADLINE_MS);
  });
  for (let waitedMs = 0; !existsSync(isReady); waitedMs += POLL_MS) {
    if (layer.hasExited || waitedMs > START_DEADLINE_MS) throw await startFailure(layer);
    await clock.sleep(POLL_MS);
  }
  const owned = new AsyncDisposableStack();
  const afterClose = () => owned.disposeAsync();
  const device = await NbdClientDevice.connect(socket, { exportName: disk.id, afterClose });
  owned.use(opening.move());
  return device;
}

/** The kernel signals the end of a parent to those who have asked for it by then. */
function unlessOrphaned(words: readonly string[]): string[] {
  return ['sh', '-c', 'test "$PPID" = "$0" && exec "$@"', String(process.pid), ...words];
}

function daemonWords(disk: SpecDisk, { socket, isReady }: { socket: string; isReady: string }): string[] {
  return [
    ...['--blockdev', JSON.stringify({ ...fileBackedNode(disk), discard: 'unmap' })],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket.replaceAll(',', ',,')},max-connections=1`],
    ...['--export', `type=nbd,id=${disk.id},node-name=${disk.id},name=${disk.id},writable=on`],
    // Written when all of this has been done.
    ...['--pidfile', isReady],
  ];
}

async function startFailure(process: QemuProcess): Promise<QemuError | BlockError> {
  const cause = await process.startFailure(undefined);
  if (!MISSING.test(process.outputTail)) return cause;
  return new BlockError('BLOCK_TOOL_MISSING', `${BINARY}, which opens qcow2 images, is not installed`, {
    hint: 'Install it: apt-get install --no-install-recommends qemu-system-common; or use format: raw.',
    cause,
  });
}

/** Its own, below ours. */
function makeDirectory(directory: string, user: string | undefined): void {
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { mode: 0o700 });
  if (user === undefined) return;
  const { uid, gid } = identityOf(user);
  lchownSync(directory, uid, gid);
}
