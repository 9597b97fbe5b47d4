import type { Clock } from '../src/base/clock.ts';
import { messageOf } from '../src/base/errors.ts';
import type { QmpEvent } from '../src/qemu/qmp-events.ts';
import type { EpochRig } from './epoch-rig.ts';

const CHECKPOINT_DELAY_MS = 200;
const LAST_WORDS_MS = 1000;

export interface ColoOutcome {
  /** From QEMU's STOP event to its RESUME event, one for each checkpoint that was completed. */
  readonly pausesMs: readonly number[];
  /** What happened, for the notes. */
  readonly story: string;
}

export interface ColoTrial {
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** It may hang, so it is not waited for longer than this. */
  readonly forMs: number;
  readonly checkpoints: number;
}

/**
 * A peer: QEMU's own COLO replication (docs/COLO-FT.txt) between two QEMUs started like ours, left to make
 * checkpoints by its timer. There are no disks, and no frames to compare. The VM is of no use afterwards.
 */
export async function tryColo(rig: EpochRig, trial: ColoTrial): Promise<ColoOutcome> {
  const { clock, signal, forMs, checkpoints } = trial;
  const { qmp } = rig.machine;
  const watch = new ColoWatch(checkpoints);
  const forget = [
    qmp.onEvent((event) => watch.see(event)),
    qmp.onClosed((error) => watch.end(`the primary QEMU was lost (${error.message})`)),
  ];
  try {
    await using standby = await rig.startStandby();
    const secondary = standby.machine.process;
    const lastWords = secondary.exited
      .then(() => secondary.drained())
      .then(() => watch.end(`the secondary QEMU ended (${secondary.outputTail.trim().split('\n').at(-1)})`));
    const capabilities = { capabilities: [{ capability: 'x-colo', state: true }] };
    await standby.machine.qmp.execute('migrate-set-capabilities', capabilities);
    await qmp.execute('migrate-set-capabilities', capabilities);
    await qmp.execute('migrate-set-parameters', { 'x-checkpoint-delay': CHECKPOINT_DELAY_MS });
    await qmp.execute('migrate', { uri: `unix:${standby.paths.incoming}` });
    await clock.sleep(forMs, AbortSignal.any([signal, watch.over])).catch(() => {});
    // The primary tells of the end before we know what the secondary died of, if it did.
    if ((await secondary.awaitExit(LAST_WORDS_MS)) !== undefined) await lastWords;
    watch.close();
  } catch (cause) {
    watch.end(messageOf(cause));
  } finally {
    for (const undo of forget) undo();
  }
  signal.throwIfAborted();
  return watch.outcome(forMs);
}

class ColoWatch {
  readonly #checkpoints: number;
  readonly #over = new AbortController();
  readonly #pausesMs: number[] = [];
  #entryMs: number | undefined;
  #stoppedWallMs: number | undefined;
  #end: string | undefined;
  #isClosed = false;

  constructor(checkpoints: number) {
    this.#checkpoints = checkpoints;
  }

  get over(): AbortSignal {
    return this.#over.signal;
  }

  see({ name, data, wallMs }: QmpEvent): void {
    if (name === 'STOP') this.#stoppedWallMs = wallMs;
    if (name === 'COLO_EXIT') this.end(`QEMU left it: ${(data as { reason?: string }).reason}`);
    if (name !== 'RESUME' || this.#stoppedWallMs === undefined) return;
    const pauseMs = wallMs - this.#stoppedWallMs;
    // The first pause hands the rest of memory over, as a live migration does.
    if (this.#entryMs === undefined) this.#entryMs = pauseMs;
    else this.#pausesMs.push(pauseMs);
    if (this.#pausesMs.length >= this.#checkpoints) this.#over.abort();
  }

  /** From now on ends are our own doing. */
  close(): void {
    this.#isClosed = true;
  }

  /** The last reason counts: what is known first is often only a consequence. */
  end(why: string): void {
    if (this.#isClosed) return;
    this.#end = why;
    this.#over.abort();
  }

  outcome(forMs: number): ColoOutcome {
    const entry =
      this.#entryMs === undefined ? 'did not begin' : `began with a pause of ${Math.round(this.#entryMs)} ms`;
    const end = this.#end ?? `nothing more came in ${forMs / 1000} s`;
    const made = `${this.#pausesMs.length} of ${this.#checkpoints} checkpoints`;
    return { pausesMs: this.#pausesMs, story: `COLO ${entry} and completed ${made}; ${end}` };
  }
}
