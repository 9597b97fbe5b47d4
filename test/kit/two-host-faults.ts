import { type Roughness, RoughWire } from './rough-wire.ts';
import type { HostName, TwoHosts } from './two-hosts.ts';

/** Where the VM acts, and where its shadow is. */
export interface Roles {
  readonly here: HostName;
  readonly there: HostName;
}

interface Scene extends Roles {
  readonly hosts: TwoHosts;
  readonly random: () => number;
}

type Undo = () => void | Promise<void>;

interface Fault {
  /**
   * What it may cost. A VM outlives the loss of one of its two copies, so that two faults at once must not cost both:
   * `either` may end either of them, by who is quicker, `late` the one that acts, but not before some time.
   */
  readonly costs: 'primary' | 'late' | 'shadow' | 'either' | 'nothing';
  readonly strike: (scene: Scene) => Undo | Promise<Undo>;
}

/** Processes of one side. */
type Part = 'keeper' | 'qemu' | 'site' | 'host';

const done: Undo = () => {};

function pidsOf(hosts: TwoHosts, host: HostName, part: Part): number[] {
  const site = hosts.sitePid(host);
  const sites = site === undefined ? [] : [site];
  switch (part) {
    case 'keeper':
      return [hosts.keeperPid(host)];
    case 'qemu':
      return hosts.qemuPids(host);
    case 'site':
      return sites;
    case 'host':
      return [hosts.keeperPid(host), ...hosts.qemuPids(host), ...sites];
  }
}

/** To all of them that there are yet. */
function signal(pids: readonly number[], name: NodeJS.Signals): void {
  for (const pid of pids) {
    try {
      process.kill(pid, name);
    } catch (thrown) {
      if ((thrown as NodeJS.ErrnoException).code !== 'ESRCH') throw thrown;
    }
  }
}

/** Two faults at once may both want the same one replaced. */
let replacing: Promise<void> = Promise.resolve();

/** By one that comes after whatever became of the one before. */
function replaceSite(hosts: TwoHosts, host: HostName): Promise<void> {
  const replaced = replacing.then(async () => {
    await hosts.endSite(host);
    await hosts.startSite(host);
  });
  replacing = replaced.catch(() => {});
  return replaced;
}

function kill(role: keyof Roles, part: Part, costs: Fault['costs']): Fault {
  return {
    costs,
    strike: ({ hosts, [role]: host }) => {
      signal(pidsOf(hosts, host, part), 'SIGKILL');
      return part === 'site' || part === 'host' ? () => replaceSite(hosts, host) : done;
    },
  };
}

/** It comes back, and knows of nothing. */
function halt(role: keyof Roles, part: Part, costs: Fault['costs']): Fault {
  return {
    costs,
    strike: ({ hosts, [role]: host }) => {
      const pids = pidsOf(hosts, host, part);
      signal(pids, 'SIGSTOP');
      return () => signal(pids, 'SIGCONT');
    },
  };
}

function cut(costs: Fault['costs'], act: (scene: Scene) => Promise<void>): Fault {
  return {
    costs,
    strike: async (scene) => {
      await act(scene);
      return () => scene.hosts.mend();
    },
  };
}

/** Several short ones, none of which is as long as silence may be. */
function flapping(what: (scene: Scene) => Promise<void>): Fault {
  return {
    costs: 'either',
    strike: async (scene) => {
      for (let round = 0; round < 4; round += 1) {
        await what(scene);
        await new Promise((resolve) => setTimeout(resolve, 50 + scene.random() * 300));
        await scene.hosts.mend();
        await new Promise((resolve) => setTimeout(resolve, scene.random() * 200));
      }
      return done;
    },
  };
}

function rough(roughness: Roughness): Fault {
  return {
    costs: 'either',
    strike: ({ hosts, random }) => {
      const endOf = (host: HostName) => ({ netns: hosts.netns(host), addresses: hosts.addressesOf(host) });
      const wire = new RoughWire([endOf('a'), endOf('b')], roughness, random);
      return () => wire[Symbol.dispose]();
    },
  };
}

/** Dies again while its successor is being made. */
const killShadowTwice: Fault = {
  costs: 'shadow',
  strike: async ({ hosts, there, random }) => {
    const first = hosts.keeperPid(there);
    signal(pidsOf(hosts, there, 'keeper'), 'SIGKILL');
    const second = await hosts.eventually('another keeper of a shadow', () => {
      const pid = hosts.keeperPid(there);
      return pid === first ? undefined : pid;
    });
    await new Promise((resolve) => setTimeout(resolve, random() * 500));
    signal([second], 'SIGKILL');
    return done;
  },
};

const etcdHalts: Fault = {
  costs: 'nothing',
  strike: ({ hosts }) => {
    hosts.signalEtcd('SIGSTOP');
    return () => hosts.signalEtcd('SIGCONT');
  },
};

