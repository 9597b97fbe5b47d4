import type { Clock } from '../src/base/clock.ts';
import { messageOf } from '../src/base/errors.ts';
import type { EpochRig } from './epoch-rig.ts';

const CHECKPOINT_DELAY_MS = 200;

export interface ColoOutcome {
  /** From QEMU's STOP event to its RESUME event, one for each checkpoint. */
  readonly pausesMs: readonly number[];
  /** What happened, as a sentence for the notes. */
  readonly story: string;
}

/**
 * A peer: QEMU's own COLO replication (docs/COLO-FT.txt), set up between two QEMUs like ours and left to make
 * checkpoints by its timer. There are no disks, and no frames to compare. It is given a bounded time, because it
 * may hang. The VM cannot be used for anything else afterwards.
 */
export async function tryColo(
  rig: EpochRig,
  { clock, signal, forMs, enough }: { clock: Clock; signal: AbortSignal; forMs: number; enough: number },
): Promise<ColoOutcome> {
  const { qmp } = rig.machine;
  const pausesMs: number[] = [];
  const over = new AbortController();
  let stoppedWallMs: number | undefined;
  let migrated = false;
  let story = `after ${forMs / 1000} s the time for it was over`;
  const end = (why: string) => {
    if (!over.signal.aborted) story = why;
    over.abort();
  };
  const forget = [
    qmp.onEvent(({ name, data, wallMs }) => {
      if (name === 'STOP') stoppedWallMs = wallMs;
      if (name === 'MIGRATION') migrated ||= (data as { status: string }).status === 'colo';
      if (name === 'MIGRATION' && (data as { status: string }).status === 'failed')
        end('the migration failed');
      if (name === 'COLO_EXIT') end(`it left COLO by itself: ${JSON.stringify(data)}`);
      if (name !== 'RESUME' || stoppedWallMs === undefined || !migrated) return;
      pausesMs.push(wallMs - stoppedWallMs);
      if (pausesMs.length > enough) end('it made as many as were asked for');
    }),
    qmp.onClosed((error) => end(`the primary was lost: ${error.message}`)),
  ];
  try {
    await using standby = await rig.startStandby();
    void standby.machine.process.exited.then(() => end('the secondary QEMU ended'));
    const capabilities = { capabilities: [{ capability: 'x-colo', state: true }] };
    const parameters = { 'x-checkpoint-delay': CHECKPOINT_DELAY_MS };
    await standby.machine.qmp.execute('migrate-set-capabilities', capabilities);
    await qmp.execute('migrate-set-capabilities', capabilities);
    await qmp.execute('migrate-set-parameters', parameters);
    await qmp.execute('migrate', { uri: `unix:${standby.paths.incoming}` });
    await clock.sleep(forMs, AbortSignal.any([signal, over.signal])).catch(() => {});
  } catch (cause) {
    end(messageOf(cause));
  } finally {
    for (const undo of forget) undo();
  }
  signal.throwIfAborted();
  return { pausesMs, story };
}
