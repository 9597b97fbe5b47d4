import { messageOf } from '../base/errors.ts';
import { epochId } from '../epoch/epoch-id.ts';
import type { GuestLink } from '../net/guest-link.ts';
import { withFirmware } from '../qemu/firmware.ts';
import { restoreAll } from '../snapshot/full-restore.ts';
import { LazyRestore } from '../snapshot/lazy-restore.ts';
import { SnapshotError } from '../snapshot/snapshot-error.ts';
import { SnapshotFile } from '../snapshot/snapshot-file.ts';
import { readKeyFile } from '../snapshot/snapshot-key.ts';
import type { Instance } from './instance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import type { MemoryArrival } from './memory-arrival.ts';
import { attachLinks } from './promotion.ts';
import type { ShadowLife } from './shadow-life.ts';
import { stateFacts } from './state-restoring.ts';

/** For the thread that fills memory to say what it has found. */
const MEMORY_TOLD_MS = 1000;

/** What a restore needs of the keeper. */
export interface RestoredVm {
  readonly options: KeeperOptions;
  readonly shadow: ShadowLife;
  readonly memory: MemoryArrival;
  readonly links: () => readonly GuestLink[];
  readonly startPrimary: (role: 'primary' | 'standby', signal: AbortSignal | undefined) => Promise<Instance>;
  /** Numbers of instances go on after this one. */
  readonly countFrom: (instance: number) => void;
  /** Another QEMU is about to act: to be called before it does anything. */
  readonly beginToAct: (instance: Instance) => void;
  readonly makePrimary: (instance: Instance) => void;
  readonly publish: (kind: string, facts?: Readonly<Record<string, unknown>>) => void;
}

/** A snapshot that a VM is to go on from. */
export interface Restoring {
  readonly file: SnapshotFile;
  readonly key: Uint8Array | undefined;
}

/**
 * Undefined when none was asked for. It is of this machine; whether its pages are whole is seen as they are read.
 * @throws SnapshotError
 */
export function snapshotToRestore(options: KeeperOptions): Restoring | undefined {
  const { restoreFrom } = options;
  if (restoreFrom === undefined) return undefined;
  const key = restoreFrom.keyFile === undefined ? undefined : readKeyFile(restoreFrom.keyFile);
  const file = SnapshotFile.open(restoreFrom.path, { key });
  const present = stateFacts(options);
  const fields = Object.keys(present) as (keyof typeof present)[];
  const differing = fields.filter((field) => file.facts[field] !== present[field]);
  if (differing.length === 0) return { file, key };
  file[Symbol.dispose]();
  const message = `the snapshot ${restoreFrom.path} was made of another machine: ${differing.join(', ')}`;
  throw new SnapshotError('SNAPSHOT_FOREIGN', message, {
    hint: 'Give the VM the specification and the QEMU back that it had then.',
    facts: { path: restoreFrom.path, differing },
  });
}

/**
 * A VM goes on from a snapshot: at once where its faults can be answered, else when all of its memory is there. The
 * snapshot stays. @throws SnapshotError, QemuError; the signal's reason
 */
export async function restoreSnapshot(vm: RestoredVm, { file, key }: Restoring): Promise<void> {
  const { clock, failpoints, signal, runDirectory } = vm.options;
  const { epoch, savedAtMs } = file.facts;
  const startMs = clock.nowMs();
  const { heritage } = runDirectory;
  // Who goes back in time gives up what a killed keeper left.
  if (heritage.kind === 'orphan') await runDirectory.endOrphan(heritage, clock);
  if (heritage.kind !== 'none') vm.countFrom(heritage.instance);
  runDirectory.forgetHeritage();
  await using unused = new AsyncDisposableStack();
  unused.use(file);
  // It prepares itself while QEMU starts.
  const restore = unused.use(new LazyRestore(file, { key }));
  const instance = await vm.startPrimary('standby', signal);
  vm.shadow.inherit(epochId(epoch));
  await failpoints.hit('restore.before-memory');
  const isLazy = await beginFill(vm, { restore, file, instance });
  if (isLazy) unused.move();
  vm.beginToAct(instance);
  vm.makePrimary(instance);
  for (const link of vm.links()) {
    link.pauseInput();
    link.holdOutput();
  }
  const deviceState = file.blob('deviceState');
  const firmware = file.blob('firmware');
  await failpoints.hit('restore.before-load');
  await instance.machine
    .loadDeviceState(withFirmware(deviceState, firmware))
    .catch(async (thrown: unknown) => Promise.reject(await causeOf(thrown, vm)));
  await failpoints.hit('restore.after-load');
  attachLinks(vm.links(), instance);
  await instance.machine.cont();
  for (const link of vm.links()) link.resumeInput();
  const tookMs = clock.nowMs() - startMs;
  vm.publish('resumed', { from: 'snapshot-file', path: file.path, savedAtMs, isLazy, tookMs });
  const held = failpoints.hit('restore.filling');
  if (isLazy && held !== undefined) restore.holdUntil(held);
  await failpoints.hit('restore.runs');
}

/** Without the memory that it needs for that a QEMU ends, and cannot say why. */
async function causeOf(thrown: unknown, { memory, options }: RestoredVm): Promise<unknown> {
  const told = memory
    .whole(options.signal)
    .then(() => thrown)
    .catch((cause: unknown) =>
      cause instanceof SnapshotError && cause.facts.isOver !== true ? cause : thrown,
    );
  return await Promise.race([told, options.clock.sleep(MEMORY_TOLD_MS).then(() => thrown)]);
}

/** Returns whether memory comes while the guest runs; else all of it is there. */
async function beginFill(
  vm: RestoredVm,
  { restore, file, instance }: { restore: LazyRestore; file: SnapshotFile; instance: Instance },
): Promise<boolean> {
  const { memory, hello } = instance;
  const { log, signal, failpoints } = vm.options;
  try {
    await restore.begin({ memory, hello, onDemandOnly: true });
  } catch (cause) {
    if (!(cause instanceof SnapshotError && cause.code === 'SNAPSHOT_FILL_REFUSED')) throw cause;
    log.info('the whole memory is restored before the VM runs', { why: messageOf(cause) });
    memory.discardAll();
    await restoreAll(file, { memory, signal });
    return false;
  }
  vm.memory.expect(restore, file);
  instance.hindrances.awaitMemory(restore);
  void Promise.resolve(failpoints.hit('restore.background')).then(() => restore.fillInBackground());
  return true;
}
