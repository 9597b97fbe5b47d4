import { z } from 'zod';
import { allocationSchema, forecastSchema, resourceNameSchema } from './foresight-resources.ts';
import { limit, oneVm, type Route } from './route-parts.ts';

export const foresightRoutes = {
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
