import { messageOf } from '../base/errors.ts';
import type { SnapshotOrder, SnapshotReport } from '../control/snapshot-report.ts';
import { readKeyFile } from '../snapshot/snapshot-key.ts';
import { snapshotShadow } from '../snapshot/snapshot-writer.ts';
import type { KeeperOptions } from './keeper-options.ts';
import { saveFailed } from './refusals.ts';
import type { ShadowLoan } from './shadow-life.ts';
import { stateFacts } from './state-restoring.ts';

/** Progress is told at these steps of it. */
const SHARE_STEP = 0.1;

interface TakingOptions {
  readonly loan: ShadowLoan;
  readonly options: KeeperOptions;
  readonly token: number;
  readonly publish: (kind: string, facts?: Readonly<Record<string, unknown>>) => void;
}

/** Writes a snapshot of a VM from its shadow. @throws SnapshotError; KeeperError KEEPER_SAVE_FAILED */
export async function takeSnapshot(
  { path, keyFile }: SnapshotOrder,
  { loan, options, token, publish }: TakingOptions,
): Promise<SnapshotReport> {
  const { clock, failpoints, spec } = options;
  const key = keyFile === undefined ? undefined : readKeyFile(keyFile);
  const startMs = clock.nowMs();
  let told = 0;
  publish('snapshotting', { path, share: 0 });
  try {
    const written = await snapshotShadow({
      path,
      key,
      facts: { ...stateFacts(options), savedAtMs: clock.wallMs(), token },
      spec: Buffer.from(JSON.stringify(options.runDirectory.givenSpec ?? null)),
      firmware: await loan.use(async ({ firmware }) => firmware),
      signal: loan.signal,
      use: (work) => loan.use(({ image }) => work(image)),
      nowMs: () => clock.nowMs(),
      onHeld: () => failpoints.hit('snapshot.held'),
      onProgress: (share) => {
        if (share < told + SHARE_STEP) return;
        told = share;
        publish('snapshotting', { path, share });
      },
    });
    const report = { path, ...written, tookMs: clock.nowMs() - startMs };
    publish('snapshot', report);
    return report;
  } catch (cause) {
    publish('snapshot-failed', { path, error: messageOf(cause) });
    if (loan.signal.aborted) throw saveFailed(spec.name, 'its shadow was needed, or ended, meanwhile');
    throw cause;
  }
}
