import { SnapshotError } from '../snapshot/snapshot-error.ts';
import type {
  PrunedSnapshots,
  PruneSnapshots,
  Snapshot,
  SnapshotList,
  SnapshotService,
  SnapshotVerdict,
} from './snapshot-resources.ts';

/** For tests of the API: snapshots that are nowhere. */
export class MemorySnapshots implements SnapshotService {
  readonly #ensureVm: (vm: string) => void;
  readonly #nowMs: () => number;
  #all: readonly (Snapshot & { readonly vm: string })[] = [];

  constructor({ ensureVm, nowMs }: { ensureVm: (vm: string) => void; nowMs: () => number }) {
    this.#ensureVm = ensureVm;
    this.#nowMs = nowMs;
  }

  list(vm: string): SnapshotList {
    this.#ensureVm(vm);
    return { snapshots: this.#of(vm).map(({ vm: _, ...snapshot }) => snapshot) };
  }

  async take(vm: string): Promise<Snapshot> {
    this.#ensureVm(vm);
    const savedAt = new Date(this.#nowMs() + this.#all.length).toISOString();
    return this.put(vm, savedAt.replaceAll(/[-:.]/g, ''));
  }

  /** One that is there. */
  put(vm: string, id: string): Snapshot {
    const savedAt = new Date(this.#nowMs()).toISOString();
    const facts = { epoch: 1, sizeBytes: 4096, reason: 'manual' as const, isEncrypted: false };
    const snapshot = { id, savedAt, ...facts, problem: null };
    this.#all = [{ vm, ...snapshot }, ...this.#all];
    return snapshot;
  }

  async verify(vm: string, id: string): Promise<SnapshotVerdict> {
    this.#find(vm, id);
    return { id, ok: true, problem: null };
  }

  remove(vm: string, id: string): void {
    const found = this.#find(vm, id);
    this.#all = this.#all.filter((each) => each !== found);
  }

  async prune(vm: string, { keep = 1 }: PruneSnapshots): Promise<PrunedSnapshots> {
    this.#ensureVm(vm);
    const gone = new Set(this.#of(vm).slice(keep));
    this.#all = this.#all.filter((each) => !gone.has(each));
    return { removed: [...gone].map(({ id }) => id) };
  }

  #of(vm: string) {
    return this.#all.filter((each) => each.vm === vm);
  }

  #find(vm: string, id: string) {
    this.#ensureVm(vm);
    const found = this.#of(vm).find((each) => each.id === id);
    if (found !== undefined) return found;
    throw new SnapshotError('SNAPSHOT_MISSING', `there is no snapshot ${id}`);
  }
}
