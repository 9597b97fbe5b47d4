import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import { type ServedAccess, serveAccess, type TestAuthority } from '../../src/api/access-fixture.ts';
import { ManualClock, type RawAnswer, type RawRequest } from '../../src/api/api-fixture.ts';
import { Contract } from '../../src/api/contract-fixture.ts';
import { HEARTBEAT_MS } from '../../src/api/event-streams.ts';
import { type RouteId, routeOf } from '../../src/api/routes.ts';
import { assert } from '../../src/base/assert.ts';
import { type Actor, makeCast } from './abuse-cast.ts';
import { AbuseJudge, isAllowed, twinOf } from './abuse-judge.ts';
import { AbuseRequests, type Attempt, FITTINGS_MAX } from './abuse-requests.ts';
import { AbuseWorld, NOBODY } from './abuse-world.ts';

/** Longer than failures of somebody are counted together: each request is looked at by itself. */
const APART_MS = 60_000;

/** A host, everybody who may ask it for something, and who judges what comes of it. */
export class AbuseStage implements AsyncDisposable {
  readonly world: AbuseWorld;
  readonly cast: readonly Actor[];
  readonly requests: AbuseRequests;
  /** Routes that were carried out for somebody. */
  readonly carriedOut = new Set<RouteId>();
  asked = 0;
  readonly #clock: ManualClock;
  readonly #api: ServedAccess;
  readonly #judge: AbuseJudge;

  private constructor({ clock, api, world, cast, contract }: Parts) {
    this.#clock = clock;
    this.#api = api;
    this.world = world;
    this.cast = cast;
    this.requests = new AbuseRequests(contract, world);
    this.#judge = new AbuseJudge(world, contract);
  }

  static async set(options: {
    authority: TestAuthority;
    foreign: TestAuthority;
    isWhole?: boolean;
  }): Promise<AbuseStage> {
    const clock = new ManualClock();
    const world = new AbuseWorld(clock);
    const cast = await makeCast(world, { isWhole: false, ...options });
    clock.advance(APART_MS);
    const { service } = world;
    const api = await serveAccess(options.authority, {
      ...{ service, clock },
      onStream: () => {
        world.tellAll('live');
        clock.advance(HEARTBEAT_MS);
      },
    });
    const admin = cast.find(({ known }) => known?.role === 'admin' && known.tenant === null);
    const { text } = await api.ask({ path: '/openapi.json' }, admin?.credentials);
    return new AbuseStage({ clock, api, world, cast, contract: new Contract(JSON.parse(text)) });
  }

  /** Everything that fits the route, by everybody. */
  async assailWithFitting(id: RouteId, { max = FITTINGS_MAX } = {}): Promise<string[]> {
    const complaints: string[] = [];
    const attempts = this.requests.fitting(id, { max });
    for (const actor of this.cast)
      for (const attempt of attempts) complaints.push(...(await this.#try(actor, attempt)));
    return complaints;
  }

  /** What is hostile, by everybody, so many times. */
  async assailWithHostile(id: RouteId, { runs }: { runs: number }): Promise<void> {
    for (const actor of this.cast) {
      const attempts = this.requests.hostile(id);
      await fc.assert(
        fc.asyncProperty(attempts, async (attempt) => {
          const complaints = await this.#try(actor, attempt);
          if (complaints.length > 0) throw new Error(complaints.join('\n'));
        }),
        { numRuns: runs },
      );
    }
  }

  /** A key that was used is used again: for the same, for something else, and by everybody else. */
  async assailWithKeys(id: RouteId): Promise<string[]> {
    const complaints: string[] = [];
    const [first, other] = this.requests.fitting(id).map(({ request }) => keyed(request));
    assert(
      first !== undefined && other !== undefined,
      'a route that takes a key can be filled in in two ways',
    );
    for (const owner of this.cast.filter(({ known }) => known !== undefined && isAllowed(known, id))) {
      this.#clock.advance(APART_MS);
      this.world.reset();
      const said = (what: string) => complaints.push(`${id} with a key by ${owner.name}: ${what}`);
      const given = await this.ask(owner, first);
      const before = structuredClone(this.world.dump());
      const again = await this.ask(owner, first);
      if (again.text !== given.text || again.headers['idempotency-replayed'] !== 'true')
        said('is done again');
      const reused = await this.ask(owner, other);
      if (reused.status !== 422) said(`something else is answered with ${reused.status}`);
      if (!isDeepStrictEqual(before, structuredClone(this.world.dump()))) said('changes something again');
      for (const actor of this.cast.filter((each) => each !== owner)) {
        const { headers } = await this.ask(actor, first);
        if (headers['idempotency-replayed'] !== undefined) said(`${actor.name} gets the answer`);
      }
    }
    return complaints;
  }

  async assailWithHuge(id: RouteId, actors: readonly Actor[]): Promise<string[]> {
    const complaints: string[] = [];
    for (const actor of actors) complaints.push(...(await this.#try(actor, this.requests.huge(id))));
    return complaints;
  }

  async ask(actor: Actor, request: RawRequest): Promise<RawAnswer> {
    this.asked += 1;
    const headers = { ...request.headers, ...actor.headers };
    return await this.#api.ask({ ...request, headers }, actor.credentials);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#api[Symbol.asyncDispose]();
  }

  async #try(actor: Actor, attempt: Attempt): Promise<string[]> {
    const { world } = this;
    this.#clock.advance(APART_MS);
    world.reset();
    const before = structuredClone(world.dump());
    const answer = await this.ask(actor, attempt.request);
    const after = structuredClone(world.dump());
    if (answer.status === routeOf(attempt.id).status) this.carriedOut.add(attempt.id);
    const isStreamed = answer.headers['content-type'] === 'text/event-stream';
    const { audits } = world.memory;
    const found = {
      ...attempt,
      actor,
      answer,
      before,
      after: isStreamed ? before : after,
      audits: [...audits],
    };
    const complaints = this.#judge.complaints(found);
    const twin = twinOf(attempt, actor);
    if (twin !== undefined) {
      world.reset();
      const other = await this.ask(actor, twin.request);
      if (other.status !== answer.status || other.text.replaceAll(NOBODY, twin.name) !== answer.text)
        complaints.push(`leak: ${twin.name} is told apart from nothing: ${answer.text} ${other.text}`);
    }
    const { method, path } = attempt.request;
    return complaints.map(
      (each) => `${attempt.id} ${method} ${path.slice(0, 100)} by ${actor.name}: ${each}`,
    );
  }
}

function keyed(request: RawRequest): RawRequest {
  return { ...request, headers: { ...request.headers, 'idempotency-key': 'once' } };
}

interface Parts {
  readonly clock: ManualClock;
  readonly api: ServedAccess;
  readonly world: AbuseWorld;
  readonly cast: readonly Actor[];
  readonly contract: Contract;
}
