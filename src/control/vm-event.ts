/** Something that happened to a VM, as `understudy events` shows it. */
export interface VmEvent {
  /** Counts from 1; a reader that saw n asks for those after n. */
  readonly seq: number;
  /** ISO 8601, host time. */
  readonly time: string;
  readonly vm: string;
  readonly kind: string;
  /** Newest committed epoch when it happened. */
  readonly epoch: number;
  readonly facts: Readonly<Record<string, unknown>>;
}
