/** What a host says of itself to another one that looks for a place. */
export interface HostResources {
  /** What programs may still take. */
  readonly memoryFreeBytes: number;
  readonly memoryTotalBytes: number;
  /** Free in the file system that guest memory lies in, without what VMs there were promised and have not used yet. */
  readonly roomFreeBytes: number;
  readonly cpus: number;
  /** Processes that want to run, on average of the last minute. */
  readonly load: number;
  /** Shadows of VMs that act elsewhere. */
  readonly shadows: number;
  /** Names of the VMs that it houses, acting or as shadows, and the words that these keep away from. */
  readonly vms: readonly { readonly name: string; readonly antiAffinity: readonly string[] }[];
  /** Of site.yaml: what it has in common with other hosts that may fail together with it, such as its rack. */
  readonly labels: Readonly<Record<string, string>>;
  readonly isInMaintenance: boolean;
}

export interface Candidate {
  readonly host: string;
  /** Undefined: it gave no answer, or is of a release that does not know the question. */
  readonly resources: HostResources | 'unasked' | undefined;
  /** It turned this shadow away a short while ago, or could not be reached. */
  readonly hasRefused: boolean;
  /** Why it is left alone for a while: it failed the VM, and would do so again. */
  readonly failure?: string | undefined;
}

/** The shadow that looks for a place. */
export interface WantedPlace {
  readonly vm: string;
  /** What it may come to need. */
  readonly neededBytes: number;
  /** Names of VMs, or words that other VMs have in common with it, with which it shall not be on one host. */
  readonly antiAffinity: readonly string[];
  /** Of the host that the VM acts on. */
  readonly labels: Readonly<Record<string, string>>;
}

/** `failing`, `maintenance` and `no-room` are not asked for a place. */
export type Verdict = 'fits' | 'unasked' | 'unknown' | 'refused' | 'failing' | 'no-room' | 'maintenance';

/** A candidate, and all that its place in the order was made from. */
export interface RankedHost {
  readonly host: string;
  readonly verdict: Verdict;
  /** VMs on it that this one keeps away from. */
  readonly conflicts: readonly string[];
  /** Labels, as `rack=1`, that it has in common with the host that the VM acts on. */
  readonly shared: readonly string[];
  /** Of memory or of CPU time, whichever is less, once the shadow is there: 0 … 1. Null where that is not known. */
  readonly freeShare: number | null;
  readonly shadows: number | null;
  /** Of one that is `failing`. */
  readonly failure?: string;
}

const ORDER: readonly Verdict[] = [
  'fits',
  'unasked',
  'unknown',
  'refused',
  'failing',
  'no-room',
  'maintenance',
];

/**
 * The candidates, best first: those that have room; among them those without a VM to keep away from, then those with the
 * fewest labels in common with the VM's own host, then those with the most left. What makes no difference is left as it
 * was given.
 */
export function rankHosts(candidates: readonly Candidate[], wanted: WantedPlace): RankedHost[] {
  return candidates.map((candidate) => judge(candidate, wanted)).sort(compare);
}

export function mayBeAsked({ verdict }: RankedHost): boolean {
  return verdict !== 'failing' && verdict !== 'no-room' && verdict !== 'maintenance';
}

function judge({ host, resources, hasRefused, failure }: Candidate, wanted: WantedPlace): RankedHost {
  if (failure !== undefined)
    return { host, verdict: 'failing', failure, conflicts: [], shared: [], freeShare: null, shadows: null };
  if (resources === undefined || resources === 'unasked') {
    const verdict = hasRefused ? 'refused' : (resources ?? 'unknown');
    return { host, verdict, conflicts: [], shared: [], freeShare: null, shadows: null };
  }
  const { memoryFreeBytes, roomFreeBytes, memoryTotalBytes, cpus, load, labels } = resources;
  const leftBytes = Math.min(memoryFreeBytes, roomFreeBytes) - wanted.neededBytes;
  const memoryShare = leftBytes / Math.max(1, memoryTotalBytes);
  const cpuShare = 1 - load / Math.max(1, cpus);
  return {
    host,
    verdict: resources.isInMaintenance
      ? 'maintenance'
      : leftBytes < 0
        ? 'no-room'
        : hasRefused
          ? 'refused'
          : 'fits',
    conflicts: conflictsOf(resources, wanted),
    shared: Object.entries(labels)
      .filter(([label, value]) => Object.hasOwn(wanted.labels, label) && wanted.labels[label] === value)
      .map(([label, value]) => `${label}=${value}`),
    // A hundredth more or less is chance, and no reason to prefer one to the other.
    freeShare: Math.round(100 * Math.min(1, Math.max(0, Math.min(memoryShare, cpuShare)))) / 100,
    // What the VM itself left there is no burden: it is where the next copy needs the least.
    shadows: Math.max(0, resources.shadows - (resources.vms.some(({ name }) => name === wanted.vm) ? 1 : 0)),
  };
}

function conflictsOf({ vms }: HostResources, { vm, antiAffinity }: WantedPlace): string[] {
  return vms
    .filter(({ name }) => name !== vm)
    .filter(
      (other) =>
        antiAffinity.includes(other.name) ||
        other.antiAffinity.includes(vm) ||
        other.antiAffinity.some((word) => antiAffinity.includes(word)),
    )
    .map(({ name }) => name);
}

function compare(one: RankedHost, other: RankedHost): number {
  return (
    ORDER.indexOf(one.verdict) - ORDER.indexOf(other.verdict) ||
    one.conflicts.length - other.conflicts.length ||
    one.shared.length - other.shared.length ||
    (other.freeShare ?? 0) - (one.freeShare ?? 0) ||
    (one.shadows ?? 0) - (other.shadows ?? 0)
  );
}

/** Why a host is where it is in the order, in words for people. */
export function explainRank({ verdict, failure, conflicts, shared, freeShare, shadows }: RankedHost): string {
  const facts = [
    failure === undefined ? WORDS[verdict] : `${WORDS[verdict]}: ${failure}`,
    ...(conflicts.length > 0 ? [`houses ${conflicts.join(', ')}, which it keeps away from`] : []),
    ...(shared.length > 0 ? [`same ${shared.join(', ')} as the VM's host`] : []),
    ...(freeShare === null ? [] : [`${Math.round(100 * freeShare)} % left`]),
    ...(shadows === null ? [] : [`${shadows} shadows`]),
  ];
  return facts.join('; ');
}

const WORDS: Readonly<Record<Verdict, string>> = {
  fits: 'has room',
  unasked: 'is the only one',
  unknown: 'did not say what it has',
  refused: 'turned it away a short while ago',
  failing: 'has a disk that fails',
  'no-room': 'has too little room',
  maintenance: 'is in maintenance',
};
