import { z } from 'zod';
import { KeeperError, type KeeperErrorCode } from './keeper-error.ts';

const startErrorSchema = z.looseObject({
  code: z.string(),
  message: z.string(),
  hint: z.string().optional(),
});

/** How the start of a keeper came out, as it tells itself. */
export const startOutcomeSchema = z.union([
  z.object({ ok: z.literal(true), pid: z.int() }),
  z.object({ ok: z.literal(false), error: startErrorSchema }),
]);

/** Before it: what the keeper waits for. */
export const waitingSchema = z.object({ waits: z.string() });

export type StartError = z.infer<typeof startErrorSchema>;

export type StartOutcome = z.infer<typeof startOutcomeSchema>;

/** @throws what kept the keeper from starting, with its code, hint and facts */
export function assertStarted(outcome: StartOutcome): void {
  if (outcome.ok) return;
  const { code, message, hint, ...facts } = outcome.error;
  throw new KeeperError(code as KeeperErrorCode, message, { facts, ...(hint !== undefined && { hint }) });
}
