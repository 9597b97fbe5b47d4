import type { Host, Message, Player, Rules, Run, World } from './lease-model.ts';
import { NAMES, NOW_MS, SILENCE_MIN_MS } from './lease-model.ts';
import type { LeaseFact, LeaseState } from './lease-state.ts';

/** Something that may happen next. */
export interface Move {
  readonly label: string;
  readonly play: (player: Player) => void;
}

/** Everything that may happen in this world. */
export function movesOf(world: World, { mayVouch }: Pick<Rules, 'mayVouch'>): Move[] {
  const moves: Move[] = [];
  const { budget } = world;
  if (budget.ticks > 0) moves.push(spending('ticks', 'time passes', (player) => player.passTime()));
  for (const message of world.wire) moves.push(...deliveries(world, message));
  for (const index of [0, 1]) {
    const host = world.hosts[index];
    if (host === undefined) continue;
    moves.push(...faults(world, host, index));
    if (host.condition === 'up') moves.push(...life(world, host, { index, mayVouch }));
  }
  return moves;
}

function spending(name: Parameters<Player['spend']>[0], label: string, play: (player: Player) => void): Move {
  return {
    label,
    play: (player) => {
      player.spend(name);
      play(player);
    },
  };
}

export function deliveries(world: World, message: Message): Move[] {
  const { budget } = world;
  if ('from' in message) {
    const who = NAMES[message.from] ?? 'somebody who is dead';
    const isListening = world.hosts[message.from]?.condition === 'up';
    if (message.kind === 'read') {
      if (!isListening) return [];
      const moves = [{ label: `${who} reads`, play: (player: Player) => read(player, message) }];
      if (budget.unreachable > 0)
        moves.push(
          spending('unreachable', `${who} fails to read`, (player) => {
            player.take(message);
            player.tell(message.from, { kind: 'read-failed' });
          }),
        );
      return moves;
    }
    const what = message.kind === 'swap' ? describe(message) : `renewal of ${message.token}`;
    const moves = [
      {
        label: `the store gets from ${who}: ${what}`,
        play: (player: Player) => carryOut(player, message, false),
      },
    ];
    if (budget.duplicates > 0 && message.kind === 'swap' && message.isEcho !== true)
      moves.push(
        spending('duplicates', `the store gets from ${who}, and will again: ${what}`, (player) =>
          carryOut(player, message, true),
        ),
      );
    if (budget.unreachable > 0 && message.kind === 'swap' && isListening && message.isEcho !== true)
      moves.push(
        spending('unreachable', `${who} cannot send: ${what}`, (player) => {
          player.take(message);
          const { expectedRevision } = message;
          player.tell(message.from, {
            kind: 'swap-answered',
            expectedRevision,
            outcome: { kind: 'unreachable' },
          });
        }),
      );
    return moves;
  }
  if (world.hosts[message.to]?.condition !== 'up') return [];
  const name = NAMES[message.to] ?? '';
  switch (message.kind) {
    case 'answer':
      return [
        {
          label: `${name} hears: ${describeFact(message.fact)}`,
          play: (player) => {
            player.take(message);
            player.tell(message.to, message.fact);
          },
        },
      ];
    case 'epoch':
      // They come in order, and one that may not be acknowledged waits.
      if (!isNextEpoch(world, message)) return [];
      return [{ label: `${name} gets epoch ${message.epoch}`, play: (player) => getEpoch(player, message) }];
    case 'dismissal':
      return [
        {
          label: `${name} hears that copy ${message.copy} was let go`,
          play: (player) => {
            player.take(message);
            player.tell(message.to, { kind: 'shadow-dismissed', copy: message.copy });
          },
        },
      ];
    case 'ack':
      return [
        {
          label: `${name} gets the acknowledgement of ${message.epoch}`,
          play: (player) => getAck(player, message),
        },
      ];
    default:
      return [];
  }
}

function isNextEpoch({ hosts }: World, { to, copy, epoch }: Extract<Message, { kind: 'epoch' }>): boolean {
  const held = hosts[to]?.copy;
  return held?.id === copy && held.epoch + 1 === epoch;
}

function read(player: Player, message: Extract<Message, { kind: 'read' }>): void {
  player.take(message);
  player.tell(message.from, { kind: 'read', stored: player.stored() });
}

function carryOut(
  player: Player,
  message: Extract<Message, { kind: 'swap' | 'renew' }>,
  comesAgain: boolean,
): void {
  player.take(message);
  if (comesAgain && message.kind === 'swap') player.send({ ...message, isEcho: true });
  if (message.kind === 'swap') {
    const outcome = player.swap(message);
    if (message.from < 0) return;
    const { expectedRevision } = message;
    player.send({
      kind: 'answer',
      to: message.from,
      fact: { kind: 'swap-answered', expectedRevision, outcome },
    });
    return;
  }
  const { token, sentAtMs } = message;
  const { record, holdTicks } = player.world;
  const isHeld = record?.token === token && record.mode === 'alone' && holdTicks > 0;
  if (isHeld) player.renewHold();
  const fact: LeaseFact = isHeld ? { kind: 'renewed', token, sentAtMs } : { kind: 'renewal-refused', token };
  player.send({ kind: 'answer', to: message.from, fact });
}

