import { NAMES, Player, type Rules, TTL_TICKS, Violation, type World } from './lease-model.ts';
import { cut, deliveries } from './lease-model-moves.ts';
import { isSuspendedElsewhere } from './lease-record.ts';

const ROUNDS = 4 * TTL_TICKS + 8;
const NO_MORE = {
  ticks: 0,
  alarms: 0,
  unanswered: 0,
  unreachable: 0,
  duplicates: 0,
  crashes: 0,
  pauses: 0,
  cuts: 0,
  copies: 0,
  proofs: 0,
  ends: 0,
  suspensions: 0,
  dismissals: 0,
  heartbeats: 0,
  heirs: 0,
};

/** Who is there when everything calms down. */
export type Survivors = 'both' | 'A' | 'B';

/**
 * Nothing goes wrong any more: the store answers, messages arrive, survivors run, and detectors say what is true. Then
 * somebody has to act in the end, or `unclaimable` says why no machine may decide it.
 * @throws Violation
 */
export function calmDown(world: World, { survivors, rules }: { survivors: Survivors; rules: Rules }): void {
  const player = new Player({ ...world, budget: NO_MORE }, rules);
  for (const index of [0, 1]) {
    const { condition } = player.host(index);
    const stays = survivors === 'both' || survivors === NAMES[index];
    if (!stays && condition !== 'down') player.crash(index);
    if (stays) player.setHost(index, { condition: 'up' });
  }
  for (let round = 0; round < ROUNDS; round += 1) {
    deliverAll(player);
    detect(player);
    deliverAll(player);
    if (isServed(player)) return;
    for (const index of [0, 1]) {
      const { lease, run } = player.host(index);
      if (lease.phase === 'closing' && run !== undefined) cut(player, index, run);
    }
    player.passTime();
    player.observe();
  }
  if (survivors !== 'both' && isUnclaimable(player.world, survivors)) {
    confirm(player, survivors);
    return;
  }
  throw new Violation(`nobody acts in the end, with ${survivors} up and the store there`);
}

/** In sync on record, and the only host that is left has no copy: only proof that the other one is off helps. */
function isUnclaimable({ record }: World, survivor: 'A' | 'B'): boolean {
  if (record === undefined) return false;
  // So is what lies on the disk of one that is gone.
  if (isSuspendedElsewhere(record, survivor)) return true;
  return record.mode === 'in-sync' && (record.holder !== survivor || record.shadow?.state === 'fresh');
}

function confirm(player: Player, survivor: 'A' | 'B'): void {
  const index = survivor === 'A' ? 0 : 1;
  player.tell(index, { kind: 'peer-proven-dead', token: player.world.record?.token ?? 0 });
  for (let round = 0; round < ROUNDS; round += 1) {
    deliverAll(player);
    if (isServed(player)) return;
    player.passTime();
  }
  throw new Violation(`${survivor} does not act though the other is proven dead`);
}

function deliverAll(player: Player): void {
  for (let count = 0; count < 50; count += 1) {
    const before = player.world;
    for (const message of before.wire) {
      const [move] = player.world.wire.includes(message) ? deliveries(player.world, message) : [];
      move?.play(player);
      player.observe();
    }
    if (player.world.wire === before.wire) return;
  }
  throw new Violation('messages go round and round');
}

function detect(player: Player): void {
  for (const index of [0, 1]) {
    const { condition, lease, run } = player.host(index);
    const other = player.host(1 - index);
    if (condition !== 'up') continue;
    const follows = lease.phase === 'shadow' && other.run?.copy === lease.copy && other.condition === 'up';
    const isFollowed = run !== undefined && other.lease.phase === 'shadow' && other.lease.copy === run.copy;
    if (follows || isFollowed) {
      if (lease.isPeerLost) player.tell(index, { kind: 'peer-back' });
    } else if (!lease.isPeerLost) {
      player.tell(index, { kind: 'peer-lost' });
    }
  }
}

/** A VM releases everything, or what a shadow acknowledges that does acknowledge. */
function isServed(player: Player): boolean {
  // Or it has ended, and none of those who are there was told to start it.
  const { record } = player.world;
  const isTold = [0, 1].some((index) => {
    // Who was told so and has not its state does not start it.
    const isRefused = record !== undefined && isSuspendedElsewhere(record, NAMES[index] ?? '');
    return player.host(index).lease.isStartWanted && !isRefused;
  });
  if (record?.mode === 'ended' && !isTold) return true;
  return [0, 1].some((index) => {
    const { condition, lease, run } = player.host(index);
    const other = player.host(1 - index);
    if (condition !== 'up' || run === undefined || lease.body !== 'runs') return false;
    if (lease.phase === 'alone') return true;
    return (
      lease.phase === 'in-sync' &&
      other.lease.phase === 'shadow' &&
      run.copy !== undefined &&
      other.lease.copy === run.copy
    );
  });
}
