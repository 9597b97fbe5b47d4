import { KeeperError } from '../control/keeper-error.ts';
import type { Machine } from '../qemu/machine.ts';
import type { Instance } from './instance.ts';
import type { LimitActuator } from './limit-actuator.ts';

type Qmp = Machine['qmp'];

/** All disks of a VM are in one group of QEMU's, so that the limit is of their sum. */
const GROUP = 'understudy';
const FREE = { bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 };

/** What `query-block` says of one device, as far as it matters here. */
interface BlockInfo {
  /** QOM path of the device: `/machine/peripheral/disk0/virtio-backend`. */
  readonly qdev?: string;
  readonly inserted?: { readonly bps: number; readonly group?: string };
}

/**
 * What is read from and written to all disks of a VM, whoever has their images. QEMU holds requests back, and not who serves
 * the disk: before it stands still for an epoch it lets all through that wait, and counts them, so that no epoch waits for a
 * slow disk. A flush moves no bytes and never waits.
 */
export class DiskLimit implements LimitActuator {
  async read({ machine }: Instance): Promise<number | null> {
    const limits = (await disksOf(machine.qmp)).map(({ inserted }) => inserted?.bps ?? 0);
    // Of those of a group each says the same. One that says another thing is not what was set.
    const [first = 0] = limits;
    const limit = limits.every((each) => each === first) ? first : Math.max(...limits);
    return limit === 0 ? null : limit;
  }

  async set({ machine }: Instance, limit: number | null): Promise<number | null> {
    for (const { qdev: id } of await disksOf(machine.qmp)) {
      const group = limit === null ? {} : { group: GROUP };
      await machine.qmp.execute('block_set_io_throttle', { id, ...FREE, bps: limit ?? 0, ...group });
    }
    return limit;
  }
}

/** @throws KeeperError KEEPER_LIMIT_IMPOSSIBLE */
async function disksOf(qmp: Qmp): Promise<(BlockInfo & { readonly qdev: string })[]> {
  const all = await qmp.execute<readonly BlockInfo[]>('query-block');
  const disks = all.flatMap((device) => {
    const { qdev, inserted } = device;
    return qdev === undefined || inserted === undefined ? [] : [{ ...device, qdev }];
  });
  if (disks.length > 0) return disks;
  throw new KeeperError('KEEPER_LIMIT_IMPOSSIBLE', 'it has no disk', {
    hint: 'Give it one in disks of its specification.',
  });
}
