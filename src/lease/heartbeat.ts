import { unreachable } from '../base/assert.ts';

/**
 * Tells from heartbeats whether the other host is there. Pure: a driver reports arrivals and ticks.
 *
 * A path is silent for too long when nothing came for longer than its gaps have been: their mean and mean deviation, as
 * TCP estimates its timeouts (Jacobson, "Congestion Avoidance and Control", SIGCOMM 1988; RFC 6298; for failure detectors
 * Bertier, Marin, Sens, "Implementation and Performance Evaluation of an Adaptable Failure Detector", DSN 2002). Such an
 * average forgets a rare long gap within a few heartbeats, so the longest one of late is remembered as well. Floor and
 * ceiling bound what comes of it: gaps below the floor never count, and the ceiling is found out about in any case.
 *
 * What it says may be wrong, and nothing depends on its being right but how soon, and how often, a VM is taken over.
 */
export interface HeartbeatPolicy {
  /** How often the driver ticks. */
  readonly tickEveryMs: number;
  readonly floorMs: number;
  /** Heartbeats until the gaps of a path are known; until then it may be silent up to the ceiling. */
  readonly learnCount: number;
  readonly ceilingMs: number;
  /** Mean deviations above the mean. */
  readonly deviations: number;
  /** A gap may be this much longer than the longest of late. */
  readonly peakFactor: number;
  /** What is left of the memory of the longest gap after each heartbeat. */
  readonly peakDecay: number;
  /** Heartbeats in time, one after the other, until a host that was lost counts as there again. */
  readonly backAfterCount: number;
  /** Each loss within `flapWindowMs` of the one before doubles that number, up to this one. */
  readonly backAfterMaxCount: number;
  readonly flapWindowMs: number;
}

/** For a heartbeat every 20 ms. */
export const DEFAULT_HEARTBEAT_POLICY: HeartbeatPolicy = {
  tickEveryMs: 20,
  floorMs: 300,
  learnCount: 50,
  ceilingMs: 1000,
  deviations: 6,
  peakFactor: 1.25,
  peakDecay: 0.9985,
  backAfterCount: 10,
  backAfterMaxCount: 640,
  flapWindowMs: 60_000,
};

interface PathState {
  readonly lastMs: number;
  /** Of the sender: which run of it, and how many it has sent. A late or repeated one says nothing of now. */
  readonly run: number;
  readonly sequence: number;
  readonly meanMs: number;
  readonly deviationMs: number;
  readonly peakMs: number;
  /** Gaps that were learnt from. */
  readonly gapCount: number;
  readonly isLost: boolean;
}

export interface HeartbeatState {
  readonly paths: Readonly<Record<string, PathState>>;
  readonly verdict: 'waiting' | 'there' | 'lost';
  readonly lostAtMs: number;
  /** While lost: heartbeats in time since. */
  readonly inTimeCount: number;
  readonly backAfterCount: number;
  readonly tickedMs: number | undefined;
}

export type HeartbeatEvent =
  | { readonly kind: 'tick'; readonly nowMs: number }
  | {
      readonly kind: 'heartbeat';
      readonly nowMs: number;
      readonly path: string;
      readonly run: number;
      readonly sequence: number;
    };

export type HeartbeatEffect =
  | { readonly kind: 'peer-lost'; readonly silentMs: number }
  | { readonly kind: 'peer-back' }
  | { readonly kind: 'path-lost'; readonly path: string }
  | { readonly kind: 'path-back'; readonly path: string };

export interface HeartbeatStep {
  readonly next: HeartbeatState;
  readonly effects: readonly HeartbeatEffect[];
}

/** Nothing was heard yet. A host that was never there cannot be lost. */
export function initialHeartbeat(policy: HeartbeatPolicy): HeartbeatState {
  return {
    paths: {},
    verdict: 'waiting',
    lostAtMs: Number.NEGATIVE_INFINITY,
    inTimeCount: 0,
    backAfterCount: policy.backAfterCount,
    tickedMs: undefined,
  };
}

export function stepHeartbeat(
  state: HeartbeatState,
  event: HeartbeatEvent,
  policy: HeartbeatPolicy,
): HeartbeatStep {
  switch (event.kind) {
    case 'heartbeat':
      return hear(state, event, policy);
    case 'tick':
      return tick(state, event.nowMs, policy);
    default:
      return unreachable(event);
  }
}

