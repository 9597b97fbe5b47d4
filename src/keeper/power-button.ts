import type { Clock } from '../base/clock.ts';
import type { StreamClient } from '../net/stream-end.ts';
import type { Machine } from '../qemu/machine.ts';

/** How long a guest may take to power off when it is asked to. */
const POWERDOWN_DEADLINE_MS = 10_000;

/** Asks the guest to power off in the two ways there are. Resolves with `off`, or when it has taken too long. */
export async function pressPowerButton(
  machine: Pick<Machine, 'powerdown'>,
  { agent, off, clock }: { agent: StreamClient | undefined; off: Promise<void>; clock: Clock },
): Promise<void> {
  const late = Promise.withResolvers<void>();
  const cancel = clock.after(POWERDOWN_DEADLINE_MS, late.resolve);
  // Either may be deaf: a guest without ACPI daemon, a guest without agent.
  agent?.write(Buffer.from('{"execute":"guest-shutdown"}\n'));
  await machine.powerdown().catch(() => late.resolve());
  await Promise.race([off, late.promise]).finally(cancel);
}
