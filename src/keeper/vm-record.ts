import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { RunDirectory } from '../control/run-directory.ts';
import type { Instance } from './instance.ts';
import type { ShadowSession } from './shadow-session.ts';

interface RecordedVm {
  readonly log: Logger;
  readonly spec: VmSpec;
  readonly primary: Instance | undefined;
  readonly shadow: ShadowSession | undefined;
  /** All output waits for the shadow. Else the shadow is behind what the world has seen, and must not be gone on from. */
  readonly isProtected: boolean;
  readonly token: number;
  readonly shadowWanted: boolean;
}

/** Writes down what whoever comes after a killed keeper has to know. Never fails: a VM does not depend on it. */
export function recordVm(
  directory: RunDirectory,
  { log, spec, primary, shadow, isProtected, token, shadowWanted }: RecordedVm,
): void {
  const living = [primary, shadow?.standby].filter((instance) => instance !== undefined);
  try {
    directory.record({
      spec,
      processes: living.map((instance) => instance.pid),
      cgroups: living.flatMap((instance) => instance.cgroup?.directory ?? []),
      shadow: isProtected ? (shadow?.standby.number ?? null) : null,
      token,
      shadowWanted,
    });
  } catch (cause) {
    // No record is better than one that is no longer true.
    directory.forgetRecord();
    log.warn('the record of the VM cannot be written', { error: messageOf(cause) });
  }
}