/** What can go wrong on two hosts and between them. */
export const FAULTS: Readonly<Record<string, Fault>> = {
  'kill QEMU': kill('here', 'qemu', 'primary'),
  'kill keeper': kill('here', 'keeper', 'primary'),
  'kill host': kill('here', 'host', 'primary'),
  'kill site': kill('here', 'site', 'nothing'),
  "kill shadow's QEMU": kill('there', 'qemu', 'shadow'),
  "kill shadow's keeper": kill('there', 'keeper', 'shadow'),
  "kill shadow's host": kill('there', 'host', 'shadow'),
  "kill shadow's site": kill('there', 'site', 'nothing'),
  "kill shadow's keeper, and the next one": killShadowTwice,
  'stop QEMU': halt('here', 'qemu', 'late'),
  'stop keeper': halt('here', 'keeper', 'primary'),
  'stop host': halt('here', 'host', 'primary'),
  'stop site': halt('here', 'site', 'nothing'),
  "stop shadow's QEMU": halt('there', 'qemu', 'shadow'),
  "stop shadow's keeper": halt('there', 'keeper', 'shadow'),
  "stop shadow's host": halt('there', 'host', 'shadow'),
  "stop shadow's site": halt('there', 'site', 'nothing'),
  'cut peers': cut('either', ({ hosts }) => hosts.cutPeers()),
  'cut peers from the VM': cut('either', ({ hosts, here }) => hosts.cutPeers(here)),
  'cut peers from the shadow': cut('either', ({ hosts, there }) => hosts.cutPeers(there)),
  'cut LAN': cut('nothing', ({ hosts, here }) => hosts.cutLan(here)),
  "cut shadow's LAN": cut('nothing', ({ hosts, there }) => hosts.cutLan(there)),
  'cut all of the host': cut('primary', async ({ hosts, here }) => {
    await hosts.cutLan(here);
    await hosts.cutPeers();
  }),
  "cut all of the shadow's host": cut('shadow', async ({ hosts, there }) => {
    await hosts.cutLan(there);
    await hosts.cutPeers();
  }),
  'peers flap': flapping(({ hosts }) => hosts.cutPeers()),
  'LAN flaps': flapping(({ hosts, here }) => hosts.cutLan(here)),
  'loss of 10 %': rough({ lossShare: 0.1 }),
  'delay of 40 ms': rough({ delayMs: 40 }),
  'jitter of 30 ms': rough({ delayMs: 5, jitterMs: 30 }),
  'loss, jitter and doubles': rough({ lossShare: 0.03, doubledShare: 0.1, jitterMs: 10 }),
  'stop etcd': etcdHalts,
  'kill etcd': {
    costs: 'nothing',
    strike: async ({ hosts }) => {
      await hosts.restartEtcd();
      return done;
    },
  },
  move: {
    costs: 'nothing',
    strike: async ({ hosts, here }) => {
      await hosts.cli(here, 'promote', hosts.vm);
      return done;
    },
  },
};

/** One of a round: which, how long after the round began, and for how long. */
interface PlannedFault {
  readonly name: string;
  readonly afterMs: number;
  readonly forMs: number;
}

export type PlannedRound = readonly PlannedFault[];

const HOLD_MS_MAX = 4000;
/** Quicker than anything is noticed. */
const APART_MS_MAX = 250;
const PAIR_SHARE = 0.35;

/** They do not combine: what undoes one of them undoes another one, or they take each other's way. */
const BY_THEMSELVES = new Set(['move', 'peers flap', 'LAN flaps', "kill shadow's keeper, and the next one"]);

function mayMeet(one: string, other: string): boolean {
  if (one === other || BY_THEMSELVES.has(one) || BY_THEMSELVES.has(other)) return false;
  const costs = [FAULTS[one]?.costs, FAULTS[other]?.costs];
  const has = (...kinds: Fault['costs'][]) => kinds.every((kind) => costs.includes(kind));
  if (has('shadow', 'primary') || has('shadow', 'late') || has('either', 'late')) return false;
  return costs[0] !== costs[1] || costs[0] === 'nothing' || costs[0] === 'primary' || costs[0] === 'shadow';
}

/** Decided by `random` alone, before anything happens: a seed gives the same rounds each time. */
export function planRounds(count: number, random: () => number): PlannedRound[] {
  const names = Object.keys(FAULTS);
  // Each kind once before any comes again.
  let bag: string[] = [];
  const draw = (fits: (name: string) => boolean) => {
    if (bag.length === 0) bag = names.toSorted((one, other) => one.localeCompare(other));
    const fitting = bag.filter(fits);
    const name = fitting[Math.floor(random() * fitting.length)];
    bag = bag.filter((each) => each !== name);
    return name;
  };
  const rounds: PlannedRound[] = [];
  while (rounds.length < count) {
    const first = draw(() => true) as string;
    const second = random() < PAIR_SHARE ? draw((name) => mayMeet(first, name)) : undefined;
    const struck = [first, ...(second === undefined ? [] : [second])];
    rounds.push(
      struck.map((name, index) => ({
        name,
        afterMs: Math.round(index * random() * APART_MS_MAX),
        forMs: Math.round(100 + random() ** 2 * HOLD_MS_MAX),
      })),
    );
  }
  return rounds;
}

export function describeRound(round: PlannedRound): string {
  return round
    .map(({ name, afterMs, forMs }) => `${name} after ${afterMs} ms for ${forMs} ms`)
    .join(', and ');
}

/** Lets all faults of a round happen, and undoes them. */
export async function strike(round: PlannedRound, scene: Scene): Promise<void> {
  const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
  await Promise.all(
    round.map(async ({ name, afterMs, forMs }) => {
      const fault = FAULTS[name];
      if (fault === undefined) throw new Error(`there is no fault ${name}`);
      await sleep(afterMs);
      const undo = await fault.strike(scene);
      await sleep(forMs);
      await undo();
    }),
  );
}