function getEpoch(player: Player, message: Extract<Message, { kind: 'epoch' }>): void {
  const { lease, copy } = player.host(message.to);
  if (copy === undefined || !player.rules.mayAcknowledge(lease, message)) return;
  player.take(message);
  player.setHost(message.to, { copy: { ...copy, epoch: message.epoch } });
  const { run } = player.host(1 - message.to);
  if (run?.copy === copy.id) player.setHost(1 - message.to, { run: { ...run, known: message.epoch } });
  player.send({ kind: 'ack', to: 1 - message.to, copy: message.copy, epoch: message.epoch });
}

function getAck(player: Player, message: Extract<Message, { kind: 'ack' }>): void {
  player.take(message);
  const { to, copy, epoch } = message;
  const { run } = player.host(to);
  if (run === undefined || run.copy !== copy) return;
  player.setHost(to, { run: { ...run, acknowledged: Math.max(run.acknowledged, epoch) } });
  player.tell(to, { kind: 'epoch-acknowledged', copy, epoch });
}

/** What goes wrong. */
function faults({ budget, record, hosts }: World, host: Host, index: number): Move[] {
  const name = NAMES[index] ?? '';
  const moves: Move[] = [];
  const tell = (fact: LeaseFact) => (player: Player) => player.tell(index, fact);
  if (host.condition === 'down') {
    moves.push({
      label: `${name} is started again`,
      play: (player) => player.setHost(index, { condition: 'up' }),
    });
    return moves;
  }
  if (budget.crashes > 0) moves.push(spending('crashes', `${name} crashes`, (player) => player.crash(index)));
  if (host.condition === 'paused') {
    moves.push({ label: `${name} goes on`, play: (player) => player.setHost(index, { condition: 'up' }) });
    return moves;
  }
  if (budget.pauses > 0)
    moves.push(
      spending('pauses', `${name} is stopped (SIGSTOP)`, (player) =>
        player.setHost(index, { condition: 'paused' }),
      ),
    );
  const { lease } = host;
  if (budget.unanswered > 0 && lease.pending !== undefined && !lease.pending.isWaiting) {
    const { expectedRevision } = lease.pending;
    moves.push(
      spending(
        'unanswered',
        `${name} gets no answer to its write`,
        tell({ kind: 'swap-answered', expectedRevision, outcome: { kind: 'unknown' } }),
      ),
    );
  }
  if (budget.alarms > 0 && !lease.isPeerLost && caresForPeer(lease) && isSilent(host))
    moves.push(spending('alarms', `${name} hears no heartbeat`, tell({ kind: 'peer-lost' })));
  if (lease.isPeerLost && hosts[1 - index]?.condition === 'up' && budget.alarms > 0)
    moves.push(spending('alarms', `${name} hears heartbeats again`, tell({ kind: 'peer-back' })));
  if (budget.proofs > 0 && hosts[1 - index]?.condition === 'down' && record !== undefined)
    moves.push(
      spending(
        'proofs',
        `${name} is shown that the other is off`,
        tell({ kind: 'peer-proven-dead', token: record.token }),
      ),
    );
  return moves;
}

function isSilent({ heardMs }: Host): boolean {
  return heardMs === undefined || NOW_MS - heardMs >= SILENCE_MIN_MS;
}

function caresForPeer({ phase }: LeaseState): boolean {
  return phase === 'shadow' || phase === 'in-sync' || phase === 'closing' || phase === 'joining';
}

