import type { Trace } from '../base/trace.ts';
import type { Termination } from '../config/vm-spec-schema.ts';
import type { FailoverReport } from './failover-report.ts';
import type { LimitsControl } from './limits-status.ts';
import type { SnapshotOrder, SnapshotReport } from './snapshot-report.ts';
import type { TelemetryControl } from './telemetry-status.ts';
import type { VmEvent } from './vm-event.ts';
import type { VmMetrics } from './vm-metrics.ts';
import type { VmStatus } from './vm-status.ts';

/** What a keeper can be asked to do, as the control socket offers it. */
export interface KeeperControl extends TelemetryControl, LimitsControl {
  status(): VmStatus;
  metrics(): VmMetrics;
  /** Events after number `seq`. */
  eventsSince(seq: number): readonly VmEvent[];
  onEvent(listener: (event: VmEvent) => void): () => void;
  /** Planned switch to the shadow. Rejects with KEEPER_NOT_PROTECTED; resolves when the shadow acts. */
  promote(options?: { readonly trace?: Trace | undefined }): Promise<void>;
  /**
   * Has the shadow made on this host of the site, also where there is one elsewhere; null: on any again. Rejects with
   * KEEPER_HOST_UNKNOWN, KEEPER_HOST_REFUSED; resolves when that is wanted.
   */
  place(order: { readonly host: string | null }): Promise<void>;
  /** Wants a shadow from now on. Rejects with the reason where there can be none; resolves when one will be made. */
  protect(): Promise<void>;
  /** Wants none any more. Resolves when there is none and output leaves at once; a takeover under way is not disturbed. */
  unprotect(): Promise<void>;
  /** Tries the shadow out on a copy. Rejects with KEEPER_NOT_PROTECTED and the like; a shadow that fails is an answer. */
  testFailover(): Promise<FailoverReport>;
  /** Writes a snapshot, from the shadow: the VM goes on meanwhile. Rejects with KEEPER_NOT_PROTECTED and the like. */
  snapshot(order: SnapshotOrder): Promise<SnapshotReport>;
  /** Gives the snapshot up that is being written to that path, if one is: what was asked for it is rejected. */
  callOffSnapshot(order: { readonly path: string }): void;
  /**
   * Ends the VM: saves its state if that is wanted, powers it off if `graceful` (bounded wait), then kills it. Resolves
   * when nothing is left of it. Rejects when its state cannot be saved, and the VM goes on.
   */
  stop(order: StopOrder): Promise<void>;
  /** Joins the serial console. Throws KEEPER_NO_CONSOLE. */
  openConsole(watcher: ConsoleWatcher): ConsoleSession;
}

export interface StopOrder {
  readonly graceful: boolean;
  /** What becomes of its state; by default what the specification says, and nothing is kept unless `graceful`. */
  readonly termination?: Termination | undefined;
  /** The request that asked for it. */
  readonly trace?: Trace | undefined;
}

export interface ConsoleWatcher {
  /** Committed output, in order. */
  readonly onOutput: (bytes: Uint8Array) => void;
  /** After `write` said to wait: input is taken again. */
  readonly onRoom?: () => void;
}

export interface ConsoleSession {
  /** Types into the console. False: taken, but wait for `onRoom` before writing more. */
  write(bytes: Uint8Array): boolean;
  close(): void;
}
