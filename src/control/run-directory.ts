import { randomUUID } from 'node:crypto';
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { type Heritage, heritageOf, isHeir } from './heritage.ts';
import { KeeperError } from './keeper-error.ts';
import { type KeeperRecord, type RecordedQemu, readRecord, writeRecord } from './keeper-record.ts';
import { clearLeftovers, clearSpared, endAll, removeDirectories, salvageRelic } from './leftovers.ts';
import type { StandingLimits } from './limits-status.ts';
import { isLocked, NameLock } from './name-lock.ts';
import { directoriesIn, emptyDirectory, makeOwnDirectory } from './own-directory.ts';
import {
  bootId,
  identityOf,
  isAlive,
  type ProcessIdentity,
  processesMapping,
  signalNow,
  standsStill,
} from './process-identity.ts';
import { dropOldRelics, dropRelic } from './relic.ts';
import { type RunPaths, runPaths, runRoot, SPEC_FILE } from './run-paths.ts';

const givenSpecSchema = z.object({ text: z.string(), source: z.string() });

/** A specification as a keeper is given it: its text, and where that came from, for messages and relative paths. */
export type GivenSpec = z.infer<typeof givenSpecSchema>;

const VM_NAME = /^[a-z0-9][a-z0-9-]{0,39}$/;

export interface FoundVm {
  readonly name: string;
  /** `lost`: nobody holds the lock, so the keeper was killed, or the VM failed and left its logs. */
  readonly keeper: 'alive' | 'lost';
  /** Undefined when `keeper.json` cannot be read. */
  readonly record: KeeperRecord | undefined;
  /** The QEMU of a lost keeper that stands still and can be taken back. */
  readonly orphan: RecordedQemu | undefined;
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

  /** What a keeper left that was killed, for this one to go on from. */
  readonly heritage: Heritage;
  /** The last epoch that it had committed, as far as it wrote that down; 0 without a heritage. */
  readonly committed: number;
  /** What was last wished for while another keeper kept this VM; undefined when that is not known. */
  readonly shadowWanted: boolean | undefined;
  /** What was last ordered for this VM while another keeper kept it; undefined: nothing, or that is not known. */
  readonly limits: StandingLimits | undefined;
  #generationId: string;

  private constructor(name: string, lock: NameLock, heir: Heir) {
    const { heritage, spec, committed, shadowWanted, limits, token, generationId } = heir;
    const keeper = identityOf(process.pid);
    assert(keeper !== undefined, 'this process exists');
    this.name = name;
    this.#paths = runPaths(name);
    this.#lock = lock;
    this.heritage = heritage;
    this.committed = committed;
    this.shadowWanted = shadowWanted ?? undefined;
    this.limits = limits ?? undefined;
    this.#generationId = generationId ?? randomUUID();
    // The heritage stays on record: this keeper may be killed as well before it has come into it.
    const orphan = orphanOf(heritage) ?? null;
    this.#record = {
      ...{
        bootId: bootId(),
        keeper,
        spec,
        committed,
        token,
        shadowWanted,
        limits,
        cgroups: [],
        failed: false,
      },
      processes: orphan === null ? [] : [orphan.process],
      shadow: heritage.kind === 'shadow' ? heritage.instance : null,
      acting: orphan,
      generationId: this.#generationId,
    };
    writeRecord(this.#paths.record, this.#record);
  }

