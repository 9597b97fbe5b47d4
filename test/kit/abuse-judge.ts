import { isDeepStrictEqual } from 'node:util';
import type { RawAnswer, RawRequest } from '../../src/api/api-fixture.ts';
import type { AuditEntry } from '../../src/api/audit.ts';
import { changesSomething } from '../../src/api/audit.ts';
import type { Contract } from '../../src/api/contract-fixture.ts';
import { PROBLEM_TYPE } from '../../src/api/openapi.ts';
import { mayAct } from '../../src/api/principal.ts';
import { type RouteId, routeOf } from '../../src/api/routes.ts';
import type { Actor } from './abuse-cast.ts';
import type { Attempt } from './abuse-requests.ts';
import { type AbuseWorld, type Dump, NOBODY, OWNERS } from './abuse-world.ts';

export interface Case extends Attempt {
  readonly actor: Actor;
  readonly answer: RawAnswer;
  readonly before: Dump;
  readonly after: Dump;
  /** Written down because of it. */
  readonly audits: readonly AuditEntry[];
}

type Known = NonNullable<Actor['known']>;

/** What an operator may change of a VM. */
const WISHES = { desired: 0, shadowWanted: 0, saved: 0 };

/**
 * Says what is wrong with an answer, and with what became of the state. It knows what strangers, viewers, operators and
 * tenants may ever do, not which route is for whom: so a route that is for the wrong ones is found out.
 */
export class AbuseJudge {
  readonly #world: AbuseWorld;
  readonly #contract: Contract;
  /** What strangers are told, all of them the same. */
  readonly #toStrangers = new Set<string>();

  constructor(world: AbuseWorld, contract: Contract) {
    this.#world = world;
    this.#contract = contract;
  }

  complaints(found: Case): string[] {
    return [
      ...this.#ofForm(found),
      ...(found.actor.known === undefined ? this.#ofStranger(found) : this.#ofRole(found, found.actor.known)),
      ...this.#ofWords(found),
      ...this.#ofAudit(found),
    ];
  }

  #ofForm({ id, answer }: Case): string[] {
    const { status, headers, text } = answer;
    if (status >= 500) return [`fault: ${status} ${text}`];
    const fault = this.#contract.faultOf(id, answer);
    const isProblem = headers['content-type']?.startsWith(`${PROBLEM_TYPE};`) === true;
    if (status >= 400 && !isProblem) return [`form: ${status} is no problem but ${headers['content-type']}`];
    if (status >= 400 && JSON.parse(text).status !== status) return [`form: ${status} says ${text}`];
    return fault === undefined ? [] : [`form: ${fault}`];
  }

