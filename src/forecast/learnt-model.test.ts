import { describe, expect, it } from 'vitest';
import { LEARNT, learntMethod, weightsOf } from './learnt-model.ts';
import { LEARNT_WEIGHTS } from './learnt-weights.ts';
import { FedModel } from './model-contract-fixture.ts';
import { LEVELS, pinballLoss } from './quantile-forecast.ts';
import { SeriesHistory } from './series-history.ts';
import { STREAMING_METHODS } from './shipped-methods.ts';
import { FIVE_MINUTES_MS, type SyntheticWorkload, syntheticWorkload } from './synthetic-workload.ts';

const DAY = 288;
const HELD_OUT_SEED = 9_000_000;
const heldOut = (kind: 'daily' | 'bursts' | 'mixed', { count = 6, days = 4 } = {}) =>
  Array.from({ length: count }, (_, index) =>
    syntheticWorkload({ kind, seed: HELD_OUT_SEED + index, steps: days * DAY }),
  );

/** Pinball loss over all levels in the second half of workloads, each in units of its own mean. */
function lossOf(
  method: typeof LEARNT,
  workloads: readonly SyntheticWorkload[],
  { lead, hasCompanion = false }: { lead: number; hasCompanion?: boolean },
): number {
  let [loss, all] = [0, 0];
  for (const { values, companion, startMs } of workloads) {
    const history = new SeriesHistory({ stepMs: FIVE_MINUTES_MS, capacity: 4032 });
    const other = new SeriesHistory({ stepMs: FIVE_MINUTES_MS, capacity: 4 });
    const series = { stepMs: FIVE_MINUTES_MS, levels: LEVELS, history };
    const model = method.create(hasCompanion ? { ...series, companion: other } : series);
    const row = new Float64Array(LEVELS.length);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    for (let step = 0; step + lead < values.length; step += 1) {
      other.push(companion[step] ?? Number.NaN, startMs + step * FIVE_MINUTES_MS);
      history.push(values[step] ?? Number.NaN, startMs + step * FIVE_MINUTES_MS);
      model.update();
      if (step < values.length / 2 || step % 3 > 0 || !model.predict([lead], row)) continue;
      const actual = values[step + lead] ?? 0;
      for (const [index, level] of LEVELS.entries()) {
        loss += pinballLoss(level, { stated: row[index] ?? Number.NaN, actual }) / mean;
      }
      all += 1;
    }
  }
  return loss / all;
}

describe('the learnt model', () => {
  it('foretells mixed workloads that it has never seen better than each of the classic methods, an hour ahead', () => {
    const workloads = heldOut('mixed');
    const classic = STREAMING_METHODS.filter((method) => method !== LEARNT);
    const least = Math.min(...classic.map((method) => lossOf(method, workloads, { lead: 12 })));
    expect(lossOf(LEARNT, workloads, { lead: 12 })).toBeLessThan(least);
  });

  it('knows more with another metric that moves ahead', () => {
    const workloads = heldOut('bursts', { count: 12 });
    const alone = lossOf(LEARNT, workloads, { lead: 2 });
    expect(lossOf(LEARNT, workloads, { lead: 2, hasCompanion: true })).toBeLessThan(0.97 * alone);
  });

  it('learns how a series differs from all that it was trained on', () => {
    // A saw with a period that no machine has: up for 50 minutes, then down at once.
    const saw = Float64Array.from({ length: 20 * DAY }, (_, step) => 100 + (step % 10 === 9 ? 900 : 0));
    const workload = { ...(heldOut('daily', { count: 1 })[0] as SyntheticWorkload), values: saw };
    const fixed = learntMethod('fixed', weightsOf(LEARNT_WEIGHTS.base64), { learns: false });
    const learning = lossOf(LEARNT, [workload], { lead: 48 });
    expect(learning).toBeLessThan(lossOf(fixed, [workload], { lead: 48 }));
  });

  it('states whatever levels are wanted, in between those that it knows', () => {
    const values = heldOut('daily', { count: 1 })[0]?.values ?? [];
    const known = new FedModel(LEARNT).feed(values).forecast([12])?.[0] ?? [];
    const history = new SeriesHistory({ stepMs: FIVE_MINUTES_MS, capacity: 4032 });
    const model = LEARNT.create({ stepMs: FIVE_MINUTES_MS, levels: [0.05, 0.15, 0.5, 0.999], history });
    for (const [step, value] of values.entries()) {
      history.push(value, Date.UTC(2018, 0, 1) + step * FIVE_MINUTES_MS);
      model.update();
    }
    const row = new Float64Array(4);
    expect(model.predict([12], row)).toBe(true);
    expect(row[0]).toBeCloseTo(known[0] ?? Number.NaN, 9);
    expect(row[1]).toBeCloseTo(((known[0] ?? 0) + (known[1] ?? 0)) / 2, 9);
    expect(row[2]).toBeCloseTo(known[4] ?? Number.NaN, 9);
    expect(row[3]).toBeCloseTo(known[10] ?? Number.NaN, 9);
  });
});
