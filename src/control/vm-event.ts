/** Something that happened to a VM, as `understudy events` shows it. */
export interface VmEvent {
  /** Counts from 1; a reader that saw n asks for those after n. */
  readonly seq: number;
  /** ISO 8601, host time. */
  readonly time: string;
  readonly vm: string;
  readonly kind: string;
  /** Of the QEMU that acted then, or had acted last: grows each time that another one begins to, and never goes back. */
  readonly token: number;
  /** Newest committed epoch when it happened. */
  readonly epoch: number;
  readonly facts: Readonly<Record<string, unknown>>;
}
