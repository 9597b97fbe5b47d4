import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { KeeperError } from './keeper-error.ts';
import { type KeeperRecord, readRecord, writeRecord } from './keeper-record.ts';
import { clearLeftovers, endAll, removeDirectories } from './leftovers.ts';
import { isLocked, NameLock } from './name-lock.ts';
import { directoriesIn, makeOwnDirectory } from './own-directory.ts';
import { bootId, identityOf, killNow, type ProcessIdentity, processesMapping } from './process-identity.ts';
import { type RunPaths, runPaths, runRoot } from './run-paths.ts';

const VM_NAME = /^[a-z0-9][a-z0-9-]{0,39}$/;

export interface FoundVm {
  readonly name: string;
  /** `lost`: nobody holds the lock, so the keeper was killed, or the VM failed and left its logs. */
  readonly keeper: 'alive' | 'lost';
  /** Undefined when `keeper.json` cannot be read. */
  readonly record: KeeperRecord | undefined;
}

export type Sweep =
  /** A keeper holds the lock: nothing was touched. */
  | { readonly kind: 'alive' }
  | { readonly kind: 'absent' }
  /** `endedPids` had outlived their keeper. */
  | { readonly kind: 'swept'; readonly endedPids: readonly number[] };

/**
 * Where the files of one VM live, held by its keeper: `path` for sockets, logs, `keeper.json` and the directories
 * of its QEMU processes, `memoryPath` for guest memory and staged epochs.
 */
export class RunDirectory implements Disposable {
  readonly name: string;
  readonly #paths: RunPaths;
  readonly #lock: NameLock;
  #record: KeeperRecord;

  /**
   * Number of the standby whose memory and staged epochs a keeper left that was killed: what the VM goes on from.
   * Undefined when there is none.
   */
  readonly heritage: number | undefined;
  /** What was last wished for while another keeper kept this VM; undefined when that is not known. */
  readonly shadowWanted: boolean | undefined;

