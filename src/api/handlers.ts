import { MIB } from '../base/units.ts';
import { ApiError } from './api-error.ts';
import { seesAudit } from './audit.ts';
import type { HostService, RequestContext } from './host-service.ts';
import { reachOf } from './principal.ts';
import type { VmPage } from './resources.ts';
import { type AnswerTo, type Asked, entityTagOf, type RouteId } from './routes.ts';

/** A page ends early rather than grow beyond this by its specifications. */
const PAGE_SPEC_BYTES_MAX = 4 * MIB;

interface Handled<Id extends RouteId> {
  readonly body: AnswerTo<Id>;
  readonly headers?: Readonly<Record<string, string>>;
}
type Handler<Id extends RouteId> = (
  service: HostService,
  asked: Asked<Id>,
  context: RequestContext,
) => Handled<Id> | Promise<Handled<Id>>;

/** Routes that ask the host and answer with JSON. */
export type HandledId = Exclude<RouteId, 'streamEvents' | 'openConsole' | 'getOpenApi' | 'getMetrics'>;

export const handlers: { readonly [Id in HandledId]: Handler<Id> } = {
  getHealth: (service) => ({ body: service.health() }),
  listHosts: (service, { query }, { principal }) => ({
    body: service.listHosts({ after: query.after, limit: query.limit, reach: reachOf(principal) }),
  }),
  getHost: (service, { params }, { principal }) => ({
    body: service.getHost(params.name, { reach: reachOf(principal) }),
  }),
  listVms: (service, { query }, { principal }) => {
    const { after, limit } = query;
    return { body: shortenedPage(service.listVms({ after, limit, reach: reachOf(principal) })) };
  },
  declareVm: (service, { body }, context) => {
    const vm = service.declareVm(body, context);
    return { ...tagged(vm), headers: { location: `/v1/vms/${vm.name}`, etag: entityTagOf(vm.version) } };
  },
  getVm: (service, { params }) => tagged(service.getVm(params.name)),
  changeVm: (service, { params, headers, body }) =>
    tagged(service.changeVm(params.name, body, { ifVersion: headers['if-match'] })),
  deleteVm: async (service, { params, headers }, context) => {
    await service.deleteVm(params.name, { ifVersion: headers['if-match'], ...context });
    return { body: null };
  },
  startVm: (service, { params, body }, context) =>
    tagged(service.startVm(params.name, { ...body, ...context })),
  stopVm: (service, { params, body }, context) =>
    tagged(service.stopVm(params.name, { ...body, ...context })),
  protectVm: async (service, { params }, context) => tagged(await service.protectVm(params.name, context)),
  unprotectVm: async (service, { params }, context) =>
    tagged(await service.unprotectVm(params.name, context)),
  testFailover: async (service, { params }) => ({ body: await service.testFailover(params.name) }),
  deleteSavedState: (service, { params }) => {
    service.deleteSavedState(params.name, params.kind);
    return { body: null };
  },
  getOutlook: ({ foresight }, { params, query }) => ({
    body: foresight.outlook(params.name, { risk: query.risk }),
  }),
  getSeries: async ({ foresight }, { params, query }) => ({
    body: await foresight.series(params.name, { metric: params.metric, ...query }),
  }),
  getForecast: ({ foresight }, { params }) => ({ body: foresight.forecast(params.name, params.resource) }),
  getAllocation: ({ foresight }, { params, query }) => ({
    body: foresight.allocation(params.name, { limit: query.limit }),
  }),
  listSnapshots: ({ snapshots }, { params }) => ({ body: snapshots.list(params.name) }),
  createSnapshot: async ({ snapshots }, { params, body }) => ({
    body: await snapshots.take(params.name, body),
  }),
  verifySnapshot: async ({ snapshots }, { params }) => ({
    body: await snapshots.verify(params.name, params.id),
  }),
  deleteSnapshot: ({ snapshots }, { params }) => {
    snapshots.remove(params.name, params.id);
    return { body: null };
  },
  pruneSnapshots: async ({ snapshots }, { params, body }) => ({
    body: await snapshots.prune(params.name, body),
  }),
  promoteVm: async (service, { params }, context) => tagged(await service.promoteVm(params.name, context)),
  migrateVm: async (service, { params, body }, context) => ({
    body: await service.migrateVm(params.name, { ...body, ...context }),
  }),
  listLodgers: async (service) => ({ body: await service.listLodgers() }),
  listTokens: (service, { query }, { principal }) => ({
    body: service.listTokens({ after: query.after, limit: query.limit, reach: reachOf(principal) }),
  }),
  createToken: (service, { body }, { principal }) => {
    const mine = principal?.tenant ?? null;
    if (mine !== null && body.tenant !== undefined && body.tenant !== mine) throw notYours();
    return { body: service.createToken({ ...body, tenant: mine ?? body.tenant ?? null }) };
  },
  revokeToken: (service, { params }, { principal }) => {
    service.revokeToken(params.id, { reach: reachOf(principal) });
    return { body: null };
  },
  listTenants: ({ tenants }, { query }, { principal }) => ({
    body: tenants.page({ after: query.after, limit: query.limit, reach: reachOf(principal) }),
  }),
  createTenant: ({ tenants }, { body }) => ({ body: tenants.create(body.name) }),
  deleteTenant: ({ tenants }, { params }) => {
    tenants.delete(params.name);
    return { body: null };
  },
  listPolicies: ({ tenants }, { query }, { principal }) => ({
    body: tenants.policies({ after: query.after, limit: query.limit, reach: reachOf(principal) }),
  }),
  getPolicy: ({ tenants }, { params }, { principal }) =>
    tagged(tenants.policy(params.name, { reach: reachOf(principal) })),
  setPolicy: ({ tenants }, { params, headers, body }) =>
    tagged(tenants.setPolicy(params.name, body, { ifVersion: headers['if-match'] })),
  getStats: async (service, _, { principal }) => ({
    body: await service.stats({ reach: reachOf(principal) }),
  }),
  listEvents: (service, { query }, { principal }) => ({
    body: service.listEvents({
      ...{ ...query, vm: query.vm },
      ...{ withAudit: seesAudit(principal), reach: reachOf(principal) },
    }),
  }),
};

function tagged<Body extends { readonly version: number }>(body: Body) {
  return { body, headers: { etag: entityTagOf(body.version) } };
}

function notYours(): ApiError {
  return new ApiError('API_FORBIDDEN', 'you belong to a tenant, and make tokens for that one only', {
    hint: 'Leave the tenant out.',
  });
}

function shortenedPage(page: VmPage): VmPage {
  let bytes = 0;
  const cut = page.vms.findIndex(({ spec }) => {
    bytes += Buffer.byteLength(spec);
    return bytes > PAGE_SPEC_BYTES_MAX;
  });
  if (cut <= 0) return page;
  const vms = page.vms.slice(0, cut);
  return { vms, next: vms.at(-1)?.name ?? null };
}
