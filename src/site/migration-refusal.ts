import { KeeperError, type KeeperErrorCode } from '../control/keeper-error.ts';
import type { VmEvent } from '../control/vm-event.ts';

/** So often in a row a host turns the shadow away before that is taken for its answer. */
const REFUSALS_MAX = 5;
/** Known from what the host says of itself: to ask again helps nothing. */
const FINAL: readonly unknown[] = ['KEEPER_HOST_NO_ROOM', 'KEEPER_HOST_MAINTENANCE', 'KEEPER_HOST_REFUSED'];
/** Of the hosts' certificates and releases: somebody has to mend that first. */
const OF_THE_SITE: readonly unknown[] = [
  'WIRE_VERSION',
  'WIRE_PEER_UNTRUSTED',
  'WIRE_PEER_EXPIRED',
  'WIRE_PEER_NOT_A_HOST',
  'WIRE_PEER_NAME',
];
/** The latter may also mean that there is no room for one more connection, which ends by itself. */
const REPEATED: readonly unknown[] = ['KEEPER_PEER_REFUSED', 'WIRE_REFUSED'];

/** Whether a VM waits in vain for a shadow where it is to go; undefined as long as the next try may succeed. */
export function refusalOf(vm: string, failures: readonly Pick<VmEvent, 'facts'>[]): KeeperError | undefined {
  const last = failures.at(-1)?.facts;
  if (last === undefined) return undefined;
  const details = {
    hint: `${vm} goes on where it is. \`understudy events ${vm}\` has more.`,
    facts: { vm },
  };
  if (FINAL.includes(last.code))
    return new KeeperError(last.code as KeeperErrorCode, String(last.error), details);
  const alike = failures.filter(({ facts }) => facts.code === last.code).length;
  if (!OF_THE_SITE.includes(last.code) && !(REPEATED.includes(last.code) && alike >= REFUSALS_MAX))
    return undefined;
  const cause = last.code === 'KEEPER_PEER_REFUSED' ? '' : ` (${last.code})`;
  return new KeeperError('KEEPER_PEER_REFUSED', `${last.error}${cause}`, details);
}
