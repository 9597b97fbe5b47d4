import type { MetricName } from './metric.ts';

/** What a source says at one moment. */
export interface Reading {
  /** Whose counters these are, by identity: those of another one do not go on from them. */
  readonly of: unknown;
  /**
   * Numbers that only grow, by the metric that their growth per second is: seconds of CPU time for cores, seconds for shares,
   * bytes for bytes per second.
   */
  readonly counters: Readonly<Record<MetricName, number>>;
  /** What is so now. */
  readonly gauges: Readonly<Record<MetricName, number>>;
}

/** Where values of some metrics come from. */
export interface MetricSource extends Disposable {
  /** For people who are told that it fails. */
  readonly name: string;
  /** At once where the kernel or this process knows it; what others are asked for comes when they answer. May fail. */
  read(): Reading | Promise<Reading>;
}

export const NOTHING_READ: Reading = { of: undefined, counters: {}, gauges: {} };

/** One source after the other, of whatever is there now: the QEMU that acts. Nothing is read while there is none. */
export class FollowingSource<Target> implements MetricSource {
  readonly name: string;
  readonly #target: () => Target | undefined;
  readonly #open: (target: Target) => MetricSource;
  #followed: { readonly target: Target; readonly source: MetricSource } | undefined;

  /** `open` may throw: then it is tried again at the next reading. */
  constructor(
    name: string,
    { target, open }: { target: () => Target | undefined; open: (target: Target) => MetricSource },
  ) {
    this.name = name;
    this.#target = target;
    this.#open = open;
  }

  read(): Reading | Promise<Reading> {
    const target = this.#target();
    if (target !== this.#followed?.target) this[Symbol.dispose]();
    if (target === undefined) return NOTHING_READ;
    this.#followed ??= { target, source: this.#open(target) };
    return this.#followed.source.read();
  }

  [Symbol.dispose](): void {
    this.#followed?.source[Symbol.dispose]();
    this.#followed = undefined;
  }
}
