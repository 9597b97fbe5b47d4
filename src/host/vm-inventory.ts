import type { SQLOutputValue } from 'node:sqlite';
import type { Clock } from '../base/clock.ts';
import type { Termination } from '../config/vm-spec-schema.ts';
import { HostError } from './host-error.ts';
import type { StateDatabase } from './state-database.ts';

/** `deleted`: stopped first and then forgotten; nobody but the reconciler sees it any more. */
export type Desired = 'running' | 'stopped' | 'deleted';

/** How large a VM is, in what tenants are limited in. All 0 for one of the host's own that an earlier version declared. */
export interface VmExtent {
  readonly memoryBytes: number;
  /** 0: an earlier version declared it, and did not count them. */
  readonly vcpus: number;
  /** Sizes of its writable disks, as far as they are said. */
  readonly diskBytes: number;
}

const NO_EXTENT: VmExtent = { memoryBytes: 0, vcpus: 0, diskBytes: 0 };

/** A VM as somebody declared it. */
export interface DeclaredVm {
  readonly name: string;
  /** Whose it is; null: the host's own. */
  readonly tenant: string | null;
  /** What its specification gives it. */
  readonly extent: VmExtent;
  /** YAML, checked when it was declared. */
  readonly spec: string;
  /** Where relative paths in it begin. */
  readonly directory: string;
  /** Grows with every change of the specification; no two specifications of this host have the same. */
  readonly version: number;
  readonly desired: Desired;
  /** How it is stopped when it is to be. */
  readonly graceful: boolean;
  /** Whether its specification has a shadow. */
  readonly shadowInSpec: boolean;
  /** Whether somebody asked for one or against it since; null: as the specification says. */
  readonly shadowWanted: boolean | null;
  /** What becomes of its state when it is stopped; null: what the specification says. */
  readonly termination: Termination | null;
  /** Where it begins at the next start, once; null: where it was suspended, or by booting. */
  readonly startFrom: 'snapshot' | null;
  /** What its keeper was last started with; null before the first time. */
  readonly started: { readonly version: number; readonly bootId: string } | null;
  readonly createdMs: number;
  readonly changedMs: number;
}

/** What is decided and counted by, of all VMs at once: a specification may have a megabyte. */
export type VmOutline = Omit<DeclaredVm, 'spec' | 'directory'>;

const OUTLINE =
  'name, tenant, memoryBytes, vcpus, diskBytes, version, desired, graceful, shadowInSpec, shadowWanted, termination, startFrom, startedVersion, startedBoot, createdMs, changedMs';

interface DesireOptions {
  readonly graceful?: boolean;
  readonly ifVersion?: number | undefined;
  readonly termination?: Termination | null;
  readonly startFrom?: 'snapshot' | null;
}

/** The declared VMs of a host. */
export class VmInventory {
  readonly #database: StateDatabase;
  readonly #clock: Clock;
  /** As the table is; undefined after a change. */
  #outlines: readonly VmOutline[] | undefined;

  constructor(database: StateDatabase, { clock }: { clock: Clock }) {
    this.#database = database;
    this.#clock = clock;
  }

  /** All VMs by name, also those that are being deleted. */
  outlines(): readonly VmOutline[] {
    if (this.#outlines !== undefined) return this.#outlines;
    const rows = this.#database.statement(`SELECT ${OUTLINE} FROM vms ORDER BY name`).all();
    const outlines = rows.map(outlineFrom);
    // What a transaction sees may never come to be.
    if (!this.#database.inTransaction) this.#outlines = outlines;
    return outlines;
  }

  /** One of them. */
  outline(name: string): VmOutline | undefined {
    const row = this.#database.statement(`SELECT ${OUTLINE} FROM vms WHERE name = ?`).get(name);
    return row === undefined ? undefined : outlineFrom(row);
  }

  /** Those that are not being deleted, by name. */
  page({
    after,
    limit,
    tenant,
  }: {
    after: string;
    limit: number;
    tenant?: string | undefined;
  }): DeclaredVm[] {
    if (tenant === undefined) {
      return this.#query(
        "SELECT * FROM vms WHERE name > ? AND desired <> 'deleted' ORDER BY name LIMIT ?",
        ...[after, limit],
      );
    }
    return this.#query(
      "SELECT * FROM vms WHERE tenant = ? AND name > ? AND desired <> 'deleted' ORDER BY name LIMIT ?",
      ...[tenant, after, limit],
    );
  }

