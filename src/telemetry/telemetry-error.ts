import { UnderstudyError } from '../base/errors.ts';

export type TelemetryErrorCode =
  | 'TELEMETRY_SAMPLE_INVALID'
  | 'TELEMETRY_STORE_UNUSABLE'
  | 'TELEMETRY_STORE_BUSY'
  | 'TELEMETRY_STORE_CORRUPT'
  | 'TELEMETRY_STORE_NEWER'
  | 'TELEMETRY_STORE_FAILED'
  | 'TELEMETRY_STORE_AWAY'
  | 'TELEMETRY_STORE_REFUSED'
  | 'TELEMETRY_STORE_INSECURE'
  | 'TELEMETRY_STORE_CLOSED';

/** What VMs do cannot be measured, kept or read. */
export class TelemetryError extends UnderstudyError<TelemetryErrorCode> {}
