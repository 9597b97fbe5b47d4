import { z } from 'zod';
import { RESOLUTIONS } from '../telemetry/series-store.ts';
import {
  allocationSchema,
  forecastSchema,
  metricNameSchema,
  outlookSchema,
  resourceNameSchema,
  seriesSchema,
} from './foresight-resources.ts';
import { hostNameSchema } from './resources.ts';
import { decimal, limit, oneVm, type Route } from './route-parts.ts';

const risk = z
  .preprocess(
    (text) => (typeof text === 'string' && /^0?\.\d{1,6}$/.test(text) ? Number(text) : text),
    z.number().min(0.01).max(0.5),
  )
  .default(0.01)
  .meta({ description: 'Probability that is accepted for too little within the horizon: 0.01 to 0.5.' });

const seconds = decimal(z.int().min(1).max(34_560_000))
  .default(3600)
  .meta({ description: 'So long ago it begins: up to 400 days.' });

export const foresightRoutes = {
  getOutlook: {
    role: 'viewer',
    hostOnly: true,
    method: 'GET',
    path: '/v1/hosts/{name}/outlook',
    summary: 'What a host has, against what its VMs will need together, at a stated risk.',
    params: z.strictObject({ name: hostNameSchema }),
    query: z.strictObject({ risk }),
    status: 200,
    answer: outlookSchema,
  },
  getSeries: {
    role: 'viewer',
    method: 'GET',
    path: '/v1/vms/{name}/series/{metric}',
    summary: 'What was measured of a VM until now, by second, minute or hour.',
    params: oneVm.extend({ metric: metricNameSchema }),
    query: z.strictObject({ resolution: z.enum(RESOLUTIONS).default('1m'), seconds }),
    status: 200,
    answer: seriesSchema,
  },
  getForecast: {
    role: 'viewer',
    method: 'GET',
    path: '/v1/vms/{name}/forecasts/{resource}',
    summary: 'What a VM will need of a resource: quantiles at horizons from 5 s to 24 h, and of its peak.',
    params: oneVm.extend({ resource: resourceNameSchema }),
    status: 200,
    answer: forecastSchema,
  },
  getAllocation: {
    role: 'viewer',
    method: 'GET',
    path: '/v1/vms/{name}/allocation',
    summary: 'What a VM has and what is kept for it, with the last decisions and the forecasts behind them.',
    params: oneVm,
    query: z.strictObject({ limit }),
    status: 200,
    answer: allocationSchema,
  },
} as const satisfies Record<string, Route>;
