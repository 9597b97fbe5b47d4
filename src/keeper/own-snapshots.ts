import { messageOf } from '../base/errors.ts';
import type { SnapshotsSpec } from '../config/snapshots-schema.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { snapshotFilesRoot } from '../control/run-paths.ts';
import type { SnapshotOrder, SnapshotReason, SnapshotReport } from '../control/snapshot-report.ts';
import type { VmMetrics } from '../control/vm-metrics.ts';
import type { Phase } from '../shadow/protection.ts';
import { SnapshotFile } from '../snapshot/snapshot-file.ts';
import { readKeyFile } from '../snapshot/snapshot-key.ts';
import { SnapshotStore } from '../snapshot/snapshot-store.ts';
import { dueAtMs, phaseOf } from '../snapshot/snapshot-timing.ts';
import type { KeeperOptions } from './keeper-options.ts';

/** The host's clock may be set: it is looked at this often. */
const LOOK_MS = 60_000;
/** After one that was missed many VMs may be late together: each begins within this time. */
const SPREAD_MS_MAX = 60_000;
const RETRY_MS_MIN = 1000;
const RETRY_MS_MAX = 600_000;

export interface SnapshottedVm {
  readonly options: Pick<KeeperOptions, 'spec' | 'clock' | 'log' | 'failpoints'>;
  readonly phase: () => Phase;
  readonly snapshot: (order: SnapshotOrder) => Promise<SnapshotReport>;
  readonly publish: (kind: string, facts: Readonly<Record<string, unknown>>) => void;
}

type Own = Exclude<SnapshotReason, 'manual'>;

/**
 * The snapshots that a VM's keeper takes by itself, by schedule and when the VM is stopped, and what becomes of the old ones.
 * Whatever goes wrong with them is told and does nothing to the VM.
 */
export class OwnSnapshots implements AsyncDisposable {
  readonly #vm: SnapshottedVm;
  readonly #wish: SnapshotsSpec | undefined;
  readonly #store: SnapshotStore;
  readonly #loop = new AbortController();
  readonly #end = new AbortController();
  readonly #sinceMs: number;
  #keeping: Promise<void> = Promise.resolve();
  #atShutdown: Promise<void> | undefined;
  #takenAtMs: number | undefined;
  /** The moment that was said to be skipped, so that it is said once. */
  #skippedMs: number | undefined;
  #taken = 0;
  #failed = 0;
  #skipped = 0;

  constructor(vm: SnapshottedVm) {
    this.#vm = vm;
    const { spec } = vm.options;
    this.#sinceMs = vm.options.clock.wallMs();
    this.#wish = spec.snapshots;
    this.#store = new SnapshotStore(this.#wish?.directory ?? snapshotFilesRoot(), spec.name);
  }

  /** The VM runs. What was taken before, also by other keepers, is in the store. */
  start(): void {
    const everyMs = this.#wish?.everyMs;
    if (everyMs !== undefined) this.#keeping = this.#keepTime(everyMs);
  }