  #ofStranger({ id, isRouted, request, answer, before, after }: Case): string[] {
    const changed = isDeepStrictEqual(before, after) ? [] : ['state: changed by a stranger'];
    // The one thing that anybody may know, by its name and not by what the table says.
    if (id === 'getHealth' && isRouted && request.path === '/v1/health') return changed;
    if (answer.status === 200 && answer.text === '{"status":"ok"}') return changed;
    // What Node could not even parse is nobody's request.
    if (answer.status === 431 && answer.text.includes('headers have at most')) return changed;
    const isTold = answer.status === 401 && answer.headers['www-authenticate'] !== undefined;
    if (!isTold) return [...changed, `stranger: got ${answer.status}`];
    this.#toStrangers.add(answer.text);
    return this.#toStrangers.size > 2 ? [...changed, `stranger: told apart ${answer.text}`] : changed;
  }

  #ofRole({ id, isRouted, answer, before, after }: Case, known: Known): string[] {
    const found: string[] = [];
    const { status } = answer;
    const isRefused = status >= 400;
    const isSame = isDeepStrictEqual(bare(before), bare(after));
    if (status === 401) found.push('refused though known');
    if (!isSame && isRefused) found.push(`state: changed by a ${status}`);
    if (!isSame && !changesSomething(id)) found.push('state: changed by who only looks');
    if (!isSame && known.role === 'viewer') found.push('state: changed by a viewer');
    if (known.role === 'operator' && !isDeepStrictEqual(withoutWishes(before), withoutWishes(after)))
      found.push('state: changed by an operator beyond wishes');
    if (
      known.tenant !== null &&
      !isDeepStrictEqual(ofOthers(before, known.tenant), ofOthers(after, known.tenant))
    )
      found.push('state: of others changed by a tenant');
    if (isRouted && !isAllowed(known, id) && status !== 403) found.push(`role: got ${status} instead of 403`);
    return found;
  }

  /** No word that is not theirs, but what they said themselves. */
  #ofWords({ actor, request, answer }: Case): string[] {
    const foreign = actor.known === undefined ? this.#world.words : this.#world.foreignWords(actor.known);
    const asked = saidIn(request);
    const told = answer.text + JSON.stringify(answer.headers);
    return foreign
      .filter((word) => told.includes(word) && !asked.includes(word))
      .map((word) => `leak: ${word}`);
  }

  /** Who changed something or tried to is written down once, with how it ended. */
  #ofAudit({ id, actor, isRouted, request, answer, audits }: Case): string[] {
    const told = JSON.stringify(audits);
    const { token } = actor.credentials;
    const secret = token?.split('_').slice(2).join('_') || undefined;
    if (secret !== undefined && told.includes(secret)) return ['audit: holds a secret'];
    if (actor.known === undefined || !changesSomething(id))
      return audits.length > 0 ? ['audit: of who is nobody or changes nothing'] : [];
    const ends = audits.filter(({ status }) => status !== 202);
    const isReplayed = answer.headers['idempotency-replayed'] !== undefined;
    if (isReplayed) return audits.length > 0 ? ['audit: of a repeated request'] : [];
    if (ends.length === 1) {
      const isRight =
        ends[0]?.status === answer.status && ends[0].action === id && ends[0].role === actor.known.role;
      return isRight ? [] : [`audit: says ${JSON.stringify(ends[0])}`];
    }
    // What found no route has no name to be written under.
    const isNowhere = !isRouted && answer.status >= 400 && ends.length === 0;
    return isNowhere ? [] : [`audit: ${ends.length} entries for ${request.method} ${request.path}`];
  }
}

/** What the table says. */
export function isAllowed(known: Known, id: RouteId): boolean {
  const { role, hostOnly } = routeOf(id);
  if (role === 'anyone') return true;
  return mayAct({ ...known, name: '', via: 'token' }, role) && !(hostOnly && known.tenant !== null);
}

/** What is kept for who repeats a request is no change: refusals are, too. */
function bare({ answers: _, ...rest }: Dump): unknown {
  return rest;
}

function withoutWishes({ vms, tokens, tenants }: Dump): unknown {
  return [vms.map((vm) => ({ ...vm, ...WISHES })), tokens, tenants];
}

function ofOthers({ vms, tokens, tenants, events }: Dump, mine: string): unknown {
  const isTheirs = ({ tenant }: { tenant: string | null }) => tenant !== mine;
  return [vms.filter(isTheirs), tokens.filter(isTheirs), tenants, events.filter(isTheirs)];
}

function saidIn({ path, headers, body }: RawRequest): string {
  let decoded = path;
  try {
    decoded += decodeURIComponent(path);
  } catch {
    // As it is, then.
  }
  return [decoded, JSON.stringify(headers), body].join(' ');
}

/** Requests that name what is of others, and the same of nothing: the answers must not tell them apart. */
export function twinOf(
  { id, request }: Attempt,
  { known }: Actor,
): { request: RawRequest; name: string } | undefined {
  const tenant = known?.tenant;
  if (tenant === null || tenant === undefined) return undefined;
  const names = OWNERS.filter((owner) => owner !== tenant).map(
    (owner) => ({ acme7: 'alpha7', other7: 'beta7' })[owner ?? ''] ?? 'gamma7',
  );
  const name = names.find(
    (each) =>
      request.path.startsWith(routeOf(id).path.split('{')[0] ?? '') && request.path.includes(`/${each}`),
  );
  return name === undefined
    ? undefined
    : { name, request: { ...request, path: request.path.replace(name, NOBODY) } };
}
