import type { Clock } from '../base/clock.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { Logger } from '../base/logger.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { RunDirectory } from '../control/run-directory.ts';
import type { UnsafeLink } from '../net/guest-link.ts';
import type { Accelerator } from '../qemu/launch-arguments.ts';
import type { QemuBinary } from '../qemu/qemu-binary.ts';

export interface KeeperOptions {
  readonly spec: VmSpec;
  readonly accel: Accelerator;
  readonly qemu: QemuBinary;
  readonly preloadLibrary: string;
  readonly runDirectory: RunDirectory;
  readonly log: Logger;
  readonly clock: Clock;
  readonly failpoints: Failpoints;
  /** Whether a shadow is wanted, whatever the specification says; by default what that says. */
  readonly shadowWanted?: boolean | undefined;
  /** Directories for the state of this VM; without them none can be saved. */
  readonly savedIn?: { readonly suspended: string; readonly snapshot: string } | undefined;
  /** Where it begins; by default where it was suspended, or by booting. */
  readonly startFrom?: 'snapshot' | undefined;
  /** A snapshot file that it goes on from. */
  readonly restoreFrom?: { readonly path: string; readonly keyFile?: string | undefined } | undefined;
  /** Gives the start up; of no effect once the VM runs. */
  readonly signal?: AbortSignal;
  /** Takes protections away so that tests can show that they would notice. Not reachable from a specification. */
  readonly unsafe?: UnsafeKeeper;
}

export interface UnsafeKeeper {
  readonly link?: UnsafeLink;
  /** The guest's clock is left alone. */
  readonly leaveClock?: boolean;
  /** A QEMU that stood still when its keeper was killed is not taken back: the VM begins anew. */
  readonly forgetOrphan?: boolean;
}
