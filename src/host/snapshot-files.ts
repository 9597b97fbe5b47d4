import type {
  PrunedSnapshots,
  PruneSnapshots,
  Snapshot,
  SnapshotList,
  SnapshotService,
  SnapshotVerdict,
  TakeSnapshot,
} from '../api/snapshot-resources.ts';
import type { Clock } from '../base/clock.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { snapshotFilesRoot } from '../control/run-paths.ts';
import type { SnapshotOrder, SnapshotReport } from '../control/snapshot-report.ts';
import { SnapshotError } from '../snapshot/snapshot-error.ts';
import { SnapshotFile } from '../snapshot/snapshot-file.ts';
import { readKeyFile } from '../snapshot/snapshot-key.ts';
import { SnapshotStore, type StoredSnapshot } from '../snapshot/snapshot-store.ts';

interface SnapshotFilesOptions {
  readonly clock: Clock;
  /** The specification of a declared VM. @throws HostError HOST_VM_UNKNOWN; ConfigError */
  readonly specOf: (vm: string) => VmSpec;
  /** Has the keeper of a VM write one. @throws KeeperError */
  readonly order: (vm: string, order: SnapshotOrder) => Promise<SnapshotReport>;
  readonly publish: (vm: string, kind: string, facts: Readonly<Record<string, unknown>>) => void;
}

/** The snapshot files of this host's VMs: those that keepers have written by themselves, and those that were asked for. */
export class SnapshotFiles implements SnapshotService {
  readonly #options: SnapshotFilesOptions;

  constructor(options: SnapshotFilesOptions) {
    this.#options = options;
  }

  list(vm: string): SnapshotList {
    return { snapshots: this.#storeOf(vm).store.list().map(resourceOf) };
  }

  async take(vm: string, { pause }: TakeSnapshot): Promise<Snapshot> {
    const { store, keyFile } = this.#storeOf(vm);
    store.removeUnfinished();
    const path = store.newPath(this.#options.clock.wallMs());
    await this.#options.order(vm, { path, keyFile, pause });
    const taken = store.list().find((each) => each.path === path);
    if (taken !== undefined) return resourceOf(taken);
    throw new SnapshotError('SNAPSHOT_MISSING', `${path} was written, and has been removed since`, {
      hint: 'Take another one.',
      facts: { path },
    });
  }

  async verify(vm: string, id: string): Promise<SnapshotVerdict> {
    const { store, keyFile } = this.#storeOf(vm);
    const { path, problem } = store.find(id);
    const found = problem ?? (await problemIn(path, keyFile));
    return { id, ok: found === undefined, problem: found ?? null };
  }

  remove(vm: string, id: string): void {
    const { store } = this.#storeOf(vm);
    store.remove(id);
    this.#options.publish(vm, 'snapshot-removed', { id });
  }

  async prune(vm: string, { keep, olderThanSeconds }: PruneSnapshots): Promise<PrunedSnapshots> {
    const { store, keyFile } = this.#storeOf(vm);
    const gone = await store.prune({
      ...{ keep, mayTakeLast: false, wallMs: this.#options.clock.wallMs() },
      olderThanMs: olderThanSeconds === undefined ? undefined : olderThanSeconds * 1000,
      // Of an encrypted one nothing but its beginning and end can be looked at without the key.
      isGood: async (path) =>
        (keyFile === undefined && SnapshotFile.outline(path).isEncrypted) ||
        (await problemIn(path, keyFile)) === undefined,
    });
    const removed = gone.map(({ id }) => id);
    if (removed.length > 0) this.#options.publish(vm, 'snapshots-pruned', { removed });
    return { removed };
  }

  #storeOf(vm: string): { readonly store: SnapshotStore; readonly keyFile: string | undefined } {
    const { directory = snapshotFilesRoot(), keyFile } = this.#options.specOf(vm).snapshots ?? {};
    return { store: new SnapshotStore(directory, vm), keyFile };
  }
}

async function problemIn(
  path: string,
  keyFile: string | undefined,
): Promise<{ readonly code: string; readonly message: string } | undefined> {
  try {
    const key = keyFile === undefined ? undefined : readKeyFile(keyFile);
    using file = SnapshotFile.open(path, { key });
    await file.verify();
    return undefined;
  } catch (thrown) {
    if (thrown instanceof SnapshotError) return { code: thrown.code, message: thrown.message };
    throw thrown;
  }
}

function resourceOf({ id, outline, problem }: StoredSnapshot): Snapshot {
  if (outline === undefined) {
    const unknown = { savedAt: null, epoch: null, sizeBytes: null, reason: null, isEncrypted: null };
    return { id, ...unknown, problem: problem ?? null };
  }
  const { facts, sizeBytes, isEncrypted } = outline;
  const { savedAtMs, epoch, reason = 'manual' } = facts;
  return {
    ...{ id, savedAt: new Date(savedAtMs).toISOString(), epoch, sizeBytes, reason, isEncrypted },
    problem: null,
  };
}