  /**
   * Makes the directories of a VM and locks them until `remove` or the end of this process. What a killed keeper
   * left behind is cleared away first, but for what a VM of the same specification, `inheritAs`, can go on from.
   * Tokens go on above what was left and above `tokenAbove`. `othersMayPass` lets other users through to what is made
   * accessible to them, such as the sockets of a QEMU
   * that runs as another user.
   * @throws KeeperError KEEPER_NAME_TAKEN, KEEPER_DIRECTORY_REFUSED, KEEPER_LOST
   */
  static async open(
    name: string,
    { clock, othersMayPass = false, inheritAs, tokenAbove = 0, keepsRelic = false }: OpenOptions,
  ): Promise<RunDirectory> {
    assert(VM_NAME.test(name), `a VM's name: ${name}`);
    makeOwnDirectory(runRoot(), { othersMayPass });
    dropOldRelics();
    const lock = await NameLock.take(name, { clock, othersMayPass });
    try {
      const heir = heirOf(name, { spec: inheritAs, tokenAbove });
      const { heritage } = heir;
      const keepMemory = heritage.kind === 'shadow';
      await clearLeftovers(name, { clock, keepMemory, keepsRelic, spared: orphanOf(heritage) });
      return new RunDirectory(name, lock, heir);
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
    if (record === 'absent') return undefined;
    const keeper = isLocked(name) ? 'alive' : 'lost';
    return { name, keeper, record, orphan: keeper === 'lost' ? standingOf(record) : undefined };
  }

  /**
   * Clears away what a keeper that was killed left behind: QEMU processes, memory, cgroups, sockets, logs.
   * @throws KeeperError KEEPER_LOST when one of the processes cannot be ended.
   */
  static async sweep(name: string, { clock }: { clock: Clock }): Promise<Sweep> {
    dropRelic(name);
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

  /**
   * The specification that a killed keeper had been given, where the next one can go on with its VM: only with this one,
   * whatever has been written since. Undefined where there is nothing to go on from.
   */
  static leftSpec(name: string): GivenSpec | undefined {
    const paths = runPaths(name);
    const record = readRecord(paths.record);
    if (record === 'absent' || record === undefined || record.bootId !== bootId() || record.failed)
      return undefined;
    if (record.shadow === null && !(record.acting !== null && isAlive(record.acting.process)))
      return undefined;
    try {
      return givenSpecSchema.parse(JSON.parse(readFileSync(join(paths.directory, SPEC_FILE), 'utf8')));
    } catch {
      // From a release that did not write it, or damaged: then nothing is known but what is declared.
      return undefined;
    }
  }

  /** Leaves for a next keeper what this one was given. */
  keepSpec(given: GivenSpec): void {
    const path = join(this.path, SPEC_FILE);
    writeFileSync(`${path}.new`, JSON.stringify(given), { mode: 0o600 });
    renameSync(`${path}.new`, path);
  }

  /** Tells futures of this VM apart: another one after each time that it was taken back to a snapshot. */
  get generationId(): string {
    return this.#generationId;
  }

  renewGeneration(): string {
    this.adoptGeneration(randomUUID());
    return this.#generationId;
  }

  /** The VM has it on another host, and may go on here. */
  adoptGeneration(generationId: string): void {
    this.#generationId = generationId;
    this.#update({ generationId });
  }

  /** What was kept. */
  get givenSpec(): GivenSpec | undefined {
    try {
      return givenSpecSchema.parse(JSON.parse(readFileSync(join(this.path, SPEC_FILE), 'utf8')));
    } catch {
      return undefined;
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
    limits?: StandingLimits;
    acting?: { readonly instance: number; readonly pid: number } | null;
    committed?: number;
  }): void {
    const identities = facts.processes?.map(identityOf).filter((identity) => identity !== undefined);
    this.#update({
      ...(facts.spec !== undefined && { spec: facts.spec }),
      ...(facts.shadow !== undefined && { shadow: facts.shadow }),
      ...(facts.token !== undefined && { token: facts.token }),
      ...(facts.shadowWanted !== undefined && { shadowWanted: facts.shadowWanted }),
      ...(facts.limits !== undefined && { limits: facts.limits }),
      ...(identities !== undefined && { processes: identities }),
      ...(facts.cgroups !== undefined && { cgroups: [...facts.cgroups] }),
      ...(facts.acting !== undefined && { acting: facts.acting === null ? null : recorded(facts.acting) }),
      ...(facts.committed !== undefined && { committed: facts.committed }),
    });
  }

