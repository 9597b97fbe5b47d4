import { FileDevice } from '../block/file-device.ts';
import type { NbdClientDevice } from '../block/nbd-client-device.ts';
import { QemuError } from '../qemu/qemu-error.ts';
import { diskInUse } from '../qemu/qemu-process.ts';
import { openQcowLayer, type QcowLayerOptions } from './qcow-layer.ts';

/** What a killed keeper had open is closed by the kernel, or by a process that writes things down before it ends. */
const LOCK_TRIES = 100;
const LOCK_RETRY_MS = 100;

/**
 * What is in the image of a disk, which nobody else can use until it is closed.
 * @throws QemuError QEMU_DISK_IN_USE; BlockError, errors of Node
 */
export async function openLower(options: QcowLayerOptions): Promise<FileDevice | NbdClientDevice> {
  const { path, format } = options.disk.disk;
  for (let tries = 1; ; tries += 1) {
    try {
      return await (format === 'raw' ? openRaw(path) : openQcowLayer(options));
    } catch (thrown) {
      const mayPass = thrown instanceof QemuError && thrown.code === 'QEMU_DISK_IN_USE';
      if (!mayPass || tries === LOCK_TRIES) throw thrown;
      await options.clock.sleep(LOCK_RETRY_MS);
    }
  }
}

async function openRaw(path: string): Promise<FileDevice> {
  const device = await FileDevice.open(path);
  if (device.tryLock()) return device;
  await device.close();
  throw diskInUse(path);
}
