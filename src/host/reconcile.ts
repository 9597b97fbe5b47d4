import type { Termination } from '../config/vm-spec-schema.ts';
import type { StopReason } from '../shadow/protection.ts';
import type { VmOutline } from './vm-inventory.ts';
import type { KnownPlace } from './whereabouts.ts';

/** What there is of a VM on this machine. */
export type KeeperSight =
  | 'none'
  | 'alive'
  /** Its keeper was killed; QEMU processes may live on without one. */
  | 'lost'
  /** It ended by a fault and left its logs. */
  | 'failed';

export interface VmSight {
  readonly vm: VmOutline;
  readonly keeper: KeeperSight;
  /** How its last keeper said in this boot that it ended; undefined when it said nothing. */
  readonly end: StopReason | undefined;
  /** What its keeper says that is wanted; undefined as long as it says nothing. */
  readonly shadowWanted?: boolean | undefined;
  /** Its keeper was killed and left a shadow in sync, and no newer state of it is on disk. */
  readonly couldGoOn?: boolean | undefined;
  /** The keeper here keeps its shadow, and the VM acts on another host. */
  readonly isShadow?: boolean | undefined;
  /** Of a VM of several hosts: where it acts, as it is on record. */
  readonly known?: KnownPlace | undefined;
  /** The host is at work on it: the next decision waits for the outcome. */
  readonly busy: boolean;
  /** Attempts that failed in a row, and when the last one did. */
  readonly failures: number;
  readonly failedAtMs: number;
}

/** All that a decision is made from, taken at one moment. */
export interface HostSnapshot {
  readonly nowMs: number;
  readonly bootId: string;
  readonly vms: readonly VmSight[];
}

export type HostAction =
  | { readonly kind: 'start'; readonly name: string }
  | {
      readonly kind: 'stop';
      readonly name: string;
      readonly graceful: boolean;
      readonly termination: Termination | null;
    }
  | { readonly kind: 'protect'; readonly name: string }
  | { readonly kind: 'unprotect'; readonly name: string }
  /** Clear away what a keeper left that was killed or failed. */
  | { readonly kind: 'sweep'; readonly name: string }
  /** It ended by itself and in good order (its guest powered off, somebody stopped it), and said so: so be it. */
  | { readonly kind: 'accept-end'; readonly name: string }
  /** It may act on another host: ask where it does before anything is done here. */
  | { readonly kind: 'locate'; readonly name: string }
  | { readonly kind: 'note-end'; readonly name: string }
  | { readonly kind: 'forget'; readonly name: string };

export interface Plan {
  readonly actions: readonly HostAction[];
  /** When to look again though nothing has happened. */
  readonly againAtMs: number | undefined;
}

const RETRY_MS = 1000;
const RETRY_MAX_MS = 300_000;

/** What has to be done so that every VM becomes what it is desired to be. At most one action for each. */
export function reconcile({ nowMs, bootId, vms }: HostSnapshot): Plan {
  const actions: HostAction[] = [];
  let againAtMs: number | undefined;
  for (const sight of vms) {
    if (sight.busy) continue;
    const action = sight.vm.desired === 'running' ? towardsRunning(sight, bootId) : towardsStopped(sight);
    if (action === undefined) continue;
    const dueAtMs = dueAtMsOf(sight);
    if (dueAtMs <= nowMs) actions.push(action);
    else againAtMs = Math.min(againAtMs ?? dueAtMs, dueAtMs);
  }
  return { actions, againAtMs };
}

function towardsRunning(sight: VmSight, bootId: string): HostAction | undefined {
  const { vm, keeper, end, shadowWanted, isShadow, known } = sight;
  const { name, started } = vm;
  if (keeper === 'alive') {
    if (isShadow) return undefined;
    const isAsWished =
      vm.shadowWanted === null || shadowWanted === undefined || shadowWanted === vm.shadowWanted;
    return isAsWished ? undefined : { kind: vm.shadowWanted ? 'protect' : 'unprotect', name };
  }
  // That nothing is left of it proves nothing: the machine may have been rebooted, or somebody have cleared it away.
  const inGoodOrder = end === 'powered-off' || end === 'requested' || end === 'suspended';
  if (keeper === 'none' && started?.bootId === bootId && inGoodOrder) return { kind: 'accept-end', name };
  return known === undefined ? { kind: 'start', name } : whereItMayAct(sight, known);
}

/** Of several hosts: it is started here only where the record has it here, or nowhere. */
function whereItMayAct({ vm, keeper }: VmSight, { place, isStale }: KnownPlace): HostAction | undefined {
  const { name, started } = vm;
  if (place.kind === 'unknown') return { kind: 'locate', name };
  if (place.kind === 'here' || keeper === 'failed') return { kind: 'start', name };
  // What a killed keeper left here is the past: the VM went on without it.
  if (keeper === 'lost') return { kind: 'sweep', name };
  if (isStale) return { kind: 'locate', name };
  if (place.kind === 'elsewhere') return undefined;
  return started === null ? { kind: 'start', name } : { kind: 'accept-end', name };
}

function towardsStopped({ vm, keeper, couldGoOn, isShadow, known }: VmSight): HostAction | undefined {
  const { name, desired, graceful, started } = vm;
  // The shadow of a VM that acts elsewhere is none of its stopping here.
  if (isShadow) return desired === 'deleted' ? { kind: 'forget', name } : undefined;
  // Of one that is to be forgotten nothing is kept, as it is not asked to power off either.
  const termination = desired === 'deleted' ? null : vm.termination;
  if (keeper === 'alive') return { kind: 'stop', name, graceful, termination };
  // Killed before its state was saved: it goes on from its shadow, and is stopped again.
  const isToBeSaved = termination === 'suspend' || termination === 'snapshot';
  if (keeper === 'lost' && couldGoOn && isToBeSaved) return { kind: 'start', name };
  if (keeper !== 'none') return { kind: 'sweep', name };
  if (desired === 'deleted') return { kind: 'forget', name };
  if (known !== undefined) {
    if (known.isStale) return { kind: 'locate', name };
    if (known.place.kind === 'elsewhere') return undefined;
  }
  return started === null ? undefined : { kind: 'note-end', name };
}

/** What failed is tried again after 1, 2, 4, … seconds, at most five minutes. */
function dueAtMsOf({ failures, failedAtMs }: VmSight): number {
  if (failures === 0) return Number.NEGATIVE_INFINITY;
  return failedAtMs + Math.min(RETRY_MS * 2 ** (failures - 1), RETRY_MAX_MS);
}
