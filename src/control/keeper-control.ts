import type { Trace } from '../base/trace.ts';
import type { VmEvent } from './vm-event.ts';
import type { VmMetrics } from './vm-metrics.ts';
import type { VmStatus } from './vm-status.ts';

/** What a keeper can be asked to do, as the control socket offers it. */
export interface KeeperControl {
  status(): VmStatus;
  metrics(): VmMetrics;
  /** Events after number `seq`. */
  eventsSince(seq: number): readonly VmEvent[];
  onEvent(listener: (event: VmEvent) => void): () => void;
  /** Planned switch to the shadow. Rejects with KEEPER_NOT_PROTECTED; resolves when the shadow acts. */
  promote(options?: { readonly trace?: Trace | undefined }): Promise<void>;
  /** Ends the VM: powers it off if `graceful` (bounded wait), then kills it. Resolves when nothing is left of it. */
  stop(options: { readonly graceful: boolean; readonly trace?: Trace | undefined }): Promise<void>;
  /** Joins the serial console. Throws KEEPER_NO_CONSOLE. */
  openConsole(watcher: ConsoleWatcher): ConsoleSession;
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
