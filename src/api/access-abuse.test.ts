import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { z } from 'zod';
import { AbuseStage } from '../../test/kit/abuse-stage.ts';
import { soaking } from '../../test/kit/soak.ts';
import { TestAuthority } from './access-fixture.ts';
import { ApiError } from './api-error.ts';
import { handlers } from './handlers.ts';
import type { HostService, RequestContext } from './host-service.ts';
import { isWithin, reachOf } from './principal.ts';
import { vmNameSchema, vmPageSchema, vmSchema } from './resources.ts';
import { type RouteId, routeOf, routes, takesKey } from './routes.ts';

const HOSTILE_RUNS = soaking ? 100 : 3;
/** Of one test: others may be at work on the machine. */
const DEADLINE_MS = soaking ? 3_600_000 : 120_000;
const everyRoute = Object.keys(routes) as RouteId[];

let authority: TestAuthority;
let foreign: TestAuthority;
beforeAll(async () => {
  [authority, foreign] = [await TestAuthority.make(), await TestAuthority.make()];
});
afterAll(() => {
  for (const made of [authority, foreign]) made[Symbol.dispose]();
});

describe('whoever asks for whatever', { timeout: DEADLINE_MS }, () => {
  let stage: AbuseStage;
  beforeAll(async () => {
    stage = await AbuseStage.set({ authority, foreign, isWhole: soaking });
  });
  afterAll(() => stage[Symbol.asyncDispose]());

  it.each(everyRoute)(
    '%s in every form that fits is for those who may, and about what is theirs',
    async (id) => {
      expect(await stage.assailWithFitting(id, soaking ? { max: 50 } : {})).toEqual([]);
      // Somebody was not refused: else nothing of this was tried.
      expect(stage.carriedOut).toContain(id);
    },
  );

  it.each(everyRoute)(
    '%s in hostile forms is no fault, changes nothing that it may not, and tells nothing',
    async (id) => {
      await stage.assailWithHostile(id, { runs: HOSTILE_RUNS });
    },
  );

  it('nobody is heard to the end who says too much', async () => {
    const some = stage.cast.filter(
      (actor, index) => soaking || index % 8 === 0 || actor.name === 'token of host admin',
    );
    for (const id of everyRoute.filter((each) => routeOf(each).body !== undefined))
      expect(await stage.assailWithHuge(id, some)).toEqual([]);
  });

  it.each(everyRoute.filter(takesKey))(
    '%s with a key that was used does nothing again, and nobody else gets its answer',
    async (id) => {
      expect(await stage.assailWithKeys(id)).toEqual([]);
    },
  );
});

describe('a route that is planted', { timeout: DEADLINE_MS }, () => {
  const oneVm = { params: z.strictObject({ name: vmNameSchema }) };
  const named = (asked: unknown) => (asked as { params: { name: string } }).params.name;
  const stop = (service: HostService, asked: unknown) => ({
    body: service.stopVm(named(asked), { graceful: true }),
  });
  const change = { method: 'POST', summary: 'Planted.', status: 200, answer: vmSchema, ...oneVm };
  const list = { method: 'GET', path: '/v1/planted', summary: 'Planted.', status: 200, answer: vmPageSchema };
  const everything = (service: HostService) => ({ body: service.listVms({ after: undefined, limit: 100 }) });
  const own = (service: HostService, _: unknown, { principal }: RequestContext) => ({
    body: service.listVms({ after: undefined, limit: 100, reach: reachOf(principal) }),
  });
  const path = '/v1/vms/{name}/planted';
  const plants: readonly (readonly [string, Planted, RegExp | undefined])[] = [
    ['without a role', [{ ...change, path }, stop], /by token of acme7 viewer: state: changed by a viewer/],
    ['for anyone', [{ ...list, role: 'anyone' }, everything], /by nobody: stranger: got 200/],
    ['for a role that is too low', [{ ...change, path, role: 'viewer' }, stop], /state: changed by a viewer/],
    [
      'that lets operators do what is for admins',
      [
        { ...change, path, role: 'operator' },
        (service, asked) => ({
          body: service.changeVm(
            named(asked),
            { spec: `name: ${named(asked)}`, directory: '/' },
            { ifVersion: service.getVm(named(asked)).version },
          ),
        }),
      ],
      /state: changed by an operator beyond wishes/,
    ],
    ['that leaks', [{ ...list, role: 'viewer' }, everything], /by token of acme7 viewer: leak: beta7/],
    [
      'that tells of others whether they are there',
      [
        { ...change, method: 'GET', path: '/v1/planted/{name}', role: 'viewer' },
        (service, asked, { principal }) => {
          const vm = service.getVm(named(asked));
          if (isWithin(vm.tenant, reachOf(principal))) return { body: vm };
          throw new ApiError('API_FORBIDDEN', 'not yours');
        },
      ],
      /leak: beta7 is told apart from nothing/,
    ],
    [
      'that reaches beyond a tenant',
      [{ ...change, path: '/v1/planted/{name}', role: 'operator' }, stop],
      /state: of others changed by a tenant/,
    ],
    [
      'that changes something when it is only looked at',
      [{ ...change, method: 'GET', path, role: 'admin' }, stop],
      /state: changed by who only looks/,
    ],
    [
      'that fails after it has changed something',
      [
        { ...change, path, role: 'operator' },
        (service, asked) => {
          stop(service, asked);
          throw new ApiError('API_BAD_REQUEST', 'no');
        },
      ],
      /state: changed by a 400/,
    ],
    ['that has a fault', [{ ...list, role: 'viewer' }, () => ({ body: { vms: 7 } })], /fault: 500/],
    ['that is as it should be (control)', [{ ...list, role: 'viewer' }, own], undefined],
    ['that changes what it may (control)', [{ ...change, path, role: 'operator' }, stop], undefined],
  ];

  it.each(plants)('%s is found out', async (_, planted, complaint) => {
    using _planted = plant(planted);
    await using stage = await AbuseStage.set({ authority, foreign });
    const complaints = await stage.assailWithFitting('planted' as RouteId);
    if (complaint === undefined) expect(complaints).toEqual([]);
    else expect(complaints.join('\n')).toMatch(complaint);
  });

  it('that asks for what this test cannot make up is named, lest it is tried with nothing', async () => {
    const body = z.strictObject({ colour: z.string().regex(/^#[0-9a-f]{6}$/) });
    using _planted = plant([{ ...change, path, role: 'admin', body }, stop]);
    await using stage = await AbuseStage.set({ authority, foreign });
    await expect(stage.assailWithFitting('planted' as RouteId)).rejects.toThrow(
      'planted: nothing in the pool',
    );
  });
});

type Planted = readonly [
  route: object,
  handler: (service: HostService, asked: unknown, context: RequestContext) => { body: unknown },
];

/** As if somebody had added it to the table. */
function plant([route, handler]: Planted): Disposable {
  Object.assign(routes, { planted: route });
  Object.assign(handlers, { planted: handler });
  return {
    [Symbol.dispose]: () => {
      for (const table of [routes, handlers]) Reflect.deleteProperty(table, 'planted');
    },
  };
}
