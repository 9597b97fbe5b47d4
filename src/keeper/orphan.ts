import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { assert } from '../base/assert.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { RecordedQemu } from '../control/keeper-record.ts';
import { emptyDirectory } from '../control/own-directory.ts';
import { holdProcess } from '../control/process-identity.ts';
import type { RunDirectory } from '../control/run-directory.ts';
import { epochId, nextEpoch } from '../epoch/epoch-id.ts';
import type { PidFd } from '../linux/pidfd.ts';
import { BoundedLog, jsonLossNote } from '../qemu/bounded-log.ts';
import { readFirmware } from '../qemu/firmware.ts';
import { type InstancePaths, instancePaths } from '../qemu/instance-paths.ts';
import { OrphanMachine } from '../qemu/orphan-machine.ts';
import { QemuError } from '../qemu/qemu-error.ts';
import { identityOf } from '../qemu/qemu-process.ts';
import { epochsName } from './inheritance.ts';
import type { InstanceSetting } from './instance.ts';
import { ShadowSession } from './shadow-session.ts';
import type { VmDisks } from './vm-disks.ts';

/** A QEMU that was stopped and swapped out takes its time; what waits is a VM that would else begin anew. */
const CONNECT_DEADLINE_MS = 10_000;
const COMMAND_DEADLINE_MS = 10_000;

export interface OrphanOptions {
  readonly orphan: RecordedQemu;
  readonly runDirectory: RunDirectory;
  /** Its disks, which its guest may be waiting for. */
  readonly disks: VmDisks;
  readonly failpoints: Failpoints;
  readonly signal: AbortSignal | undefined;
}

export type OrphanEnd =
  /** Its state lies in memory as that of a shadow, on record, and is to be gone on from. */
  | { readonly kind: 'left-state' }
  | { readonly kind: 'powered-off' }
  /** Nothing can be gone on from. */
  | { readonly kind: 'spoilt'; readonly cause: QemuError };

/**
 * Ends a QEMU that acted when its keeper was killed, and makes its guest a shadow of itself: device state and firmware
 * are left next to the memory, from where `inheritShadow` goes on. Nothing has to be rolled back, as its state is at
 * least as new as all that the world was sent. When this resolves, the process is proven dead.
 *
 * It can be repeated at every point: until the state is on record, the QEMU is still there and is asked once more;
 * from then on the next keeper finds a shadow.
 * @throws KeeperError KEEPER_LOST; LinuxError, e.g. ENOSPC, and the signal's reason: the QEMU stands still again then
 */
export async function endOrphan(
  setting: InstanceSetting,
  { orphan, runDirectory, disks, failpoints, signal }: OrphanOptions,
): Promise<OrphanEnd> {
  const { spec, clock, memoryDirectory } = setting;
  const { instance } = orphan;
  const paths = instancePaths({ ...setting, vm: spec.name, instance, nicCount: spec.nics.length });
  // A shadow that was not in sync is of no use, and its room may be needed.
  emptyDirectory(
    memoryDirectory,
    [paths.memory, paths.deviceState].map((path) => basename(path)),
  );
  await failpoints.hit('take-back.before');
  let outcome: OrphanEnd;
  const { user } = spec.qemu;
  const owner = user === undefined ? undefined : identityOf(user);
  await using _served = await disks.serve({ instance, socketPath: paths.disks, owner });
  using process = holdProcess(orphan.process);
  try {
    if (process === undefined) throw orphanGone();
    const saved = await saveState(setting, { paths, process, failpoints, signal });
    // From here on nothing in there can change the memory that the saved state belongs to.
    process.signal('SIGSTOP');
    if (saved !== 'powered-off')
      leaveState(setting, { paths, instance, runDirectory, disks, firmware: saved });
    outcome = { kind: saved === 'powered-off' ? saved : 'left-state' };
  } catch (cause) {
    process?.signal('SIGSTOP');
    signal?.throwIfAborted();
    if (!(cause instanceof QemuError)) throw cause;
    outcome = { kind: 'spoilt', cause };
  }
  await failpoints.hit('take-back.before-kill');
  await runDirectory.endOrphan(orphan, clock);
  await disks.fence(instance);
  await failpoints.hit('take-back.after-kill');
  return outcome;
}

interface SaveContext {
  readonly paths: InstancePaths;
  readonly process: PidFd;
  readonly failpoints: Failpoints;
  readonly signal: AbortSignal | undefined;
}

/** Has the QEMU write its device state to its usual file, and resolves with its firmware. */
async function saveState(
  { clock, runDirectory }: InstanceSetting,
  { paths, process, failpoints, signal }: SaveContext,
): Promise<Uint8Array | 'powered-off'> {
  const ended = new AbortController();
  const forget = process.onExit(() => ended.abort());
  using log = new BoundedLog(join(runDirectory, 'take-back.log'), { lossNote: jsonLossNote });
  try {
    // Also to one that was woken already, by a keeper that was killed as well.
    process.signal('SIGCONT');
    using machine = await OrphanMachine.connect(paths.qmp, {
      clock,
      deadlineMs: CONNECT_DEADLINE_MS,
      commandDeadlineMs: COMMAND_DEADLINE_MS,
      log: (line) => log.append(Buffer.from(line)),
      signal: signal === undefined ? ended.signal : AbortSignal.any([ended.signal, signal]),
    });
    const state = await machine.standStill();
    await failpoints.hit('take-back.after-stop');
    if (state === 'powered-off') return state;
    const firmware = await readFirmware(machine, paths.firmware);
    // Last: what is asked of it afterwards could change what was saved.
    await machine.saveDeviceState(paths.deviceState);
    await failpoints.hit('take-back.after-save');
    return firmware;
  } finally {
    forget();
  }
}

interface LeftState {
  readonly paths: InstancePaths;
  readonly instance: number;
  readonly runDirectory: RunDirectory;
  readonly disks: VmDisks;
  readonly firmware: Uint8Array;
}

/** On record at last: before that the next keeper must not take for whole what lies there. */
function leaveState(
  { spec, memoryDirectory }: InstanceSetting,
  { paths, instance, runDirectory, disks, firmware }: LeftState,
): void {
  const epoch = nextEpoch(epochId(Math.max(runDirectory.committed, disks.lastEpoch)));
  const deviceState = readFileSync(paths.deviceState);
  assert(deviceState.length > 0, 'QEMU has written its device state');
  const { memoryBytes } = spec;
  const directory = join(memoryDirectory, epochsName(instance));
  ShadowSession.leave(directory, { epoch, memoryBytes, deviceState, firmware });
  runDirectory.record({ shadow: instance, committed: epoch });
}

function orphanGone(): QemuError {
  return new QemuError('QEMU_NOT_RESUMABLE', 'the QEMU of a lost keeper has ended meanwhile', {
    hint: 'The VM is started cold. Nothing else is to be done.',
  });
}
