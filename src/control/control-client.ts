import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { Clock } from '../base/clock.ts';
import type { Trace } from '../base/trace.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import type { FedSample } from '../telemetry/sample-feed.ts';
import {
  ANSWER_BYTES_MAX,
  type Answer,
  type AnswerError,
  answerSchema,
  decodeLine,
  encodeLine,
  LineSplitter,
  type Request,
} from './control-protocol.ts';
import type { FailoverReport } from './failover-report.ts';
import type { StopOrder } from './keeper-control.ts';
import { KeeperError, type KeeperErrorCode } from './keeper-error.ts';
import { type LimitsOrder, type LimitsStatus, limitsStatusSchema } from './limits-status.ts';
import { type SnapshotOrder, type SnapshotReport, snapshotReportSchema } from './snapshot-report.ts';
import { type TelemetryStatus, telemetryStatusSchema } from './telemetry-status.ts';
import type { VmEvent } from './vm-event.ts';
import { type VmMetrics, vmMetricsSchema } from './vm-metrics.ts';
import type { VmStatus } from './vm-status.ts';

const CONNECT_DEADLINE_MS = 5000;
const STATUS_DEADLINE_MS = 5000;
/** A promotion takes milliseconds; a hanging primary has to be killed first. */
const PROMOTE_DEADLINE_MS = 60_000;
/** Longer than a guest may take to power off. */
const STOP_DEADLINE_MS = 120_000;
/** Its memory may have to be written to a slow disk before. */
const SAVE_DEADLINE_MS = 1_800_000;
/** QEMU is asked, and memory may have to be found. */
const LIMITS_DEADLINE_MS = 30_000;
const TEST_DEADLINE_MS = 120_000;

/** `Request` without its id, which the client adds. */
type Question = Request extends infer Each ? (Each extends Request ? Omit<Each, 'id'> : never) : never;

export interface ControlClientOptions {
  /** For messages. */
  readonly vm: string;
  readonly clock: Clock;
  /** For the connection to stand; by default as long as a busy machine may take. */
  readonly connectDeadlineMs?: number;
}

/** Speaks with the keeper of one VM; one request at a time. */
export class ControlClient implements Disposable {
  readonly #socket: Socket;
  readonly #options: ControlClientOptions;
  readonly #lines = new LineSplitter({ bytesMax: ANSWER_BYTES_MAX });
  readonly #chunks: AsyncIterator<Uint8Array>;
  #lastId = 0;

  private constructor(socket: Socket, options: ControlClientOptions) {
    this.#socket = socket;
    this.#options = options;
    this.#chunks = socket.iterator({ destroyOnReturn: false });
  }

  /** @throws KeeperError KEEPER_NOT_RUNNING, KEEPER_NO_ANSWER, KEEPER_DIRECTORY_REFUSED */
  static async connect(path: string, options: ControlClientOptions): Promise<ControlClient> {
    const socket = createConnection(path);
    const { vm, clock, connectDeadlineMs = CONNECT_DEADLINE_MS } = options;
    const cancel = clock.after(connectDeadlineMs, () => socket.destroy(noAnswer(vm)));
    try {
      await once(socket, 'connect');
      return new ControlClient(socket, options);
    } catch (cause) {
      socket.destroy();
      throw connectError(cause, { vm, path });
    } finally {
      cancel();
    }
  }

