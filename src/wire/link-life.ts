import type { LinkEnd } from './secure-link.ts';
import { WireError } from './wire-error.ts';

/**
 * What becomes of a link that is to outlast its connections: when a new one is made, which is taken, and when there is an
 * end. Pure; see LastingLink, which carries it out.
 *
 * One side dials, the other waits to be dialled. An end is for good: from then on nothing is taken up again, whoever
 * comes and whatever was on its way. That is what whoever acts upon an end relies on.
 */
export type LinkRole = 'dials' | 'waits';

/** Connections are numbered by each side for itself. */
export type LinkLife =
  | { readonly kind: 'linked'; readonly link: number; readonly mayResume: boolean }
  | {
      readonly kind: 'broken';
      readonly sinceMs: number;
      readonly untilMs: number;
      /** Attempts to get through since it broke. */
      readonly attempts: number;
      /** Made and not answered yet; only for the side that dials. */
      readonly asked: number | undefined;
      readonly error: WireError;
    }
  | { readonly kind: 'ended' };

export type Refusal = 'ended' | 'claim' | 'forgotten';

export type LinkLifeEvent =
  /** The connection ended without a goodbye. `silentAtMs`: when the other side would have been silent for too long. */
  | {
      readonly kind: 'lost';
      readonly link: number;
      readonly nowMs: number;
      readonly silentAtMs: number;
      readonly error: WireError;
    }
  /** It ended for a reason that a new one does not mend: a goodbye, silence, or nonsense. */
  | { readonly kind: 'over'; readonly link: number; readonly end: LinkEnd }
  /** This side has no more use for it. */
  | { readonly kind: 'closed' }
  /** What is there may be used for as long as it lasts; nothing is taken up again. */
  | { readonly kind: 'forgone' }
  /** Somebody came on a new connection and says to be the other end. */
  | { readonly kind: 'knocked'; readonly link: number; readonly verdict: 'welcome' | 'claim' | 'forgotten' }
  /** A new connection is there and the other side is asked to go on with it. */
  | { readonly kind: 'dialled'; readonly link: number }
  | { readonly kind: 'agreed'; readonly link: number; readonly verdict: 'welcome' | 'forgotten' }
  | { readonly kind: 'refused'; readonly link: number; readonly reason: string }
  /** No connection, or one that broke before the answer. */
  | { readonly kind: 'failed'; readonly nowMs: number; readonly link: number | undefined }
  /** Nobody is there any more: the process at the other end has ended. */
  | { readonly kind: 'gone'; readonly nowMs: number }
  /** Somebody is there, or nobody can say; asked by the side that waits. */
  | { readonly kind: 'unsure'; readonly nowMs: number }
  | { readonly kind: 'waited'; readonly nowMs: number };

export type LinkLifeEffect =
  /** The side that dials makes a connection, the other one asks whether anybody is there. */
  | { readonly kind: 'try'; readonly afterMs: number }
  /** Give it a `waited` then. */
  | { readonly kind: 'wait'; readonly untilMs: number }
  /** This connection is the link from now on; one before it is not heard any more. */
  | { readonly kind: 'adopt'; readonly link: number }
  | { readonly kind: 'refuse'; readonly link: number; readonly reason: Refusal }
  | { readonly kind: 'drop'; readonly link: number }
  | { readonly kind: 'end'; readonly end: LinkEnd };

export interface LinkLifeStep {
  readonly next: LinkLife;
  readonly effects: readonly LinkLifeEffect[];
}

const TRY_AGAIN_MS = 10;
const TRY_AGAIN_MS_MAX = 160;

export function initialLinkLife(link: number): LinkLife {
  return { kind: 'linked', link, mayResume: true };
}

export function stepLinkLife(life: LinkLife, event: LinkLifeEvent, role: LinkRole): LinkLifeStep {
  if (life.kind === 'ended') return { next: life, effects: afterTheEnd(event) };
  switch (event.kind) {
    case 'closed':
      return end(life, { kind: 'closed-here' });
    case 'forgone':
      return life.kind === 'broken' ? giveUp(life) : { next: { ...life, mayResume: false }, effects: [] };
    case 'knocked':
      return knocked(life, event, role);
    case 'lost':
      return lost(life, event);
    case 'over':
      return life.kind === 'linked' && life.link === event.link ? end(life, event.end) : stay(life);
    default:
      return life.kind === 'broken' ? tried(life, event) : strayed(life, event);
  }
}

type Broken = Extract<LinkLife, { kind: 'broken' }>;
type Linked = Extract<LinkLife, { kind: 'linked' }>;
type Event<Kind extends LinkLifeEvent['kind']> = Extract<LinkLifeEvent, { kind: Kind }>;

