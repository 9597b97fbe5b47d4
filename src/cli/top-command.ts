import type { Clock } from '../base/clock.ts';
import { systemClock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { Interruption } from './interruption.ts';
import type { Output } from './output.ts';
import { type TerminalEnds, TerminalScreen } from './terminal-screen.ts';
import { offsetMax, TOP_COLUMNS, type TopOrder, topFrame, topText } from './top-frame.ts';
import { type TopSample, TopSampler, withRates } from './top-sample.ts';

export interface TopOptions {
  readonly intervalMs: number;
  readonly once: boolean;
}

const BY_NAME: TopOrder = { column: 0, reversed: false };

/** All VMs, kept up to date on a terminal; elsewhere a table once, or with `--json` a line for each refresh. */
export async function top({ intervalMs, once }: TopOptions, out: Output): Promise<number> {
  using interruption = new Interruption();
  const sampler = new TopSampler({ clock: systemClock });
  const { signal } = interruption;
  const take = () => sampler.take(signal);
  if (out.json) await printLines({ take, signal, intervalMs, once, out });
  else if (once || !process.stdout.isTTY || !process.stdin.isTTY)
    await printTable({ take, signal, intervalMs, out });
  else {
    const ends = { input: process.stdin, output: process.stdout };
    const coloured = process.env.NO_COLOR === undefined || process.env.NO_COLOR === '';
    await watch({ take, signal, intervalMs, ends, clock: systemClock, coloured });
  }
  return EXIT_CODES.ok.code;
}

interface Sampling {
  readonly take: () => Promise<TopSample>;
  readonly signal: AbortSignal;
  readonly intervalMs: number;
}

/** Two samples make the table: what goes on shows between them. */
async function printTable({ take, signal, intervalMs, out }: Sampling & { out: Output }): Promise<void> {
  const before = await take();
  await systemClock.sleep(intervalMs, signal);
  const now = await take();
  const vms = withRates(now, before);
  out.result({ ...now, vms }, () => topText({ ...now, vms }, BY_NAME));
}

async function printLines({
  take,
  signal,
  intervalMs,
  once,
  out,
}: Sampling & { once: boolean; out: Output }): Promise<void> {
  let before = await take();
  for (;;) {
    await systemClock.sleep(intervalMs, signal);
    const now = await take();
    const { wallMs, host } = now;
    const vms = withRates(now, before);
    out.result({ time: new Date(wallMs).toISOString(), host, vms }, () => '');
    if (once) return;
    before = now;
  }
}

export interface WatchOptions extends Sampling {
  readonly ends: TerminalEnds;
  readonly clock: Clock;
  readonly coloured: boolean;
}

/** Resolves when the person has seen enough. @throws the reason of `signal`; what the first refresh fails with */
export async function watch(options: WatchOptions): Promise<void> {
  const { take, signal, intervalMs, clock } = options;
  // Before the screen is taken: what is wrong from the start is told like any other error.
  let now = await take();
  let before: TopSample | undefined;
  let trouble: string | undefined;
  let order = BY_NAME;
  let offset = 0;
  const quit = new AbortController();
  const draw = () => {
    const { columns, rows } = screen;
    const { coloured } = options;
    const vms = withRates(now, before);
    screen.draw(topFrame({ ...now, vms, order, offset, columns, rows, trouble, coloured }));
  };
  const onKey = (key: string) => {
    if (key === 'q' || key === 'ctrl-c') quit.abort();
    if (key === 's') order = { column: (order.column + 1) % TOP_COLUMNS.length, reversed: false };
    if (key === 'r') order = { ...order, reversed: !order.reversed };
    if (key === 'up') offset = Math.max(0, offset - 1);
    if (key === 'down') offset = Math.min(offset + 1, offsetMax(now.vms.length, screen.rows));
    draw();
  };
  using screen = new TerminalScreen(options.ends, { onKey, onResize: () => draw() });
  const either = AbortSignal.any([signal, quit.signal]);
  try {
    for (;;) {
      draw();
      await clock.sleep(intervalMs, either);
      try {
        const next = await orAborted(take(), either);
        [before, now, trouble] = [now, next, undefined];
      } catch (thrown) {
        either.throwIfAborted();
        // It may be back at the next look.
        trouble = messageOf(thrown);
      }
    }
  } catch (thrown) {
    signal.throwIfAborted();
    if (!quit.signal.aborted) throw thrown;
  }
}

/** The result of `work`, or the signal's reason if that comes first; the work ends by its own deadline then. */
async function orAborted<Result>(work: Promise<Result>, signal: AbortSignal): Promise<Result> {
  const aborted = Promise.withResolvers<never>();
  const abort = () => aborted.reject(signal.reason);
  signal.addEventListener('abort', abort, { once: true });
  if (signal.aborted) abort();
  try {
    return await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}
