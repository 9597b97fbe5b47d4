import type { ForecastMethod } from '../src/forecast/forecast-model.ts';

const DAY_MS = 86_400_000;
const HALF_HOUR_MS = 1_800_000;
const DAYS = 3;

/** Quantiles of what there was within half an hour of the same time of day, on the last three days. */
const likeYesterday: ForecastMethod = {
  name: 'like-yesterday',
  stateVersion: 1,
  create: ({ stepMs, levels, history }) => {
    const day = Math.max(1, Math.round(DAY_MS / stepMs));
    const reach = Math.floor(HALF_HOUR_MS / stepMs);
    const around = (lead: number): number[] => {
      const values: number[] = [];
      for (let days = Math.ceil(lead / day); days < Math.ceil(lead / day) + DAYS; days += 1) {
        for (let from = -reach; from <= reach; from += 1) values.push(history.at(days * day - lead + from));
      }
      return values.filter((value) => !Number.isNaN(value)).sort((one, other) => one - other);
    };
    return {
      update: () => undefined,
      predict: (leads, into) => {
        for (const [row, lead] of leads.entries()) {
          const values = around(lead);
          if (values.length === 0) return false;
          for (const [index, level] of levels.entries()) {
            const rank = Math.round(level * (values.length - 1));
            into[row * levels.length + index] = values[rank] ?? 0;
          }
        }
        return true;
      },
      // All that it knows is in the history.
      save: () => new Uint8Array(0),
    };
  },
  restore: (series) => likeYesterday.create(series),
};

export default likeYesterday;
