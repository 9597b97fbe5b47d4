import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { dropRelic, keepRelic } from '../control/relic.ts';
import type { StopReason } from '../shadow/protection.ts';
import type { GuestLinks } from './guest-links.ts';
import type { Instance } from './instance.ts';

/** How a VM came to its end, when nothing is left of it here. */
export interface VmEnd {
  readonly reason: StopReason;
  /** Others know, so that none starts it who was not told to. Undefined where nobody has to, or tried. */
  readonly isOnRecord?: boolean | undefined;
  /** The host of the shadow that it was left to because a disk of this one failed. */
  readonly leftTo?: string | undefined;
}

export interface VmEnding {
  readonly links: GuestLinks | undefined;
  readonly primary: Instance | undefined;
  readonly vm: string;
  /** It goes on elsewhere, and what is here may be of use to its next shadow. */
  readonly keepsRelic: () => Promise<boolean>;
  readonly endSaving: () => Promise<void>;
  /** It goes on elsewhere, with disks of its own: what became of those here is no failure. */
  readonly isElsewhere: () => boolean;
  /** What is on its way to the disks arrives there, or the VM is left to who has it. */
  readonly leaveDisks: () => Promise<void>;
  readonly disks: AsyncDisposable;
  readonly log: Logger;
  readonly dropShadow: () => Promise<void>;
}

/** Ends all that a VM consists of, each part also when another one fails: no QEMU may outlive its keeper. */
export async function endVm({
  vm,
  links,
  primary,
  keepsRelic,
  isElsewhere,
  log,
  endSaving,
  leaveDisks,
  disks,
  dropShadow,
}: VmEnding): Promise<void> {
  for (const link of links?.all ?? []) link.detach();
  // In reverse.
  await using ending = new AsyncDisposableStack();
  ending.defer(async () => {
    try {
      await disks[Symbol.asyncDispose]();
    } catch (thrown) {
      if (!isElsewhere()) throw thrown;
      log.warn('a disk was left as it is', { error: messageOf(thrown) });
    }
  });
  ending.defer(() => links?.[Symbol.asyncDispose]());
  ending.defer(() => primary?.[Symbol.asyncDispose]());
  ending.defer(async () => {
    const memory = primary?.memory.path;
    if (memory !== undefined && (await keepsRelic())) keepRelic(vm, memory);
    else dropRelic(vm);
  });
  ending.defer(dropShadow);
  if (!isElsewhere()) ending.defer(leaveDisks);
  ending.defer(endSaving);
  ending.defer(() => primary?.kill());
}