  /** Undefined for a VM that takes none. */
  measure(): VmMetrics['snapshots'] {
    if (this.#wish === undefined) return undefined;
    const ageMs =
      this.#takenAtMs === undefined ? null : Math.max(0, this.#vm.options.clock.wallMs() - this.#takenAtMs);
    return { taken: this.#taken, failed: this.#failed, skipped: this.#skipped, ageMs };
  }

  /** The VM is about to be stopped in good order, and still runs. Resolves when that may go on, whatever came of it. */
  async beforeShutdown(): Promise<void> {
    if (this.#wish?.onShutdown !== true) return;
    this.#loop.abort(new Error('the VM is stopped'));
    // One by schedule that is being written comes to its end first.
    this.#atShutdown ??= this.#keeping.then(() => this.#take('shutdown')).then(() => {});
    await this.#atShutdown;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const abort of [this.#loop, this.#end]) abort.abort(new Error('the VM ends'));
    await this.#keeping;
    await this.#atShutdown;
  }

  /** Never rejects. */
  async #keepTime(everyMs: number): Promise<void> {
    const { clock, spec } = this.#vm.options;
    const { signal } = this.#loop;
    // A keeper that begins late is likely not the only one.
    const spreadMs = phaseOf(spec.name, Math.min(SPREAD_MS_MAX, everyMs / 10));
    let notBeforeMs = clock.nowMs() + spreadMs;
    while (!signal.aborted) {
      const dueMs = this.#dueMs(everyMs);
      const waitMs = Math.max(dueMs - clock.wallMs(), notBeforeMs - clock.nowMs());
      if (waitMs > 0) {
        await clock.sleep(Math.min(waitMs, LOOK_MS), signal).catch(() => {});
        continue;
      }
      const outcome = await this.#takeScheduled(dueMs);
      const retryMs = Math.min(Math.max(everyMs / 10, RETRY_MS_MIN), RETRY_MS_MAX);
      notBeforeMs = clock.nowMs() + (outcome === 'taken' ? 0 : retryMs);
    }
  }

  #dueMs(everyMs: number): number {
    const { clock, spec, log } = this.#vm.options;
    let lastMs = this.#takenAtMs;
    try {
      const last = this.#store.list().find(({ outline }) => outline?.facts.reason === 'schedule');
      lastMs = last?.outline?.facts.savedAtMs ?? lastMs;
    } catch (cause) {
      log.warn('it cannot be read which snapshots there are', { error: messageOf(cause) });
    }
    this.#takenAtMs = lastMs;
    return dueAtMs({ everyMs, vm: spec.name, lastMs: lastMs ?? this.#sinceMs, wallMs: clock.wallMs() });
  }

  async #takeScheduled(dueMs: number): Promise<'taken' | 'failed' | 'skipped'> {
    const phase = this.#vm.phase();
    if (phase === 'protected') return await this.#take('schedule', dueMs);
    return this.#skip(dueMs, { code: 'KEEPER_NOT_PROTECTED', why: `it has no shadow in sync (${phase})` });
  }

  #skip(dueMs: number, facts: { readonly code: string; readonly why: string }): 'skipped' {
    if (this.#skippedMs === dueMs) return 'skipped';
    this.#skippedMs = dueMs;
    this.#skipped += 1;
    this.#vm.publish('snapshot-skipped', {
      reason: 'schedule',
      dueAt: new Date(dueMs).toISOString(),
      ...facts,
    });
    return 'skipped';
  }

  async #take(reason: Own, dueMs = 0): Promise<'taken' | 'failed' | 'skipped'> {
    const { clock, failpoints } = this.#vm.options;
    const startMs = clock.wallMs();
    const path = this.#store.newPath(startMs);
    try {
      await failpoints.hit('own-snapshot.before');
      this.#store.removeUnfinished();
      // At its end nobody minds that it stands still.
      await this.#vm.snapshot({ path, keyFile: this.#wish?.keyFile, pause: reason === 'shutdown', reason });
    } catch (cause) {
      // Somebody else uses the shadow, or a takeover does.
      if (reason === 'schedule' && isAmong(PASSING, cause))
        return this.#skip(dueMs, { code: cause.code, why: cause.message });
      this.#failed += 1;
      if (isAmong(UNTOLD, cause)) this.#vm.publish('snapshot-failed', { path, reason, error: cause.message });
      return 'failed';
    }
    return await this.#keepGood(path);
  }

  /** Old ones go when the new one is known to be whole. */
  async #keepGood(path: string): Promise<'taken' | 'failed'> {
    const { failpoints } = this.#vm.options;
    const { keyFile, keep = 1, daily = 0 } = this.#wish ?? {};
    const { signal } = this.#end;
    try {
      using file = SnapshotFile.open(path, { key: keyFile === undefined ? undefined : readKeyFile(keyFile) });
      await failpoints.hit('own-snapshot.written');
      await file.verify({ signal });
      this.#taken += 1;
      this.#takenAtMs = file.facts.savedAtMs;
      await failpoints.hit('own-snapshot.before-expiry');
      const removed = this.#store.expire({ keep, daily });
      if (removed.length > 0) this.#vm.publish('snapshots-expired', { removed: removed.map(({ id }) => id) });
      return 'taken';
    } catch (cause) {
      // It is whole as far as its writer knows; whoever begins next looks at the store again.
      if (signal.aborted) return 'taken';
      this.#failed += 1;
      this.#vm.publish('snapshot-failed', { path, error: messageOf(cause) });
      return 'failed';
    }
  }
}

const PASSING: ReadonlySet<string> = new Set([
  'KEEPER_NOT_PROTECTED',
  'KEEPER_SNAPSHOT_UNDER_WAY',
  'KEEPER_TEST_UNDER_WAY',
  'KEEPER_SAVE_FAILED',
]);
/** It was not begun: whoever writes one tells what came of it. */
const UNTOLD: ReadonlySet<string> = new Set([
  'KEEPER_NOT_PROTECTED',
  'KEEPER_SNAPSHOT_UNDER_WAY',
  'KEEPER_TEST_UNDER_WAY',
  'KEEPER_CANNOT_SAVE',
  'KEEPER_STOPPING',
]);

function isAmong(codes: ReadonlySet<string>, cause: unknown): cause is KeeperError {
  return cause instanceof KeeperError && codes.has(cause.code);
}