/** What goes as it should. */
function life(
  { budget, hosts, copies, record }: World,
  { lease, run }: Host,
  { index, mayVouch }: Pick<Rules, 'mayVouch'> & { index: number },
): Move[] {
  const name = NAMES[index] ?? '';
  const other = hosts[1 - index];
  if (budget.ends > 0 && record?.mode === 'ended' && lease.phase === 'idle' && !lease.isStartWanted)
    return [
      spending('ends', `${name} is told to start the VM`, (player) => {
        player.change({ isWanted: true });
        player.tell(index, { kind: 'start-wanted' });
      }),
    ];
  const moves: Move[] = [];
  if (budget.dismissals > 0 && lease.phase === 'shadow' && lease.copy !== undefined)
    moves.push(spending('dismissals', `${name} lets its copy go`, (player) => letGo(player, index)));
  if (run === undefined || other === undefined) return moves;
  if (budget.heirs > 0 && lease.phase !== 'stopping')
    moves.push(
      spending('heirs', `the keeper on ${name} is followed by another one`, (player) =>
        player.succeedKeeper(index),
      ),
    );
  if (lease.suspended !== undefined && lease.savedState === 'as-before')
    moves.push({
      label: `${name} completes the state ${lease.suspended}, and the VM ends`,
      play: (player) => complete(player, index, { run, token: lease.suspended ?? 0 }),
    });
  if (lease.body !== 'runs') return moves;
  if (budget.ends > 0)
    moves.push(
      spending('ends', `the VM on ${name} powers off`, (player) => {
        player.setHost(index, { run: undefined, gate: 'nothing' });
        player.tell(index, { kind: 'vm-ended', keepsState: false });
      }),
    );
  moves.push(...suspensions(budget, { lease, name }, index));
  const { copy } = run;
  const isHeard = other.condition === 'up' && copy !== undefined && other.copy?.id === copy;
  if (budget.heartbeats > 0 && isHeard && mayVouch(other.lease))
    moves.push(
      spending('heartbeats', `${name} is heard by its shadow, and learns so`, (player) =>
        player.hearHeartbeat(index, copy),
      ),
    );
  if (budget.cuts > 0 && run.copy !== undefined)
    moves.push(spending('cuts', `${name} cuts epoch ${run.open}`, (player) => cut(player, index, run)));
  const isFree = other.lease.phase === 'idle' || other.lease.phase === 'shadow';
  if (budget.copies > 0 && lease.phase === 'alone' && other.condition === 'up' && isFree)
    moves.push(
      spending('copies', `${name} copies the VM to ${NAMES[1 - index]}`, (player) =>
        copyOver(player, index, { run, copy: copies + 1, token: lease.token }),
      ),
    );
  if (other.condition === 'up' && lease.phase === 'alone' && other.lease.token < lease.token)
    moves.push({
      label: `${name} tells the other that it acts`,
      play: (player) => player.tell(1 - index, { kind: 'peer-told', token: lease.token, holder: name }),
    });
  return moves;
}

/** The guest stands still, or runs again: the state of before is used, or did not come about. */
function suspensions(
  budget: World['budget'],
  { lease, name }: { lease: LeaseState; name: string },
  index: number,
): Move[] {
  const moves: Move[] = [];
  if (budget.suspensions > 0 && lease.savedState !== 'kept')
    moves.push(
      spending('suspensions', `${name} is about to suspend the VM`, (player) =>
        player.tell(index, { kind: 'suspending' }),
      ),
    );
  const isInDoubt = lease.suspended !== undefined || lease.savedState === 'kept';
  if (isInDoubt && lease.savedState !== 'gone')
    moves.push({
      label: `${name} has no state any more`,
      play: (player) => player.tell(index, { kind: 'state-gone' }),
    });
  return moves;
}

function complete(player: Player, index: number, { run, token }: { run: Run; token: number }): void {
  const saved = { line: run.line, epoch: run.open, token };
  player.setHost(index, { run: undefined, gate: 'nothing', saved });
  player.tell(index, { kind: 'vm-ended', keepsState: true });
}

function letGo(player: Player, index: number): void {
  const { lease } = player.host(index);
  player.setHost(index, { copy: undefined });
  player.tell(index, { kind: 'copy-lost' });
  player.send({ kind: 'dismissal', to: 1 - index, copy: lease.copy ?? 0 });
}

export function cut(player: Player, index: number, run: NonNullable<Host['run']>): void {
  const { token } = player.host(index).lease;
  player.setHost(index, { run: { ...run, open: run.open + 1 } });
  player.send({ kind: 'epoch', to: 1 - index, copy: run.copy ?? 0, epoch: run.open, token });
}

function copyOver(
  player: Player,
  index: number,
  { run, copy, token }: { run: NonNullable<Host['run']>; copy: number; token: number },
): void {
  const other = 1 - index;
  player.change({ copies: copy });
  player.tell(other, { kind: 'copy-begun', copy, token });
  if (player.host(other).lease.copy !== copy) return;
  player.setHost(other, { copy: { id: copy, line: run.line, epoch: run.open - 1 } });
  player.setHost(index, { run: { ...run, copy, acknowledged: run.open - 1, known: run.open - 1 } });
  player.tell(index, { kind: 'shadow-ready', host: NAMES[other] ?? '', copy, epoch: run.open });
}

function describe({ expectedRevision, record, onlyIfUnheld }: Extract<Message, { kind: 'swap' }>): string {
  const { token, holder, mode, shadow } = record;
  const behind = shadow === undefined ? 'no shadow' : `shadow ${shadow.host} ${shadow.state}`;
  return `${expectedRevision} → token ${token}, ${holder} ${mode}, ${behind}${onlyIfUnheld ? ', if unheld' : ''}`;
}

function describeFact(fact: LeaseFact): string {
  return fact.kind === 'swap-answered'
    ? `${fact.outcome.kind} (write after ${fact.expectedRevision})`
    : fact.kind;
}
