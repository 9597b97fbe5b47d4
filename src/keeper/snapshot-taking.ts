import { messageOf } from '../base/errors.ts';
import type { SnapshotOrder, SnapshotReport } from '../control/snapshot-report.ts';
import type { SnapshotFacts } from '../snapshot/snapshot-format.ts';
import { readKeyFile } from '../snapshot/snapshot-key.ts';
import {
  snapshotReadOut,
  snapshotShadow,
  snapshotStill,
  type WrittenSnapshot,
} from '../snapshot/snapshot-writer.ts';
import type { KeeperOptions } from './keeper-options.ts';
import type { Loan } from './loans.ts';
import { saveFailed } from './refusals.ts';
import type { RemoteShadow } from './remote-shadow.ts';
import type { ShadowLoan } from './shadow-life.ts';
import type { StateKeeping } from './state-keeping.ts';
import { stateFacts } from './state-restoring.ts';

/** Progress is told at these steps of it. */
const SHARE_STEP = 0.1;

interface TakingOptions {
  readonly options: KeeperOptions;
  readonly token: number;
  readonly publish: (kind: string, facts?: Readonly<Record<string, unknown>>) => void;
  /** Aborted when whoever asked does not want it any more. */
  readonly calledOff: AbortSignal;
}

/** Writes a snapshot of a VM from its shadow. @throws SnapshotError; KeeperError KEEPER_SAVE_FAILED */
export async function takeSnapshot(
  order: SnapshotOrder,
  { loan, ...taking }: TakingOptions & { readonly loan: ShadowLoan },
): Promise<SnapshotReport> {
  const { clock, failpoints } = taking.options;
  return await toldOf(order, taking, async (common) =>
    orNeeded(taking, loan.signal, async (signal) =>
      snapshotShadow({
        ...common,
        firmware: await loan.use(async ({ firmware }) => firmware),
        signal,
        use: (work) => loan.use(({ image }) => work(image)),
        nowMs: () => clock.nowMs(),
        onHeld: () => failpoints.hit('snapshot.held'),
      }),
    ),
  );
}

async function orNeeded<Result>(
  { options, calledOff }: TakingOptions,
  needed: AbortSignal,
  work: (signal: AbortSignal) => Promise<Result>,
): Promise<Result> {
  try {
    return await work(AbortSignal.any([needed, calledOff]));
  } catch (cause) {
    calledOff.throwIfAborted();
    if (needed.aborted) throw saveFailed(options.spec.name, 'its shadow was needed, or ended, meanwhile');
    throw cause;
  }
}

/** The same of one whose shadow is on another host: the file is written here, from what is read out there. */
export async function takeRemoteSnapshot(
  order: SnapshotOrder,
  { loan, ...taking }: TakingOptions & { readonly loan: Loan<RemoteShadow> },
): Promise<SnapshotReport> {
  return await toldOf(order, taking, async (common) =>
    orNeeded(taking, loan.signal, (signal) =>
      loan.use(({ errands, firmware }) =>
        snapshotReadOut({
          ...{ ...common, firmware, signal },
          readOut: (sink) => errands.readOut(sink, { signal, onProgress: common.onProgress }),
        }),
      ),
    ),
  );
}

interface StandingOptions extends TakingOptions {
  readonly epoch: number;
  readonly states: StateKeeping;
}

/** The same of a VM without a shadow in sync, which stands still for it. */
export async function takeStandingSnapshot(
  order: SnapshotOrder,
  { epoch, states, ...taking }: StandingOptions,
): Promise<SnapshotReport> {
  return await toldOf(order, taking, async (common) => {
    const written = Promise.withResolvers<WrittenSnapshot>();
    await states.whileStanding(async (still) => {
      const signal = AbortSignal.any([still.signal, taking.calledOff]);
      written.resolve(
        await snapshotStill({ ...common, ...still, signal, facts: { ...common.facts, epoch } }),
      );
    });
    return await written.promise;
  });
}

interface Common {
  readonly path: string;
  readonly key: Uint8Array | undefined;
  readonly facts: Omit<SnapshotFacts, 'epoch'>;
  readonly spec: Uint8Array;
  readonly onProgress: (share: number) => void;
}

/** Tells in events how far it is and how it ended. */
async function toldOf(
  { path, keyFile, reason = 'manual' }: SnapshotOrder,
  { options, token, publish }: TakingOptions,
  write: (common: Common) => Promise<WrittenSnapshot>,
): Promise<SnapshotReport> {
  const { clock, runDirectory } = options;
  const startMs = clock.nowMs();
  let told = 0;
  publish('snapshotting', { path, reason, share: 0 });
  try {
    const written = await write({
      path,
      key: keyFile === undefined ? undefined : readKeyFile(keyFile),
      facts: { ...stateFacts(options), savedAtMs: clock.wallMs(), token, reason },
      spec: Buffer.from(JSON.stringify(runDirectory.givenSpec ?? null)),
      onProgress: (share) => {
        if (share < told + SHARE_STEP) return;
        told = share;
        publish('snapshotting', { path, reason, share });
      },
    });
    const report = { path, ...written, tookMs: clock.nowMs() - startMs };
    publish('snapshot', { ...report, reason });
    return report;
  } catch (cause) {
    publish('snapshot-failed', { path, reason, error: messageOf(cause) });
    throw cause;
  }
}
