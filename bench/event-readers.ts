import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { FrameReader } from '../src/api/event-frames.ts';

/** Connecting at once would overflow the queue of those that the daemon has not accepted yet. */
const CONNECTING_MAX = 50;

/** One connection to the stream of events, as plain as it can be: two thousand share this process. */
class EventReader {
  readonly ids: number[] = [];
  readonly ready: Promise<void>;
  readonly #socket: Socket;
  readonly #frames = new FrameReader();
  #onEvent: () => void = () => {};
  #head = '';

  constructor(socketPath: string) {
    this.#socket = connect(socketPath).setEncoding('utf8');
    const place = Promise.withResolvers<void>();
    this.ready = place.promise;
    this.#socket.on('error', place.reject).on('close', () => place.reject(new Error('a stream was closed')));
    this.#socket.on('data', (text: string) => {
      for (const { data, id } of this.#frames.push(this.#body(text)) ?? []) {
        place.resolve();
        if (data === undefined || id === undefined) continue;
        this.ids.push(id);
        this.#onEvent();
      }
    });
    this.#socket.write('GET /v1/events/stream HTTP/1.1\r\nHost: here\r\n\r\n');
  }

  onEvent(listener: () => void): void {
    this.#onEvent = listener;
  }

  async close(): Promise<void> {
    this.#socket.removeAllListeners('close');
    const closed = once(this.#socket, 'close');
    this.#socket.destroy();
    await closed;
  }

  /** Without the head of the answer. The body comes in chunks of HTTP, whose lengths stand in lines of their own. */
  #body(text: string): string {
    if (this.#head === 'past') return withoutLengths(text);
    this.#head += text;
    const end = this.#head.indexOf('\r\n\r\n');
    if (end === -1) return '';
    const rest = this.#head.slice(end + 4);
    this.#head = 'past';
    return withoutLengths(rest);
  }
}

function withoutLengths(text: string): string {
  return text.replace(/(?:^|\r\n)[0-9a-f]+\r\n/g, '').replace(/\r\n/g, '');
}

/** Many readers of the events of one host. */
export class EventReaders implements AsyncDisposable {
  readonly #readers: EventReader[] = [];

  /** Resolves when each of them has been told where it begins. */
  static async open(socketPath: string, { count, signal }: { count: number; signal: AbortSignal }) {
    const opened = new EventReaders();
    try {
      while (opened.#readers.length < count) {
        signal.throwIfAborted();
        const length = Math.min(CONNECTING_MAX, count - opened.#readers.length);
        const some = Array.from({ length }, () => new EventReader(socketPath));
        opened.#readers.push(...some);
        await Promise.all(some.map(({ ready }) => ready));
      }
      return opened;
    } catch (thrown) {
      await opened[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  /** Resolves when all have got one event more than when this was called. */
  async nextEvent(signal: AbortSignal): Promise<void> {
    let missing = this.#readers.length;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const onAbort = () => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    for (const reader of this.#readers) {
      reader.onEvent(() => {
        reader.onEvent(() => {});
        missing -= 1;
        if (missing === 0) resolve();
      });
    }
    await promise.finally(() => signal.removeEventListener('abort', onAbort));
  }

  /** Against what should have come: how many readers got just that, and how many events were lost or came twice. */
  compare(expected: readonly number[]): { served: number; lost: number; doubled: number } {
    const totals = { served: 0, lost: 0, doubled: 0 };
    for (const { ids } of this.#readers) {
      const seen = new Set(ids);
      totals.lost += expected.filter((id) => !seen.has(id)).length;
      totals.doubled += ids.length - seen.size;
      if (ids.length === expected.length && ids.every((id, index) => id === expected[index]))
        totals.served += 1;
    }
    return totals;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#readers.map((reader) => reader.ready.catch(() => {})));
    await Promise.all(this.#readers.map((reader) => reader.close()));
  }
}
