import type { ForecastMethod, SeriesContext } from './forecast-model.ts';
import { type PointModel, pointMethod } from './point-method.ts';
import { SeasonProfile } from './season-profile.ts';

/** Of the level, each with and without the season; the least wrong is taken. */
const SMOOTHINGS = [0.05, 0.2, 0.6] as const;
/** Steps after which a value counts 1/e in the line. */
const LINE_STEPS = 288;
/** The line is a statement about the near future: further ahead the drift stays what it is there. */
const DRIFT_STEPS_MAX = 288;

/**
 * Theta, the method that won the M3 competition: the mean of a straight line through the series and of simple smoothing of the
 * series with its curvature doubled. Assimakopoulos and Nikolopoulos, "The theta model", International Journal of Forecasting
 * 16 (2000), in the form of Hyndman and Billah, ibid. 19 (2003): smoothing with a drift of half the slope. Here older values
 * count less in the line, so that it can be kept up to date; a season of a day is taken out before and put back after.
 */
export const THETA: ForecastMethod = pointMethod({ name: 'theta', stateVersion: 1, model: theta });

function theta({ stepMs, history }: SeriesContext): PointModel {
  const season = new SeasonProfile(stepMs);
  const lines = [new RecentLine(), new RecentLine()] as const;
  const candidates = 2 * SMOOTHINGS.length;
  const levels = new Float64Array(candidates).fill(Number.NaN);
  const isSeasonal = (candidate: number) => candidate >= SMOOTHINGS.length;
  return {
    candidates,
    parts: [{ values: levels }, { values: lines[0].sums }, { values: lines[1].sums }, ...season.parts],
    update: (value) => {
      const adjusted = value - season.at(history.lastStartMs);
      for (let candidate = 0; candidate < candidates; candidate += 1) {
        const next = isSeasonal(candidate) ? adjusted : value;
        const level = levels[candidate] ?? Number.NaN;
        const share = SMOOTHINGS[candidate % SMOOTHINGS.length] ?? 1;
        levels[candidate] = Number.isNaN(level) ? next : level + share * (next - level);
      }
      lines[0].update(value);
      lines[1].update(adjusted);
      season.update(value, history.lastStartMs);
    },
    skip: () => {
      lines[0].pass();
      lines[1].pass();
    },
    forecast: (candidate, leads, into) => {
      const drift = (isSeasonal(candidate) ? lines[1] : lines[0]).slope / 2;
      const level = levels[candidate] ?? Number.NaN;
      const share = SMOOTHINGS[candidate % SMOOTHINGS.length] ?? 1;
      for (let index = 0; index < leads.length; index += 1) {
        const lead = leads[index] ?? 1;
        const adjustment = isSeasonal(candidate) ? season.at(history.lastStartMs + lead * stepMs) : 0;
        into[index] = level + drift * (Math.min(lead, DRIFT_STEPS_MAX) - 1 + 1 / share) + adjustment;
      }
      return !Number.isNaN(level);
    },
  };
}

/** A straight line through the past by least squares, in which older values count less and less. The present is x = 0. */
class RecentLine {
  /** Weighted sums of 1, x, x², y, xy. */
  readonly sums = new Float64Array(5);

  /** Per step. 0 until it can be told. */
  get slope(): number {
    const [n = 0, x = 0, xx = 0, y = 0, xy = 0] = this.sums;
    const determinant = n * xx - x * x;
    // With less than some steps of time between them, values tell their noise and no direction.
    if (n < 12 || determinant <= 1e-9 * n * xx) return 0;
    return (n * xy - x * y) / determinant;
  }

  /** A step passes: all values are one step further away, and count a little less. */
  pass(): void {
    const keep = Math.exp(-1 / LINE_STEPS);
    const [n = 0, x = 0, xx = 0, y = 0, xy = 0] = this.sums;
    this.sums[0] = keep * n;
    this.sums[1] = keep * (x - n);
    this.sums[2] = keep * (xx - 2 * x + n);
    this.sums[3] = keep * y;
    this.sums[4] = keep * (xy - y);
  }

  update(value: number): void {
    this.pass();
    this.sums[0] = (this.sums[0] ?? 0) + 1;
    this.sums[3] = (this.sums[3] ?? 0) + value;
  }
}