  private constructor(name: string, lock: NameLock, heir: Heir & Pick<KeeperRecord, 'token'>) {
    const keeper = identityOf(process.pid);
    assert(keeper !== undefined, 'this process exists');
    this.name = name;
    this.#paths = runPaths(name);
    this.#lock = lock;
    this.heritage = heir.shadow ?? undefined;
    this.shadowWanted = heir.shadowWanted ?? undefined;
    // The heritage stays on record: this keeper may be killed as well before it has come into it.
    this.#record = { bootId: bootId(), keeper, processes: [], cgroups: [], failed: false, ...heir };
    writeRecord(this.#paths.record, this.#record);
  }

  /**
   * Makes the directories of a VM and locks them until `remove` or the end of this process. What a killed keeper
   * left behind is cleared away first, but for a shadow that a VM of the same specification, `inheritAs`, can go on
   * from. Tokens go on above what was left and above `tokenAbove`. `othersMayPass` lets other users through to what is made accessible to them, such as the sockets of a QEMU
   * that runs as another user.
   * @throws KeeperError KEEPER_NAME_TAKEN, KEEPER_DIRECTORY_REFUSED, KEEPER_LOST
   */
  static async open(
    name: string,
    { clock, othersMayPass = false, inheritAs, tokenAbove = 0 }: OpenOptions,
  ): Promise<RunDirectory> {
    assert(VM_NAME.test(name), `a VM's name: ${name}`);
    makeOwnDirectory(runRoot(), { othersMayPass });
    const lock = await NameLock.take(name, { clock, othersMayPass });
    try {
      const heir = heritageOf(name, inheritAs);
      const token = Math.max(tokenAbove, recordedToken(name));
      await clearLeftovers(name, { clock, keepMemory: heir.shadow !== null });
      return new RunDirectory(name, lock, { ...heir, token });
    } catch (thrown) {
      lock[Symbol.dispose]();
      throw thrown;
    }
  }

  /** All VMs of this user that run or have left something, by name. */
  static list(): FoundVm[] {
    return directoriesIn(runRoot())
      .sort()
      .flatMap((name) => RunDirectory.find(name) ?? []);
  }

  /** One VM as `list` shows it. */
  static find(name: string): FoundVm | undefined {
    if (!VM_NAME.test(name)) return undefined;
    const record = readRecord(runPaths(name).record);
    // A directory without a record is in the making or being removed.
    return record === 'absent' ? undefined : { name, keeper: isLocked(name) ? 'alive' : 'lost', record };
  }

  /**
   * Clears away what a keeper that was killed left behind: QEMU processes, memory, cgroups, sockets, logs.
   * @throws KeeperError KEEPER_LOST when one of the processes cannot be ended.
   */
  static async sweep(name: string, { clock }: { clock: Clock }): Promise<Sweep> {
    if (RunDirectory.find(name) === undefined) return { kind: 'absent' };
    try {
      using _lock = await NameLock.take(name, { clock, othersMayPass: false });
      const endedPids = await clearLeftovers(name, { clock });
      removeDirectories(name);
      return { kind: 'swept', endedPids };
    } catch (thrown) {
      if (thrown instanceof KeeperError && thrown.code === 'KEEPER_NAME_TAKEN') return { kind: 'alive' };
      throw thrown;
    }
  }

  get path(): string {
    return this.#paths.directory;
  }

  get memoryPath(): string {
    return this.#paths.memory;
  }

  get controlSocket(): string {
    return controlSocketOf(this.name);
  }

  get logPath(): string {
    return join(this.path, 'keeper.log');
  }

  get eventsPath(): string {
    return eventsPathOf(this.name);
  }

  /**
   * Writes down what exists now, for whoever has to clean up after a kill. What is given replaces what was
   * recorded before. Call it right after a process or cgroup came into being, and after it is gone.
   */
  record(facts: {
    spec?: VmSpec;
    processes?: readonly number[];
    cgroups?: readonly string[];
    shadow?: number | null;
    token?: number;
    shadowWanted?: boolean;
  }): void {
    const identities = facts.processes?.map(identityOf).filter((identity) => identity !== undefined);
    this.#update({
      ...(facts.spec !== undefined && { spec: facts.spec }),
      ...(facts.shadow !== undefined && { shadow: facts.shadow }),
      ...(facts.token !== undefined && { token: facts.token }),
      ...(facts.shadowWanted !== undefined && { shadowWanted: facts.shadowWanted }),
      ...(identities !== undefined && { processes: identities }),
      ...(facts.cgroups !== undefined && { cgroups: [...facts.cgroups] }),
    });
  }

  /** For a record that is no longer true and cannot be replaced. */
  forgetRecord(): void {
    rmSync(this.#paths.record, { force: true });
  }

  /** Kills what is recorded at once, without letting anything else happen: see {@link killNow}. */
  killProcesses(): void {
    for (const identity of this.#record.processes) killNow(identity);
    for (const identity of this.#unrecorded()) killNow(identity);
  }

  /** Kills what is recorded, for a keeper that can no longer end it in good order, and waits for its end. */
  async endProcesses(clock: Clock): Promise<void> {
    await endAll([...this.#record.processes, ...this.#unrecorded()], clock);
  }

  /** The VM failed: its memory is given back, its logs stay until `understudy stop` or the next start. */
  leaveLogs(): void {
    if (!this.#lock.held) return;
    this.#update({ failed: true });
    rmSync(this.memoryPath, { recursive: true, force: true });
    this.#lock[Symbol.dispose]();
  }

  /** Of the QEMU that acts, or of the last one that did, whichever keeper it had. */
  get token(): number {
    return this.#record.token;
  }

  /** Whether a next keeper could go on from what is there. */
  get holdsHeritage(): boolean {
    return this.#record.shadow !== null;
  }

  /** The VM could not be taken over now, and what it goes on from is still there: for the next keeper to try. */
  leaveHeritage(): void {
    this.#lock[Symbol.dispose]();
  }

  /** Removes both directories and lets go of the name. The VM's processes must have ended. */
  remove(): void {
    if (!this.#lock.held) return;
    removeDirectories(this.name);
    this.#lock[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.remove();
  }

  /** A QEMU that was just started. The keeper, which maps the memory as well, has things to do yet. */
  #unrecorded(): ProcessIdentity[] {
    return processesMapping(this.memoryPath).filter(({ pid }) => pid !== process.pid);
  }

  #update(changes: Partial<KeeperRecord>): void {
    assert(this.#lock.held, 'a run directory is written to while it is held');
    this.#record = { ...this.#record, ...changes };
    writeRecord(this.#paths.record, this.#record);
  }
}

interface OpenOptions {
  readonly clock: Clock;
  readonly othersMayPass?: boolean;
  readonly inheritAs?: VmSpec;
  readonly tokenAbove?: number;
}

function recordedToken(name: string): number {
  const record = readRecord(runPaths(name).record);
  return record === 'absent' || record === undefined ? 0 : record.token;
}

type Heir = Pick<KeeperRecord, 'spec' | 'shadow' | 'shadowWanted'>;

/** Device state is only understood by a machine that was built in the same way, and memory is gone after a reboot. */
function heritageOf(name: string, spec: VmSpec | undefined): Heir {
  const nothing = { spec: null, shadow: null, shadowWanted: null };
  const record = readRecord(runPaths(name).record);
  if (spec === undefined || record === 'absent' || record === undefined) return nothing;
  if (record.bootId !== bootId() || record.failed) return nothing;
  return isDeepStrictEqual(record.spec, JSON.parse(JSON.stringify(spec)))
    ? { spec: record.spec, shadow: record.shadow, shadowWanted: record.shadowWanted }
    : nothing;
}

/** Where the keeper of a VM listens. */
export function controlSocketOf(name: string): string {
  return join(runPaths(name).directory, 'control.sock');
}

/** The events of a VM as JSON lines, also after its keeper is gone. */
export function eventsPathOf(name: string): string {
  return join(runPaths(name).directory, 'events.jsonl');
}