  /** For a record that is no longer true and cannot be replaced. */
  forgetRecord(): void {
    rmSync(this.#paths.record, { force: true });
  }

  /** Kills what is recorded at once, without letting anything else happen: see {@link signalNow}. */
  killProcesses(): void {
    for (const identity of [...this.#record.processes, ...this.#unrecorded()]) signalNow(identity, 'SIGKILL');
  }

  /**
   * The orphan of the heritage is of no more use: proves it dead and removes all that it had but its memory.
   * @throws KeeperError KEEPER_LOST when it cannot be ended: then nothing may go on from its memory
   */
  async endOrphan(orphan: RecordedQemu, clock: Clock): Promise<void> {
    await clearSpared(this.name, orphan, clock);
    this.#update({ processes: [], acting: null });
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

  /** The next QEMU that acts has this token at least. */
  countTokensFrom(least: number): void {
    if (least - 1 > this.token) this.#update({ token: least - 1 });
  }

  /**
   * What was left is of no use, and its memory is given back: nobody shall look for it again. `keepsRelic`: the VM goes on
   * elsewhere, and may have its shadow here.
   */
  forgetHeritage({ keepsRelic = false } = {}): void {
    this.#update({ shadow: null, acting: null });
    if (keepsRelic) salvageRelic(this.name);
    emptyDirectory(this.memoryPath, []);
  }

  /** Whether a next keeper could go on from what is there. */
  get holdsHeritage(): boolean {
    const { shadow, acting } = this.#record;
    return shadow !== null || (acting !== null && isAlive(acting.process));
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
  /** Memory that was left is put aside for a shadow to begin with. */
  readonly keepsRelic?: boolean;
}

interface Heir
  extends Pick<KeeperRecord, 'spec' | 'committed' | 'shadowWanted' | 'limits' | 'token' | 'generationId'> {
  readonly heritage: Heritage;
}

function heirOf(name: string, { spec, tokenAbove }: { spec: VmSpec | undefined; tokenAbove: number }): Heir {
  const found = readRecord(runPaths(name).record);
  const record = found === 'absent' ? undefined : found;
  const heritage = heritageOf(record, { spec, bootId: bootId(), lives: isAlive });
  const token = Math.max(tokenAbove, record?.token ?? 0);
  if (record === undefined || !isHeir(record, { spec, bootId: bootId() }))
    return {
      heritage,
      spec: null,
      committed: 0,
      shadowWanted: null,
      limits: null,
      token,
      generationId: null,
    };
  const { shadowWanted, limits } = record;
  if (heritage.kind === 'none')
    return { heritage, spec: null, committed: 0, shadowWanted, limits, token, generationId: null };
  const { committed, generationId } = record;
  return { heritage, spec: record.spec, committed, shadowWanted, limits, token, generationId };
}

function orphanOf(heritage: Heritage): RecordedQemu | undefined {
  return heritage.kind === 'orphan' ? { instance: heritage.instance, process: heritage.process } : undefined;
}

/** What a lost keeper left that still stands; a shadow in sync is gone on from instead. */
function standingOf(record: KeeperRecord | undefined): RecordedQemu | undefined {
  const { acting = null, shadow = null } = record ?? {};
  return acting !== null && shadow === null && standsStill(acting.process) ? acting : undefined;
}

/** Null when it has ended meanwhile. */
function recorded({ instance, pid }: { instance: number; pid: number }): RecordedQemu | null {
  const process = identityOf(pid);
  return process === undefined ? null : { instance, process };
}

/** Where the keeper of a VM listens. */
export function controlSocketOf(name: string): string {
  return join(runPaths(name).directory, 'control.sock');
}

/** The events of a VM as JSON lines, also after its keeper is gone. */
export function eventsPathOf(name: string): string {
  return join(runPaths(name).directory, 'events.jsonl');
}