  /** What the VMs of a tenant come to, those that are being deleted included; without the one named `except`. */
  usage(tenant: string, { except = '' }: { except?: string } = {}): VmExtent & { readonly vms: number } {
    const row = this.#database
      .statement(
        'SELECT count(*) AS vms, total(memoryBytes) AS memoryBytes, total(vcpus) AS vcpus, total(diskBytes) AS diskBytes FROM vms WHERE tenant = ? AND name <> ?',
      )
      .get(tenant, except);
    return { vms: Number(row?.vms), ...extentFrom(row ?? {}) };
  }

  /** Counts what an earlier version did not count of the VMs of tenants. */
  measure(extentOf: (vm: DeclaredVm) => VmExtent | undefined): void {
    this.#database.transaction(() => {
      for (const vm of this.#query('SELECT * FROM vms WHERE tenant IS NOT NULL AND vcpus = 0')) {
        const extent = extentOf(vm);
        if (extent === undefined) continue;
        const values = [extent.memoryBytes, extent.vcpus, extent.diskBytes, vm.name];
        this.#run('UPDATE vms SET memoryBytes = ?, vcpus = ?, diskBytes = ? WHERE name = ?', ...values);
      }
    });
  }

  /** @throws HostError HOST_VM_UNKNOWN */
  get(name: string): DeclaredVm {
    const found = this.find(name);
    if (found !== undefined && found.desired !== 'deleted') return found;
    throw vmUnknown(name);
  }

  find(name: string): DeclaredVm | undefined {
    return this.#query('SELECT * FROM vms WHERE name = ?', name)[0];
  }

  /** @throws HostError HOST_VM_EXISTS */
  declare(
    vm: Pick<DeclaredVm, 'name' | 'spec' | 'directory' | 'desired'> &
      Partial<Pick<DeclaredVm, 'shadowInSpec' | 'tenant' | 'extent'>>,
  ): DeclaredVm {
    return this.#database.transaction(() => {
      const present = this.find(vm.name);
      if (present !== undefined) throw exists(present);
      const nowMs = this.#clock.wallMs();
      const { memoryBytes, vcpus, diskBytes } = vm.extent ?? NO_EXTENT;
      this.#run(
        'INSERT INTO vms (name, tenant, memoryBytes, vcpus, diskBytes, spec, directory, version, desired, graceful, shadowInSpec, createdMs, changedMs) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)',
        ...[vm.name, vm.tenant ?? null, memoryBytes, vcpus, diskBytes],
        ...[vm.spec, vm.directory, this.#nextVersion()],
        ...[vm.desired, Number(vm.shadowInSpec ?? true), nowMs, nowMs],
      );
      return this.get(vm.name);
    });
  }

  /** @throws HostError HOST_VM_UNKNOWN, HOST_VM_CHANGED */
  change(
    name: string,
    {
      spec,
      directory,
      shadowInSpec = true,
      extent: { memoryBytes, vcpus, diskBytes } = NO_EXTENT,
    }: Pick<DeclaredVm, 'spec' | 'directory'> & Partial<Pick<DeclaredVm, 'shadowInSpec' | 'extent'>>,
    { ifVersion }: { ifVersion: number },
  ): DeclaredVm {
    return this.#database.transaction(() => {
      this.#assertVersion(name, ifVersion);
      this.#run(
        'UPDATE vms SET spec = ?, directory = ?, shadowInSpec = ?, memoryBytes = ?, vcpus = ?, diskBytes = ?, version = ?, changedMs = ? WHERE name = ?',
        ...[spec, directory, Number(shadowInSpec), memoryBytes, vcpus, diskBytes],
        ...[this.#nextVersion(), this.#clock.wallMs(), name],
      );
      return this.get(name);
    });
  }

  /** @throws HostError HOST_VM_UNKNOWN, HOST_VM_CHANGED */
  desire(
    name: string,
    desired: Desired,
    { graceful = true, ifVersion, termination = null, startFrom = null }: DesireOptions = {},
  ): void {
    this.#database.transaction(() => {
      if (ifVersion === undefined) this.get(name);
      else this.#assertVersion(name, ifVersion);
      // What shall run again is not taken for one that ended by itself, however soon it comes after the stop.
      if (desired === 'running' && this.get(name).desired !== 'running') this.noteEnded(name);
      this.#run(
        'UPDATE vms SET desired = ?, graceful = ?, termination = ?, startFrom = ? WHERE name = ?',
        ...[desired, Number(graceful), termination, startFrom, name],
      );
    });
  }

  /** @throws HostError HOST_VM_UNKNOWN */
  wantShadow(name: string, wanted: boolean | null): void {
    this.get(name);
    this.#run(
      'UPDATE vms SET shadowWanted = ? WHERE name = ?',
      wanted === null ? null : Number(wanted),
      name,
    );
  }

  noteStarted(name: string, { version, bootId }: { version: number; bootId: string }): void {
    this.#run(
      'UPDATE vms SET startedVersion = ?, startedBoot = ?, startFrom = NULL WHERE name = ?',
      ...[version, bootId, name],
    );
  }

  noteEnded(name: string): void {
    this.#run('UPDATE vms SET startedVersion = NULL, startedBoot = NULL WHERE name = ?', name);
  }

  forget(name: string): void {
    this.#database.transaction(() => {
      this.#run('DELETE FROM vms WHERE name = ?', name);
      this.#run('DELETE FROM keeperEvents WHERE vm = ?', name);
    });
  }

  #assertVersion(name: string, version: number): void {
    const present = this.get(name).version;
    if (present === version) return;
    throw new HostError('HOST_VM_CHANGED', `${name} is at version ${present}, not ${version}`, {
      hint: 'Somebody changed it meanwhile: read it again and decide anew.',
      facts: { vm: name, version: present },
    });
  }

  /** One for all VMs: who holds the tag of a VM that was deleted cannot mean the one that has its name now. */
  #nextVersion(): number {
    const row = this.#database
      .statement("UPDATE counters SET value = value + 1 WHERE name = 'version' RETURNING value")
      .get();
    return Number(row?.value);
  }

  #run(statement: string, ...values: (string | number | null)[]): void {
    this.#outlines = undefined;
    this.#database.statement(statement).run(...values);
  }

  #query(statement: string, ...values: (string | number)[]): DeclaredVm[] {
    return this.#database
      .statement(statement)
      .all(...values)
      .map((row) => ({ ...outlineFrom(row), spec: String(row.spec), directory: String(row.directory) }));
  }
}

