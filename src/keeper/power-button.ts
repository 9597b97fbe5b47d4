import type { Clock } from '../base/clock.ts';
import type { StreamClient } from '../net/stream-end.ts';

export interface PowerOffOptions {
  readonly clock: Clock;
  /** How long a guest may take to power off when it is asked to. */
  readonly deadlineMs: number;
  /** Resolves when there is somebody to ask. */
  readonly acts: Promise<void>;
  /** Presses the power button. */
  readonly ask: () => Promise<void> | undefined;
  readonly agent: StreamClient | undefined;
  /** Resolves when the guest is off. */
  readonly off: Promise<void>;
}

/** Asks the guest to power off in the two ways there are. Resolves when it is off, or has taken too long. */
export async function askToPowerOff({
  clock,
  deadlineMs,
  acts,
  ask,
  agent,
  off,
}: PowerOffOptions): Promise<void> {
  const late = Promise.withResolvers<void>();
  const cancel = clock.after(deadlineMs, late.resolve);
  try {
    await Promise.race([acts, late.promise]);
    // Either may be deaf: a guest without ACPI daemon, a guest without agent.
    agent?.write(Buffer.from('{"execute":"guest-shutdown"}\n'));
    await ask()?.catch(() => late.resolve());
    await Promise.race([off, late.promise]);
  } finally {
    cancel();
  }
}
