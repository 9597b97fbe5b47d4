import { UnderstudyError } from '../src/base/errors.ts';

export type BenchErrorCode =
  | 'BENCH_USAGE'
  | 'BENCH_TOOL_MISSING'
  | 'BENCH_GUEST_FAILED'
  | 'BENCH_PEER_FAILED';

export class BenchError extends UnderstudyError<BenchErrorCode> {}