function outlineFrom(row: Record<string, SQLOutputValue>): VmOutline {
  return {
    name: String(row.name),
    tenant: row.tenant === null ? null : String(row.tenant),
    extent: extentFrom(row),
    version: Number(row.version),
    desired: row.desired as Desired,
    graceful: row.graceful === 1,
    shadowInSpec: row.shadowInSpec === 1,
    shadowWanted: row.shadowWanted === null ? null : row.shadowWanted === 1,
    termination: row.termination as VmOutline['termination'],
    startFrom: row.startFrom as VmOutline['startFrom'],
    started:
      row.startedVersion === null || row.startedBoot === null
        ? null
        : { version: Number(row.startedVersion), bootId: String(row.startedBoot) },
    createdMs: Number(row.createdMs),
    changedMs: Number(row.changedMs),
  };
}

function extentFrom(row: Record<string, SQLOutputValue>): VmExtent {
  return {
    memoryBytes: Number(row.memoryBytes ?? 0),
    vcpus: Number(row.vcpus ?? 0),
    diskBytes: Number(row.diskBytes ?? 0),
  };
}

/** Also said of one that is somebody else's: nobody can tell the two apart. */
export function vmUnknown(name: string): HostError {
  return new HostError('HOST_VM_UNKNOWN', `no VM named ${name} is declared on this host`, {
    hint: '`understudy ls` lists them.',
    facts: { vm: name },
  });
}

function exists({ name, desired }: DeclaredVm): HostError {
  const message = desired === 'deleted' ? `${name} is being deleted` : `${name} is declared already`;
  return new HostError('HOST_VM_EXISTS', message, {
    hint:
      desired === 'deleted' ? 'Try again when it is gone.' : 'Change or delete it, or choose another name.',
    facts: { vm: name },
  });
}