/** How long a path may be silent now. */
export function silenceMaxMs(
  {
    meanMs,
    deviationMs,
    peakMs,
    gapCount,
  }: Pick<PathState, 'meanMs' | 'deviationMs' | 'peakMs' | 'gapCount'>,
  policy: HeartbeatPolicy,
): number {
  if (gapCount < policy.learnCount) return policy.ceilingMs;
  const usual = meanMs + policy.deviations * deviationMs;
  const adapted = Math.max(usual, policy.peakFactor * peakMs);
  return Math.min(policy.ceilingMs, Math.max(policy.floorMs, adapted));
}

function hear(
  state: HeartbeatState,
  { nowMs, path, run, sequence }: Extract<HeartbeatEvent, { kind: 'heartbeat' }>,
  policy: HeartbeatPolicy,
): HeartbeatStep {
  const before = state.paths[path];
  if (before !== undefined && (run < before.run || (run === before.run && sequence <= before.sequence)))
    return { next: state, effects: [] };
  const heard: PathState =
    before === undefined || before.isLost
      ? // The gap of an outage, or of a start, says nothing of those in between.
        {
          ...(before ?? { meanMs: 0, deviationMs: 0, peakMs: 0, gapCount: 0 }),
          run,
          sequence,
          lastMs: nowMs,
          isLost: false,
        }
      : { ...learnt(before, nowMs - before.lastMs, policy), run, sequence, lastMs: nowMs };
  const next: HeartbeatState = { ...state, paths: { ...state.paths, [path]: heard } };
  const effects: HeartbeatEffect[] = before?.isLost ? [{ kind: 'path-back', path }] : [];
  if (state.verdict === 'waiting') return { next: { ...next, verdict: 'there' }, effects };
  if (state.verdict === 'there') return { next, effects };
  const inTimeCount = before?.isLost ? 1 : state.inTimeCount + 1;
  if (inTimeCount < state.backAfterCount) return { next: { ...next, inTimeCount }, effects };
  return {
    next: { ...next, verdict: 'there', inTimeCount: 0 },
    effects: [...effects, { kind: 'peer-back' }],
  };
}

/** Gains as in RFC 6298, section 2. */
function learnt(path: PathState, gapMs: number, policy: HeartbeatPolicy): PathState {
  const peakMs = Math.max(gapMs, path.peakMs * policy.peakDecay);
  const gapCount = path.gapCount + 1;
  if (path.meanMs === 0) return { ...path, gapCount, meanMs: gapMs, deviationMs: gapMs / 2, peakMs };
  const deviationMs = 0.75 * path.deviationMs + 0.25 * Math.abs(path.meanMs - gapMs);
  return { ...path, gapCount, meanMs: 0.875 * path.meanMs + 0.125 * gapMs, deviationMs, peakMs };
}

function tick(state: HeartbeatState, nowMs: number, policy: HeartbeatPolicy): HeartbeatStep {
  // Who was stopped itself, or too busy to look, must not take that for silence: what came meanwhile is not read yet.
  const stalledMs = Math.max(0, nowMs - (state.tickedMs ?? nowMs) - policy.tickEveryMs);
  const effects: HeartbeatEffect[] = [];
  const paths: Record<string, PathState> = {};
  for (const [name, path] of Object.entries(state.paths)) {
    const lastMs = Math.min(nowMs, path.lastMs + stalledMs);
    const isLost = path.isLost || nowMs - lastMs > silenceMaxMs(path, policy);
    if (isLost && !path.isLost) effects.push({ kind: 'path-lost', path: name });
    paths[name] = { ...path, lastMs, isLost };
  }
  const next: HeartbeatState = { ...state, paths, tickedMs: nowMs };
  const all = Object.values(paths);
  if (all.length === 0 || !all.every(({ isLost }) => isLost)) return { next, effects };
  if (state.verdict === 'lost') return { next: { ...next, inTimeCount: 0 }, effects };
  const isFlapping = nowMs - state.lostAtMs < policy.flapWindowMs;
  const backAfterCount = isFlapping
    ? Math.min(policy.backAfterMaxCount, state.backAfterCount * 2)
    : policy.backAfterCount;
  const silentMs = nowMs - Math.max(...all.map(({ lastMs }) => lastMs));
  return {
    next: { ...next, verdict: 'lost', lostAtMs: nowMs, inTimeCount: 0, backAfterCount },
    effects: [...effects, { kind: 'peer-lost', silentMs }],
  };
}