/** Who comes late is sent away; what was made too late is not used. */
function afterTheEnd(event: LinkLifeEvent): LinkLifeEffect[] {
  if (event.kind === 'knocked') return [{ kind: 'refuse', link: event.link, reason: 'ended' }];
  if (event.kind === 'dialled') return [{ kind: 'drop', link: event.link }];
  return [];
}

function knocked(life: Linked | Broken, { link, verdict }: Event<'knocked'>, role: LinkRole): LinkLifeStep {
  const mayResume = life.kind === 'broken' || life.mayResume;
  if (role !== 'waits' || !mayResume)
    return { next: life, effects: [{ kind: 'refuse', link, reason: 'ended' }] };
  // A stranger changes nothing for whoever has the right.
  if (verdict === 'claim') return { next: life, effects: [{ kind: 'refuse', link, reason: 'claim' }] };
  if (verdict === 'forgotten') {
    const { next, effects } = end(life, {
      kind: 'lost',
      error: unresumable('what was lost is not kept any more'),
    });
    return { next, effects: [{ kind: 'refuse', link, reason: 'forgotten' }, ...effects] };
  }
  // Also where the old one seems to be there: only one of the two sides may have lost it.
  return adopt(link);
}

function lost(life: Linked | Broken, { link, nowMs, silentAtMs, error }: Event<'lost'>): LinkLifeStep {
  if (life.kind !== 'linked' || life.link !== link) return stay(life);
  if (!life.mayResume || nowMs >= silentAtMs) return end(life, { kind: 'lost', error });
  return {
    next: { kind: 'broken', sinceMs: nowMs, untilMs: silentAtMs, attempts: 0, asked: undefined, error },
    effects: [
      { kind: 'wait', untilMs: silentAtMs },
      { kind: 'try', afterMs: 0 },
    ],
  };
}

/** What is asked while there is no connection. */
function tried(
  life: Broken,
  event: Exclude<LinkLifeEvent, Event<'closed' | 'forgone' | 'knocked' | 'lost' | 'over'>>,
): LinkLifeStep {
  switch (event.kind) {
    case 'dialled':
      return life.asked === undefined
        ? { next: { ...life, asked: event.link }, effects: [] }
        : { next: life, effects: [{ kind: 'drop', link: event.link }] };
    case 'agreed':
      if (event.link !== life.asked) return stay(life);
      return event.verdict === 'welcome' ? adopt(event.link) : giveUp(life);
    case 'refused':
      if (event.link !== life.asked) return stay(life);
      return end(life, { kind: 'lost', error: unresumable(event.reason) });
    case 'gone':
      return giveUp(life);
    case 'failed':
      return event.link === life.asked ? tryAgain({ ...life, asked: undefined }, event.nowMs) : stay(life);
    case 'unsure':
      return tryAgain(life, event.nowMs);
    case 'waited':
      return event.nowMs >= life.untilMs
        ? giveUp(life)
        : { next: life, effects: [{ kind: 'wait', untilMs: life.untilMs }] };
  }
}

function strayed(life: Linked, event: LinkLifeEvent): LinkLifeStep {
  return event.kind === 'dialled'
    ? { next: life, effects: [{ kind: 'drop', link: event.link }] }
    : stay(life);
}

function tryAgain(life: Broken, nowMs: number): LinkLifeStep {
  const afterMs = Math.min(TRY_AGAIN_MS * 2 ** life.attempts, TRY_AGAIN_MS_MAX);
  const next = { ...life, attempts: life.attempts + 1 };
  return { next, effects: nowMs + afterMs < life.untilMs ? [{ kind: 'try', afterMs }] : [] };
}

function adopt(link: number): LinkLifeStep {
  return { next: initialLinkLife(link), effects: [{ kind: 'adopt', link }] };
}

function giveUp(life: Broken): LinkLifeStep {
  return end(life, { kind: 'lost', error: life.error });
}

function end(life: Linked | Broken, how: LinkEnd): LinkLifeStep {
  const asked = life.kind === 'broken' ? life.asked : undefined;
  const dropped: LinkLifeEffect[] = asked === undefined ? [] : [{ kind: 'drop', link: asked }];
  return { next: { kind: 'ended' }, effects: [...dropped, { kind: 'end', end: how }] };
}

function stay(life: LinkLife): LinkLifeStep {
  return { next: life, effects: [] };
}

function unresumable(reason: string): WireError {
  return new WireError(
    'WIRE_LOST',
    `the link between hosts was lost and cannot be taken up again: ${reason}`,
    {
      hint: 'A new one is made. If that happens often, look at the network between the hosts.',
      facts: { reason },
    },
  );
}
