import { readdirSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Vm } from '../api/resources.ts';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import { savedStatePaths } from '../control/run-paths.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { discardSavedState, SavedState } from '../replication/saved-state.ts';

export type SavedKind = 'suspended' | 'snapshot';
type Saved = NonNullable<Vm['saved'][SavedKind]>;

/** The states of VMs that keepers have saved for this host. */
export class SavedStates {
  readonly #stateDirectory: string;

  constructor(stateDirectory: string) {
    this.#stateDirectory = stateDirectory;
  }

  /** What is saved of each VM, looked up when it is asked for; two directories are read for any number of VMs. */
  look(): (vm: string) => Vm['saved'] {
    const { suspended, snapshot } = savedStatePaths(this.#stateDirectory, 'any');
    const names = { suspended: namesIn(dirname(suspended)), snapshot: namesIn(dirname(snapshot)) };
    const find = (vm: string, kind: SavedKind) => (names[kind].has(vm) ? this.#describe(vm, kind) : null);
    return (vm) => ({ suspended: find(vm, 'suspended'), snapshot: find(vm, 'snapshot') });
  }

  /** Removes a state in whatever condition it is. False when there was none. */
  discard(vm: string, kind: SavedKind): boolean {
    const isThere = this.look()(vm)[kind] !== null;
    discardSavedState(savedStatePaths(this.#stateDirectory, vm)[kind]);
    return isThere;
  }

  #describe(vm: string, kind: SavedKind): Saved | null {
    try {
      const state = SavedState.find(savedStatePaths(this.#stateDirectory, vm)[kind]);
      if (state === undefined) return null;
      const { savedAtMs, epoch } = state.facts;
      const savedAt = new Date(savedAtMs).toISOString();
      return { savedAt, sizeBytes: state.sizeBytes, epoch, problem: null };
    } catch (thrown) {
      const code = thrown instanceof UnderstudyError ? thrown.code : 'HOST_INTERNAL';
      return { savedAt: null, sizeBytes: null, epoch: null, problem: { code, message: messageOf(thrown) } };
    }
  }
}

function namesIn(directory: string): ReadonlySet<string> {
  try {
    return new Set(readdirSync(directory));
  } catch (thrown) {
    if (errnoNameOf(thrown) === 'ENOENT') return new Set();
    throw thrown;
  }
}
