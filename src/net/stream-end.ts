import { KIB } from '../base/units.ts';
import type { FarEnd, FarEndStats } from './far-end.ts';

/** Whoever watches a byte channel: a person at the console, or the keeper's own guest-agent client. */
export interface StreamWatcher {
  /** Committed output, in order. */
  readonly onOutput: (bytes: Uint8Array) => void;
  /** After `write` said to wait: input is taken again. */
  readonly onRoom?: () => void;
}

export interface StreamClient {
  /** Sends input to the guest. False: taken, but wait for `onRoom` before writing more. */
  write(bytes: Uint8Array): boolean;
  close(): void;
}

/**
 * The far end of a byte channel. Watchers come and go; each sees all output from the scrollback on, and any of
 * them may type.
 */
export class StreamEnd implements FarEnd {
  readonly #scrollbackBytes: number;
  #scrollback: Uint8Array[] = [];
  #scrollbackFill = 0;
  readonly #watchers = new Set<StreamWatcher>();
  #receiver: ((bytes: Uint8Array) => void) | undefined;
  #paused = false;
  #sentItems = 0;

  /** `scrollbackBytes` of the latest output are shown to a watcher that comes later. */
  constructor({ scrollbackBytes = 64 * KIB }: { scrollbackBytes?: number } = {}) {
    this.#scrollbackBytes = scrollbackBytes;
  }

  connect(watcher: StreamWatcher): StreamClient {
    for (const bytes of this.#scrollback) watcher.onOutput(bytes);
    this.#watchers.add(watcher);
    return {
      write: (bytes) => {
        // A copy, because input is kept until an epoch covers it and the caller may reuse its buffer.
        if (this.#watchers.has(watcher)) this.#receiver?.(new Uint8Array(bytes));
        return !this.#paused;
      },
      close: () => {
        this.#watchers.delete(watcher);
      },
    };
  }

  send(bytes: Uint8Array): void {
    this.#sentItems += 1;
    this.#remember(bytes);
    for (const watcher of [...this.#watchers]) watcher.onOutput(bytes);
  }

  receive(receiver: ((bytes: Uint8Array) => void) | undefined): void {
    this.#receiver = receiver;
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    for (const watcher of [...this.#watchers]) watcher.onRoom?.();
  }

  async close(): Promise<void> {
    this.#watchers.clear();
    this.#receiver = undefined;
  }

  stats(): FarEndStats {
    return { sentItems: this.#sentItems, refusedItems: 0 };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #remember(bytes: Uint8Array): void {
    if (this.#scrollbackBytes === 0) return;
    // A copy: a few bytes may be a view of a large chunk that would live on with them.
    this.#scrollback.push(new Uint8Array(bytes));
    this.#scrollbackFill += bytes.length;
    // Many tiny pieces would cost more than they hold, so they are joined now and then.
    if (this.#scrollbackFill <= 2 * this.#scrollbackBytes && this.#scrollback.length < 1024) return;
    const latest = Buffer.concat(this.#scrollback).subarray(-this.#scrollbackBytes);
    this.#scrollback = [latest];
    this.#scrollbackFill = latest.length;
  }
}
