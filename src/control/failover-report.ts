/** How a test of a VM's failover went. Times in milliseconds; null for what the test did not come to. */
export interface FailoverReport {
  /** A QEMU on a copy of the shadow took the state and ran on. */
  readonly ok: boolean;
  /** Why not. */
  readonly reason: { readonly code: string; readonly message: string } | null;
  /** The committed epoch that it went on from. */
  readonly epoch: number | null;
  readonly copyMs: number | null;
  /** As part of it: how long the real shadow did not apply epochs. */
  readonly heldMs: number | null;
  readonly loadMs: number | null;
  readonly runningMs: number | null;
  /** Null where the guest has never been heard on the agent channel. */
  readonly agentAnswered: boolean | null;
  /** What was copied. */
  readonly memoryBytes: number | null;
}
