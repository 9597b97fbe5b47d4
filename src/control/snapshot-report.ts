import { z } from 'zod';

/** What was written when a snapshot of a VM that runs was asked for. */
export const snapshotReportSchema = z.object({
  path: z.string(),
  epoch: z.number(),
  sizeBytes: z.number(),
  /** From the request until the file was on disk. */
  tookMs: z.number(),
  /** How long epochs were not applied to the shadow meanwhile. The VM did not wait for it. */
  heldMs: z.number(),
});

export type SnapshotReport = z.output<typeof snapshotReportSchema>;

/** Why a snapshot was taken: somebody asked, or its VM's keeper did it by itself. */
export type SnapshotReason = 'manual' | 'schedule' | 'shutdown';

export interface SnapshotOrder {
  /** Where the file is to be; one that is there is replaced when the new one is whole. */
  readonly path: string;
  /** Encrypted with the key in this file. */
  readonly keyFile?: string | undefined;
  /** A VM without a shadow in sync stands still for it. */
  readonly pause?: boolean | undefined;
  /** By default that somebody asked. */
  readonly reason?: SnapshotReason;
}
