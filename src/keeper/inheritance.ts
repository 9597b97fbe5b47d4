import { join } from 'node:path';
import type { Failpoints } from '../base/failpoint.ts';
import { emptyDirectory } from '../control/own-directory.ts';
import type { GuestLink } from '../net/guest-link.ts';
import { QemuError } from '../qemu/qemu-error.ts';
import type { StagedEpoch } from '../replication/epoch-slot.ts';
import { ReplicationError } from '../replication/replication-error.ts';
import { Instance, type InstanceSetting } from './instance.ts';
import { promoteShadow } from './promotion.ts';
import { ShadowSession } from './shadow-session.ts';

export interface InheritOptions {
  /** Of the standby whose keeper was killed, and which is dead by now. */
  readonly number: number;
  readonly links: readonly GuestLink[];
  readonly failpoints: Failpoints;
  readonly signal: AbortSignal | undefined;
  /** This QEMU is about to run. */
  readonly onActs: (standby: Instance) => void;
  /** What was left is about to be thrown away. */
  readonly onSpoilt: () => void;
}

export type Inheritance =
  | { readonly kind: 'acts'; readonly session: ShadowSession; readonly staged: StagedEpoch }
  /** What was left cannot be gone on from: it is damaged, or of another QEMU. */
  | { readonly kind: 'spoilt'; readonly cause: ReplicationError | QemuError };

/**
 * Goes on from the shadow that a killed keeper left in memory: a new QEMU takes the place of its standby, epochs that
 * were committed are applied as far as they were not, and it is promoted. Output that was held for later epochs went
 * with the keeper, as if it had been lost on the wire, and so did the epochs that it came from.
 * @throws what keeps a QEMU from starting here now; all that was left is still there then
 */
export async function inheritShadow(
  setting: InstanceSetting,
  { number, links, failpoints, signal, onActs, onSpoilt }: InheritOptions,
): Promise<Inheritance> {
  const standby = await Instance.start(setting, { number, role: 'standby', signal, keptMemory: true });
  const epochs = epochsName(number);
  emptyDirectory(setting.memoryDirectory, [epochs, ...standby.memoryNames]);
  try {
    const epochsDirectory = join(setting.memoryDirectory, epochs);
    const session = ShadowSession.recover(standby, { epochsDirectory, failpoints });
    const staged = await promoteShadow(session, { links, failpoints, onActs: () => onActs(standby) });
    return { kind: 'acts', session, staged };
  } catch (cause) {
    if (!(cause instanceof ReplicationError || cause instanceof QemuError)) throw cause;
    onSpoilt();
    for (const link of links) link.detach();
    await standby[Symbol.asyncDispose]();
    return { kind: 'spoilt', cause };
  }
}

/** Where the epochs of a standby are staged. */
export function epochsName(number: number): string {
  return `epochs-${number}`;
}
