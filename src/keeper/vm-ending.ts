import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Trace } from '../base/trace.ts';
import type { GuestLinks } from './guest-links.ts';
import type { Instance } from './instance.ts';
import type { ShadowSession } from './shadow-session.ts';

/** What was in use before a takeover, until it is given back. */
export interface RetiredVm {
  readonly primary: Instance | undefined;
  readonly session: ShadowSession;
  /** The request that asked for the takeover, if any did. */
  readonly trace: Trace | undefined;
}

/** What a takeover leaves for later: the network is told where the guest is now, and the old primary's files go. */
export async function giveBack(
  { primary, session, trace }: RetiredVm,
  { acting, log }: { acting: Instance | undefined; log: Logger },
): Promise<void> {
  acting?.machine.announceSelf({ trace }).catch((cause) => {
    log.warn('announce-self failed', { error: messageOf(cause) });
  });
  await session.releaseEpochs();
  // It is dead already; these are its files.
  await primary?.[Symbol.asyncDispose]();
}

export interface VmEnding {
  readonly links: GuestLinks | undefined;
  readonly primary: Instance | undefined;
  readonly dropShadow: () => Promise<void>;
}

/** Ends all that a VM consists of, each part also when another one fails: no QEMU may outlive its keeper. */
export async function endVm({ links, primary, dropShadow }: VmEnding): Promise<void> {
  for (const link of links?.all ?? []) link.detach();
  // In reverse.
  await using ending = new AsyncDisposableStack();
  ending.defer(() => links?.[Symbol.asyncDispose]());
  ending.defer(() => primary?.[Symbol.asyncDispose]());
  ending.defer(dropShadow);
  ending.defer(() => primary?.kill());
}
