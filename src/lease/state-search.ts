import { messageOf } from '../base/errors.ts';
import { type Host, type Message, Player, type Rules, Violation, type World } from './lease-model.ts';
import { movesOf } from './lease-model-moves.ts';
import type { LeaseState } from './lease-state.ts';

export interface Found {
  readonly statesCount: number;
  readonly isComplete: boolean;
  /** How it came to what must not happen: the shortest way. */
  readonly trace: readonly string[] | undefined;
}

interface Node {
  readonly world: World;
  readonly parent: number;
  readonly label: string;
}

export interface SearchOptions {
  readonly rules: Rules;
  readonly statesMax: number;
  /** Looks at a world that was found; what it throws is a violation too. */
  readonly visit?: (world: World, index: number) => void;
}

/** Breadth first through everything that may follow from a world. */
export function search(start: World, { rules, statesMax, visit }: SearchOptions): Found {
  const keys = new KeyMaker();
  const seen = new Set([keys.keyOf(start)]);
  const nodes: Node[] = [{ world: start, parent: -1, label: 'start' }];
  for (let index = 0; index < nodes.length && nodes.length <= statesMax; index += 1) {
    const node = nodes[index];
    if (node === undefined) break;
    try {
      visit?.(node.world, index);
    } catch (thrown) {
      if (!(thrown instanceof Violation)) throw thrown;
      const trace = [...traceOf(nodes, index), '(what is looked at from here)', `▸ ${thrown.message}`];
      return { statesCount: nodes.length, isComplete: false, trace };
    }
    for (const { label, play } of movesOf(node.world, rules)) {
      const player = new Player(node.world, rules);
      try {
        play(player);
        player.observe();
      } catch (thrown) {
        if (!(thrown instanceof Violation))
          throw new Error(traceOf(nodes, index).join('\n'), { cause: thrown });
        const trace = [...traceOf(nodes, index), label, `▸ ${messageOf(thrown)}`];
        return { statesCount: nodes.length, isComplete: false, trace };
      }
      const world = pruned(player.world);
      const key = keys.keyOf(world);
      if (seen.has(key)) continue;
      seen.add(key);
      nodes.push({ world, parent: index, label });
    }
  }
  return { statesCount: nodes.length, isComplete: nodes.length <= statesMax, trace: undefined };
}

function traceOf(nodes: readonly Node[], index: number): string[] {
  const labels: string[] = [];
  for (let at = index; at > 0; ) {
    const node = nodes[at];
    if (node === undefined) break;
    labels.push(node.label);
    at = node.parent;
  }
  return labels.reverse();
}

/** Without messages that can change nothing any more, whenever they arrive: fewer worlds that differ. */
function pruned(world: World): World {
  const wire = world.wire.filter((message) => matters(world, message));
  return wire.length === world.wire.length ? world : { ...world, wire };
}

function matters({ hosts, revision, record }: World, message: Message): boolean {
  switch (message.kind) {
    case 'swap':
      return (
        message.expectedRevision >= revision ||
        hosts[message.from]?.lease.pending?.expectedRevision === message.expectedRevision
      );
    case 'renew':
      return record?.token === message.token || hosts[message.from]?.lease.token === message.token;
    case 'epoch':
      return hosts[message.to]?.copy?.id === message.copy;
    case 'ack':
      return hosts[message.to]?.run?.copy === message.copy;
    case 'answer': {
      const lease = hosts[message.to]?.lease;
      const { fact } = message;
      if (fact.kind === 'swap-answered') return lease?.pending?.expectedRevision === fact.expectedRevision;
      return fact.kind === 'renewed' || fact.kind === 'renewal-refused' ? lease?.token === fact.token : true;
    }
    default:
      return true;
  }
}

/** Worlds as short strings: parts that many worlds share are numbered once. */
class KeyMaker {
  readonly #numbers = new Map<string, number>();
  readonly #known = new WeakMap<object, number>();

  keyOf({
    hosts,
    record,
    wire,
    revision,
    holdTicks,
    line,
    released,
    staleCopy,
    copies,
    isWanted,
    budget,
  }: World): string {
    const messages = wire.map((message) => this.#number(message)).sort();
    const parts = [
      ...hosts.map((host) => this.#hostKey(host)),
      record === undefined ? '' : this.#number(record),
    ];
    const figures = [
      revision,
      holdTicks,
      line,
      released,
      staleCopy,
      copies,
      Number(isWanted),
      this.#number(budget),
    ];
    return `${parts.join(',')};${figures.join(',')};${messages.join(',')}`;
  }

  #hostKey({ lease, condition, run, copy, saved, gate, heardMs = 0 }: Host): string {
    const body = run === undefined ? '' : this.#number(run);
    return `${this.#number(lease as LeaseState)}.${condition}.${gate}.${heardMs}.${body}.${[copy, saved].map((part) => (part === undefined ? '' : this.#number(part))).join('.')}`;
  }

  #number(part: object): number {
    const known = this.#known.get(part);
    if (known !== undefined) return known;
    const text = JSON.stringify(part);
    const number = this.#numbers.get(text) ?? this.#numbers.size;
    this.#numbers.set(text, number);
    this.#known.set(part, number);
    return number;
  }
}
