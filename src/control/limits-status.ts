import { z } from 'zod';
import type { Resource } from '../allocation/resource.ts';

/** Besides what is handed out: guest memory that has pages of the host before its guest asks for them. */
export type Limited = Resource | 'memoryReadyBytes';

/** Below that a QEMU answers so late that it would be taken for one that hangs: 0.2 s at this one. */
export const CPU_MILLICORES_MIN = 50;
export const BYTES_PER_SECOND_MIN = 4096;

const limit = (min: number, max: number) => z.int().min(min).max(max).nullable().optional();
const bytesPerSecond = limit(BYTES_PER_SECOND_MIN, 1e12);

/** What a VM may use from now on: whole numbers; null: as much as there is; a resource that is not named stays as it is. */
export const limitsOrderSchema = z.strictObject({
  cpuMillicores: limit(CPU_MILLICORES_MIN, 1_024_000),
  diskBytesPerSecond: bytesPerSecond,
  netBytesPerSecond: bytesPerSecond,
  memoryBytes: limit(1, Number.MAX_SAFE_INTEGER),
  /** At least so much of it. Null: nothing more; what is there stays until the VM ends. */
  memoryReadyBytes: limit(1, Number.MAX_SAFE_INTEGER),
} satisfies Record<Limited, unknown>);

export type LimitsOrder = z.output<typeof limitsOrderSchema>;

const amount = z.int().nonnegative().nullable();

const limitStatusSchema = z.object({
  /** What this order says, or what the last one that was carried out said. Null: no limit. */
  wanted: amount,
  /** As the kernel or QEMU says now. Null: no limit. */
  inForce: amount,
  /** Why `inForce` is not what is wanted, or cannot be read. */
  problem: z.object({ code: z.string().max(64), message: z.string().max(1000) }).optional(),
});

/** What a keeper answers to `limits`. It is checked by who asked: the keeper may be of another version. */
export const limitsStatusSchema = z.object({
  cpuMillicores: limitStatusSchema,
  diskBytesPerSecond: limitStatusSchema,
  netBytesPerSecond: limitStatusSchema,
  memoryBytes: limitStatusSchema,
  memoryReadyBytes: limitStatusSchema,
} satisfies Record<Limited, unknown>);

export type LimitStatus = z.output<typeof limitStatusSchema>;
export type LimitsStatus = z.output<typeof limitsStatusSchema>;

/** What holds by order, until another one: of every resource. */
export const standingLimitsSchema = z.object({
  cpuMillicores: amount,
  diskBytesPerSecond: amount,
  netBytesPerSecond: amount,
  memoryBytes: amount,
  memoryReadyBytes: amount,
} satisfies Record<Limited, unknown>);

export type StandingLimits = z.output<typeof standingLimitsSchema>;

export interface LimitsControl {
  /**
   * Sets what is named, each resource for itself, and resolves with what holds then, read back. What cannot be set stays as it
   * was. Rejects with KEEPER_STOPPING, KEEPER_IS_SHADOW.
   */
  limits(order: LimitsOrder): Promise<LimitsStatus>;
}
