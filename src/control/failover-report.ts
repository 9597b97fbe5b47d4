import { z } from 'zod';

const figure = z.number().nullable();

/** How a test of a VM's failover went. Times in milliseconds; null for what the test did not come to. */
export const failoverReportSchema = z.object({
  /** A QEMU on a copy of the shadow took the state and ran on. */
  ok: z.boolean(),
  /** Why not. */
  reason: z.object({ code: z.string(), message: z.string() }).nullable(),
  /** The committed epoch that it went on from. */
  epoch: figure,
  copyMs: figure,
  /** As part of it: how long the real shadow did not apply epochs. */
  heldMs: figure,
  loadMs: figure,
  runningMs: figure,
  /** Null where the guest has never been heard on the agent channel. */
  agentAnswered: z.boolean().nullable(),
  /** What was copied. */
  memoryBytes: figure,
});

export type FailoverReport = Readonly<z.output<typeof failoverReportSchema>>;