  async status(): Promise<VmStatus> {
    return (await this.#ask({ method: 'status' }, STATUS_DEADLINE_MS)) as VmStatus;
  }

  /** What is measured. An answer that is of another form counts as none. */
  async metrics({ deadlineMs = STATUS_DEADLINE_MS } = {}): Promise<VmMetrics> {
    const answer = vmMetricsSchema.safeParse(await this.#ask({ method: 'metrics' }, deadlineMs));
    if (!answer.success) throw noAnswer(this.#options.vm);
    return answer.data;
  }

  /** Planned switch to the shadow; resolves when it acts. */
  async promote({ trace }: { trace?: Trace | undefined } = {}): Promise<void> {
    await this.#ask({ method: 'promote', trace }, PROMOTE_DEADLINE_MS);
  }

  /** Wants a shadow from now on; resolves when one will be made. */
  async protect({ trace }: { trace?: Trace | undefined } = {}): Promise<void> {
    await this.#ask({ method: 'protect', trace }, PROMOTE_DEADLINE_MS);
  }

  /** Wants no shadow any more; resolves when there is none. */
  async unprotect({ trace }: { trace?: Trace | undefined } = {}): Promise<void> {
    await this.#ask({ method: 'unprotect', trace }, PROMOTE_DEADLINE_MS);
  }

  /** Has the shadow made on this host of the site; null: on any. Resolves when that is wanted. */
  async place(host: string | null): Promise<void> {
    await this.#ask({ method: 'place', params: { host } }, PROMOTE_DEADLINE_MS);
  }

  /** Tries the shadow out on a copy. */
  async testFailover(): Promise<FailoverReport> {
    return (await this.#ask({ method: 'test-failover' }, TEST_DEADLINE_MS)) as FailoverReport;
  }

  /** Writes a snapshot of the VM while it goes on. */
  async snapshot(order: SnapshotOrder): Promise<SnapshotReport> {
    const answer = snapshotReportSchema.safeParse(
      await this.#ask({ method: 'snapshot', params: order }, SAVE_DEADLINE_MS),
    );
    if (!answer.success) throw noAnswer(this.#options.vm);
    return answer.data;
  }

  /** Gives up what another connection has asked for; that is answered when nothing of it is left. */
  async callOffSnapshot(path: string): Promise<void> {
    await this.#ask({ method: 'call-off-snapshot', params: { path } }, STATUS_DEADLINE_MS);
  }

  /** Resolves when nothing is left of the VM. */
  async stop({ deadlineMs, trace, ...order }: StopOrder & { readonly deadlineMs?: number }): Promise<void> {
    const keepsNothing = order.termination === 'remove' || !order.graceful;
    const usualMs = keepsNothing ? STOP_DEADLINE_MS : SAVE_DEADLINE_MS;
    await this.#ask({ method: 'stop', trace, params: order }, deadlineMs ?? usualMs);
  }

  /** Events after number `since`; with `follow` also those to come, until the VM ends. */
  async *events(params: { since: number; follow: boolean }): AsyncGenerator<VmEvent, void> {
    const id = this.#send({ method: 'events', params });
    for (;;) {
      const answer = await this.#answer(id, params.follow ? undefined : STATUS_DEADLINE_MS);
      if (!('event' in answer)) return;
      yield answer.event;
    }
  }

  /** The last sample and what came before it; with `intervalMs` samples are taken that often from now on. */
  async telemetry(params: { readonly intervalMs?: number | undefined } = {}): Promise<TelemetryStatus> {
    const answer = telemetryStatusSchema.safeParse(
      await this.#ask({ method: 'telemetry', params }, STATUS_DEADLINE_MS),
    );
    if (!answer.success) throw noAnswer(this.#options.vm);
    return answer.data;
  }

  /**
   * What the VM may use from now on, each resource for itself, and what holds then, read back. Without any: what holds. What could
   * not be set stays as it was and has a `problem`.
   */
  async limits(params: LimitsOrder = {}): Promise<LimitsStatus> {
    const answer = limitsStatusSchema.safeParse(
      await this.#ask({ method: 'limits', params }, LIMITS_DEADLINE_MS),
    );
    if (!answer.success) throw noAnswer(this.#options.vm);
    return answer.data;
  }

  /** Samples from now on, until the VM ends. */
  async *samples(): AsyncGenerator<FedSample, void> {
    const id = this.#send({ method: 'samples' });
    for (;;) {
      const answer = await this.#answer(id, undefined);
      if (!('sample' in answer)) return;
      yield { sample: answer.sample, lost: answer.lost };
    }
  }

  /** Joins the serial console. The connection is the caller's from here on: raw bytes both ways. */
  async console(): Promise<Duplex> {
    await this.#ask({ method: 'console' }, STATUS_DEADLINE_MS);
    await this.#chunks.return?.();
    const early = this.#lines.takeRest();
    if (early.length > 0) this.#socket.unshift(early);
    return this.#socket;
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }

  async #ask(question: Question, deadlineMs: number): Promise<unknown> {
    const answer = await this.#answer(this.#send(question), deadlineMs);
    if (!('ok' in answer)) throw noAnswer(this.#options.vm);
    return answer.result;
  }

  #send(question: Question): number {
    this.#lastId += 1;
    this.#socket.write(encodeLine({ ...question, id: this.#lastId } as Request));
    return this.#lastId;
  }

  async #answer(id: number, deadlineMs: number | undefined): Promise<Exclude<Answer, { ok: false }>> {
    const { clock, vm } = this.#options;
    const cancel =
      deadlineMs === undefined ? () => {} : clock.after(deadlineMs, () => this.#socket.destroy(noAnswer(vm)));
    try {
      const answer = answerSchema.safeParse(decodeLine(await this.#nextLine()));
      if (!answer.success) throw noAnswer(vm);
      if ('ok' in answer.data && !answer.data.ok) throw relayed(answer.data.error);
      if (answer.data.id !== id) throw noAnswer(vm);
      return answer.data as Exclude<Answer, { ok: false }>;
    } finally {
      cancel();
    }
  }

  async #nextLine(): Promise<string> {
    for (;;) {
      const next = this.#lines.next();
      if (next.kind === 'line') return next.text;
      if (next.kind === 'too-long') throw noAnswer(this.#options.vm);
      const chunk = await this.#nextChunk();
      if (chunk === undefined) throw noAnswer(this.#options.vm);
      this.#lines.push(chunk);
    }
  }

  async #nextChunk(): Promise<Uint8Array | undefined> {
    try {
      const { value, done } = await this.#chunks.next();
      return done ? undefined : value;
    } catch (thrown) {
      if (thrown instanceof KeeperError) throw thrown;
      return undefined; // the connection broke
    }
  }
}

/** The keeper's error with the code it had there, which may be one of another module. */
function relayed({ code, message, hint }: AnswerError): KeeperError {
  return new KeeperError(code as KeeperErrorCode, message, hint === undefined ? {} : { hint });
}

function noAnswer(vm: string): KeeperError {
  return new KeeperError('KEEPER_NO_ANSWER', `the keeper of ${vm} gave no answer that makes sense`, {
    hint: `It ended, hangs, or is of another version. See its keeper.log; \`understudy stop ${vm} --force\` ends it.`,
    facts: { vm },
  });
}

function connectError(cause: unknown, { vm, path }: { vm: string; path: string }): KeeperError {
  if (cause instanceof KeeperError) return cause;
  switch (errnoNameOf(cause)) {
    case 'EACCES':
    case 'EPERM':
      return new KeeperError('KEEPER_DIRECTORY_REFUSED', `${path} belongs to another user`, {
        hint: 'Run this as the user that started the VM.',
        cause,
      });
    case 'ENOENT':
    case 'ECONNREFUSED':
      return new KeeperError('KEEPER_NOT_RUNNING', `no VM named ${vm} is running`, {
        hint: '`understudy ls` lists the VMs of this user.',
        facts: { vm },
        cause,
      });
    default:
      return noAnswer(vm);
  }
}
