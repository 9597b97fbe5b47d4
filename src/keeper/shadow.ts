import type { PathStatus } from '../control/vm-status.ts';
import { EpochPipeline, type PipelineOptions, type PipelineSource } from '../replication/epoch-pipeline.ts';
import type { EpochStore } from '../replication/epoch-store.ts';
import type { SentBytes } from '../replication/page-sender.ts';
import type { ClaimedByLink } from './guest-links.ts';
import type { Instance } from './instance.ts';
import type { Filled } from './remote-filling.ts';

/** What the epochs of a shadow need of the VM. */
export type BeginOptions = Omit<PipelineOptions, 'source' | 'store'> &
  Pick<PipelineSource, 'links' | 'participants' | 'disks' | 'mayContinue' | 'hasPanicked'> & {
    readonly primary: Instance;
  };

/** What a shadow looks like to people: where it is, and which QEMU. */
export interface ShadowDescription {
  readonly instance: number;
  /** Null on another host. */
  readonly pid: number | null;
  /** Undefined for this one. */
  readonly host: string | undefined;
  readonly sent: SentBytes | undefined;
  /** How often its connection had broken and nothing was lost; undefined where there is none. */
  readonly reconnects: number | undefined;
  readonly filled: Filled | undefined;
  /** Of disks, that it was told to have in its cache. */
  readonly hintedBytes?: number | undefined;
  /** Undefined for this host. */
  readonly paths?: readonly PathStatus[] | undefined;
}

/** What stands behind a VM that acts here: a standby on this host, or the way to one on another. */
export interface Shadow extends AsyncDisposable {
  /** Share of the VM's memory copied so far, 0 … 1. */
  readonly copiedShare: number;
  readonly pipeline: EpochPipeline | undefined;
  /**
   * It may act without asking this keeper, or act already: until it is known that it does not, nothing may leave that it
   * does not know.
   */
  readonly mayTakeOver: boolean;
  describe(): ShadowDescription;
  /** Copies the running VM's memory. The copy becomes a state of the VM with the first committed epoch. */
  fill(options: { readonly primary: Instance; readonly signal: AbortSignal }): Promise<void>;
  /** Epochs begin. With the first commit the shadow holds a state of the VM. */
  begin(options: BeginOptions): void;
  /** It holds a state of the VM, and all output waits for it: from now on it can take over. */
  arm(): Promise<void>;
  /** The guest has claimed other addresses than before. Left out where whoever takes over knows them. */
  noteClaimed?(claimed: ClaimedByLink): void;
  /** Ends the epochs. What was committed until then is what a promotion goes on from. */
  halt(): Promise<void>;
}

/** Epochs of the VM that acts go to `store` from now on. */
export function beginEpochs(
  { primary, links, participants, disks, mayContinue, hasPanicked, ...options }: BeginOptions,
  store: EpochStore,
): EpochPipeline {
  const pipeline = new EpochPipeline({
    ...options,
    store,
    source: {
      machine: primary.machine,
      memory: primary.memory,
      dirtyLog: primary.dirtyLog,
      deviceStatePath: primary.paths.deviceState,
      ...{ links, participants, disks, mayContinue, hasPanicked },
    },
  });
  pipeline.start();
  return pipeline;
}
