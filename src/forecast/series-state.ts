import { StateReader, StateWriter } from './state-bytes.ts';

const VERSION = 1;
/** More than any plan has: a number that is larger comes from a file that is not ours. */
const ARRAYS_MAX = 64;

export interface MethodState {
  readonly name: string;
  readonly stateVersion: number;
  /** Undefined where the model could not say. */
  readonly bytes: Uint8Array | undefined;
}

/** All that a forecaster of one series keeps. Forecasts that wait for their outcome are not among it: most of the size. */
export interface SeriesState {
  readonly stepMs: number;
  readonly count: number;
  readonly lastStartMs: number;
  /** The least value ever. */
  readonly least: number;
  /** Values so far that were not missing. */
  readonly known: number;
  /** Oldest first. */
  readonly history: Float32Array;
  readonly methods: readonly MethodState[];
  readonly scores: readonly Float32Array[];
  readonly calibration: readonly Float32Array[];
}

export function encodeSeriesState(state: SeriesState): Uint8Array {
  const writer = new StateWriter(VERSION);
  writer.float64(state.stepMs);
  for (const value of [state.count, state.lastStartMs, state.least, state.known]) writer.float64(value);
  writer.float32s(state.history);
  writer.uint32(state.methods.length);
  for (const { name, stateVersion, bytes } of state.methods) {
    writer.text(name);
    writer.uint32(stateVersion);
    writer.uint32(bytes === undefined ? 0 : 1);
    writer.bytes(bytes ?? new Uint8Array(0));
  }
  for (const arrays of [state.scores, state.calibration]) {
    writer.uint32(arrays.length);
    for (const array of arrays) writer.float32s(array);
  }
  return writer.finish();
}

/** Throws FORECAST_STATE_INVALID where the bytes are damaged or of another version. */
export function decodeSeriesState(bytes: Uint8Array): SeriesState {
  const reader = new StateReader(bytes, VERSION);
  return {
    stepMs: reader.float64(),
    count: reader.float64(),
    lastStartMs: reader.float64(),
    least: reader.float64(),
    known: reader.float64(),
    history: reader.float32s(),
    methods: list(reader, () => {
      const name = reader.text();
      const stateVersion = reader.uint32();
      const isThere = reader.uint32() === 1;
      const state = reader.bytes();
      return { name, stateVersion, bytes: isThere ? state : undefined };
    }),
    scores: list(reader, () => reader.float32s()),
    calibration: list(reader, () => reader.float32s()),
  };
}

function list<Item>(reader: StateReader, read: () => Item): Item[] {
  const length = reader.countUpTo(ARRAYS_MAX);
  return Array.from({ length }, read);
}
