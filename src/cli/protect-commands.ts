import { systemClock as clock } from '../base/clock.ts';
import type { ControlClient } from '../control/control-client.ts';
import { CliError } from './cli-error.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { hostClient, knowsVm } from './host-connection.ts';
import { Interruption } from './interruption.ts';
import type { Output } from './output.ts';
import { connectTo } from './vm-connection.ts';

const POLL_MS = 100;

export interface ProtectOptions {
  readonly wait: 'protected' | 'none';
  readonly timeoutMs: number;
}

/** Wants a shadow for a VM. A host remembers it. */
export async function protect(name: string, options: ProtectOptions, out: Output): Promise<number> {
  if (await knowsVm(name)) await hostClient().call('protectVm', { params: { name } });
  else {
    using control = await connectTo(name);
    await control.protect();
  }
  const phase = await phaseOf(name, options, out);
  out.result(
    { name, shadowWanted: true, phase },
    () => `${name} is ${phase ?? 'to be protected when it runs'}`,
  );
  return EXIT_CODES.ok.code;
}

/** Wants no shadow for a VM any more. A host remembers it. */
export async function unprotect(name: string, out: Output): Promise<number> {
  if (await knowsVm(name)) await hostClient().call('unprotectVm', { params: { name } });
  else {
    using control = await connectTo(name);
    await control.unprotect();
  }
  out.result({ name, shadowWanted: false }, () => `${name} has no shadow any more`);
  return EXIT_CODES.ok.code;
}

/** Null for a VM that does not run: the host only remembers what is wanted. @throws CLI_WAIT_TIMEOUT, CLI_INTERRUPTED */
async function phaseOf(
  name: string,
  { wait, timeoutMs }: ProtectOptions,
  out: Output,
): Promise<string | null> {
  using interruption = new Interruption();
  const control = await connectTo(name).catch(() => undefined);
  if (control === undefined) return null;
  using asked: ControlClient = control;
  const endMs = clock.nowMs() + timeoutMs;
  for (;;) {
    const { phase, shadow } = await asked.status();
    if (wait === 'none' || phase === 'protected') return phase;
    const share = shadow === null ? '' : `${Math.floor(100 * shadow.copiedShare)} %`;
    out.progress(`making a shadow of ${name}`, share);
    if (clock.nowMs() > endMs) {
      throw new CliError(
        'CLI_WAIT_TIMEOUT',
        `${name} is not protected after ${timeoutMs / 1000} s (${phase})`,
        {
          hint: `It goes on trying. See \`understudy events ${name}\`.`,
          facts: { vm: name, phase },
        },
      );
    }
    await clock.sleep(POLL_MS, interruption.signal);
  }
}
