import type { Clock } from '../base/clock.ts';

/** What kept QEMU from answering since the look before. */
export interface Hindrance {
  /** Share of that time in which it could not have, 0 … 1. */
  readonly share: number;
  /** What it waits for comes, however slowly: there is no end to the patience. */
  readonly isGettingOn: boolean;
}

/** Begins to look; each call of what it returns tells of the time since the one before. */
export type HindranceWatch = () => () => Hindrance;

interface DeadlineOptions {
  readonly clock: Clock;
  readonly deadlineMs: number;
  readonly watch: HindranceWatch | undefined;
}

/** Of a deadline: what this process slept through counts as one of them at most. */
const SLICES = 8;
/** A QEMU that is kept from answering is given up in the end: after so many times the deadline in addition. */
const HINDERED_DEADLINES_MAX = 4;
const ROUNDING_MS = 0.001;

/**
 * Calls `pass` when QEMU has not answered although it could have for `deadlineMs`. Not counted is time in which this
 * process did not run itself, on a host without processors to spare or while it was stopped, and time in which QEMU was
 * hindered. Returns how to take it back.
 */
export function startAnswerDeadline(
  { clock, deadlineMs, watch }: DeadlineOptions,
  pass: () => void,
): () => void {
  const sliceMs = deadlineMs / SLICES;
  let countedMs = 0;
  let hinderedMs = 0;
  let hindrance: (() => Hindrance) | undefined;
  const look = () => {
    const { share, isGettingOn } = hindrance?.() ?? { share: 0, isGettingOn: false };
    // Not before: most answers come long before the first look, in the pause of an epoch.
    hindrance ??= watch?.();
    countedMs += sliceMs * (1 - share);
    hinderedMs = isGettingOn ? 0 : hinderedMs + sliceMs * share;
    const isOver = countedMs >= deadlineMs - ROUNDING_MS || hinderedMs > deadlineMs * HINDERED_DEADLINES_MAX;
    // The answer may lie in the socket, which is read after the timers of a turn of the event loop.
    cancel = isOver ? clock.after(0, pass) : clock.after(sliceMs, look);
  };
  let cancel = clock.after(sliceMs, look);
  return () => cancel();
}
