import { MIB } from '../base/units.ts';
import { seesAudit } from './audit.ts';
import type { HostService, RequestContext } from './host-service.ts';
import type { Vm, VmPage } from './resources.ts';
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
  listHosts: (service, { query }) => ({
    body: service.listHosts({ after: query.after, limit: query.limit }),
  }),
  getHost: (service, { params }) => ({ body: service.getHost(params.name) }),
  listVms: (service, { query }) => ({
    body: shortenedPage(service.listVms({ after: query.after, limit: query.limit })),
  }),
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
  promoteVm: async (service, { params }, context) => tagged(await service.promoteVm(params.name, context)),
  listTokens: (service, { query }) => ({
    body: service.listTokens({ after: query.after, limit: query.limit }),
  }),
  createToken: (service, { body }) => ({ body: service.createToken(body) }),
  revokeToken: (service, { params }) => {
    service.revokeToken(params.id);
    return { body: null };
  },
  getStats: async (service) => ({ body: await service.stats() }),
  listEvents: (service, { query }, { principal }) => ({
    body: service.listEvents({ ...query, vm: query.vm, withAudit: seesAudit(principal) }),
  }),
};

function tagged(vm: Vm): { readonly body: Vm; readonly headers: { readonly etag: string } } {
  return { body: vm, headers: { etag: entityTagOf(vm.version) } };
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
