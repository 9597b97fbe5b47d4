import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { RouteId } from './routes.ts';

/** Seconds. The target for reads is 20 ms; a promotion takes longer, and an end may wait for a guest. */
const DURATION_BOUNDS = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1, 5, 30, 150];

export interface AnsweredRequest {
  /** Undefined for what no route takes. */
  readonly operation: RouteId | undefined;
  readonly status: number;
  readonly elapsedMs: number;
}

/** What the API itself can be asked about. Labels are operation ids and classes of status: nothing that a caller chooses. */
export class ApiMetrics {
  readonly #registry = new Registry();
  readonly #requests: Counter;
  readonly #durations: Histogram;

  constructor({ streams }: { readonly streams: () => number }) {
    const registers = [this.#registry];
    this.#requests = new Counter({
      name: 'understudy_api_requests_total',
      help: 'Requests answered, by operation id (none: no such route) and class of status.',
      labelNames: ['operation', 'status'],
      registers,
    });
    this.#durations = new Histogram({
      name: 'understudy_api_request_duration_seconds',
      help: 'From the head of a request to the end of its answer, by operation id. Streams of events are left out.',
      labelNames: ['operation'],
      buckets: DURATION_BOUNDS,
      registers,
    });
    new Gauge({
      name: 'understudy_api_event_streams',
      help: 'Readers of live events that are connected.',
      registers,
      collect() {
        this.set(streams());
      },
    });
  }

  note({ operation, status, elapsedMs }: AnsweredRequest): void {
    const name = operation ?? 'none';
    this.#requests.inc({ operation: name, status: `${Math.floor(status / 100)}xx` });
    if (operation !== 'streamEvents') this.#durations.observe({ operation: name }, elapsedMs / 1000);
  }

  exposition(): Promise<string> {
    return this.#registry.metrics();
  }
}
