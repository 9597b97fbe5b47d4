import type { Instance } from './instance.ts';

/** By what one resource of a VM is limited. Whole numbers, as of `RESOURCES`; null: no limit. */
export interface LimitActuator {
  /** What is read back may be more. */
  readonly isLowerBound?: boolean;
  /** What the kernel or QEMU says holds now. @throws UnderstudyError: there is nothing that could be limited */
  read(instance: Instance): Promise<number | null> | number | null;
  /** Returns what is to be read back then. @throws UnderstudyError: something of it may have been changed already */
  set(instance: Instance, limit: number | null): Promise<number | null> | number | null;
}
