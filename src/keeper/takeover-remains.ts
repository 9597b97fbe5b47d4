import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Trace } from '../base/trace.ts';
import type { Instance } from './instance.ts';
import type { ShadowSession } from './shadow-session.ts';

interface Remains {
  /** Dead already, if there was one. */
  readonly primary: Instance | undefined;
  /** Its standby acts. */
  readonly session: ShadowSession;
  /** The request that asked for the takeover, if any did. */
  readonly trace: Trace | undefined;
}

/** What a takeover leaves to be done once those who waited for an answer have had it. */
export class TakeoverRemains {
  #kept: Remains | undefined;

  keep(remains: Remains): void {
    this.#kept = remains;
  }

  get areThere(): boolean {
    return this.#kept !== undefined;
  }

  /** The network is told where the guest is now, and the files of the old primary go. */
  async clear({ acting, log }: { acting: Instance | undefined; log: Logger }): Promise<void> {
    const kept = this.#kept;
    this.#kept = undefined;
    if (kept === undefined) return;
    acting?.machine.announceSelf({ trace: kept.trace }).catch((cause) => {
      log.warn('announce-self failed', { error: messageOf(cause) });
    });
    await kept.session.releaseEpochs();
    await kept.primary?.[Symbol.asyncDispose]();
  }
}
