/**
 * The thread that keeps series: writing, compressing and asking take milliseconds in which a daemon's loop would do nothing
 * else. It carries out what it is asked, and what can wait in small steps between.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { assert, unreachable } from '../base/assert.ts';
import { systemClock } from '../base/clock.ts';
import type { SeriesEngine } from './series-engine.ts';
import {
  type Answered,
  type Asked,
  type EngineChoice,
  plainError,
  type Question,
} from './series-messages.ts';
import { SqliteSeries } from './sqlite-series.ts';
import { VictoriaMetricsSeries } from './victoria-metrics-series.ts';

const FAILED_AGAIN_MS = 5_000;

const port = parentPort;
assert(port !== null, 'series are kept in a thread of their own');
const answer = (message: Answered) => port.postMessage(message);

function open(choice: EngineChoice): SeriesEngine {
  return choice.kind === 'sqlite'
    ? new SqliteSeries({ ...choice.options, wallMs: () => systemClock.wallMs() })
    : new VictoriaMetricsSeries({ ...choice.options, clock: systemClock });
}

function carryOut(engine: SeriesEngine, question: Question): unknown {
  switch (question.kind) {
    case 'append':
      return engine.append(question.batch);
    case 'range':
      return engine.range(question.query);
    case 'metrics':
      return engine.metrics(question.vm);
    case 'forget':
      return engine.forget(question.vm);
    case 'usage':
      return engine.usage();
    case 'close':
      return engine.close();
    default:
      return unreachable(question);
  }
}

function serve(engine: SeriesEngine): void {
  let isClosed = false;
  const reply = async ({ number, question }: Asked) => {
    try {
      if (question.kind === 'close') isClosed = true;
      answer({ number, kind: 'done', result: await carryOut(engine, question) });
    } catch (thrown) {
      answer({ number, kind: 'failed', error: plainError(thrown) });
    }
    if (question.kind === 'close') port?.close();
  };
  port?.on('message', (asked: Asked) => void reply(asked));
  const keepUp = async () => {
    let againMs = FAILED_AGAIN_MS;
    try {
      if (!isClosed) againMs = await engine.upkeep();
    } catch {
      // A full disk, for instance. Nothing is lost by waiting, and who appends is told.
    }
    if (isClosed) return;
    if (againMs === 0) setImmediate(() => void keepUp());
    else setTimeout(() => void keepUp(), againMs).unref();
  };
  void keepUp();
}

try {
  const engine = open(workerData as EngineChoice);
  serve(engine);
  answer({ number: 0, kind: 'done', result: undefined });
} catch (thrown) {
  answer({ number: 0, kind: 'failed', error: plainError(thrown) });
  port.close();
}
