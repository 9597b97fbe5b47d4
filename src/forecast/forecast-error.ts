import { UnderstudyError } from '../base/errors.ts';

export type ForecastErrorCode = 'FORECAST_STATE_INVALID';

export class ForecastError extends UnderstudyError<ForecastErrorCode> {}
