import { z } from 'zod';
import { accessRoutes } from './access-routes.ts';
import { foresightRoutes } from './foresight-routes.ts';
import {
  changeVmSchema,
  createTokenSchema,
  declareVmSchema,
  eventPageSchema,
  failoverReportSchema,
  healthSchema,
  hostNameSchema,
  hostPageSchema,
  hostSchema,
  lodgerPageSchema,
  migrateVmSchema,
  migrationSchema,
  newTokenSchema,
  startVmSchema,
  stopVmSchema,
  tokenIdSchema,
  tokenPageSchema,
  vmNameSchema,
  vmPageSchema,
  vmSchema,
} from './resources.ts';
import {
  afterEvent,
  decimal,
  entityTag,
  keyed,
  limit,
  nothing,
  ofVm,
  oneVm,
  type Route,
} from './route-parts.ts';
import { snapshotRoutes } from './snapshot-routes.ts';
import { statsSchema } from './stats.ts';

/** How long a caller has to be ready to wait where the host waits for a VM. Milliseconds. */
const ACT_DEADLINE_MS = 150_000;

/** Two shadows may have to be filled meanwhile. Milliseconds. */
const MIGRATE_DEADLINE_MS = 3_700_000;

/** The routes by operation id: server, OpenAPI document and client are made from this table. */
export const routes = {
  getHealth: {
    role: 'anyone',
    method: 'GET',
    path: '/v1/health',
    summary: 'Whether all VMs are as they are desired to be.',
    status: 200,
    answer: healthSchema,
  },
  listHosts: {
    role: 'viewer',
    method: 'GET',
    path: '/v1/hosts',
    summary: 'Hosts by name: the one that answers, as long as hosts do not know each other.',
    query: z.strictObject({ after: hostNameSchema.optional(), limit }),
    status: 200,
    answer: hostPageSchema,
  },
  getHost: {
    role: 'viewer',
    method: 'GET',
    path: '/v1/hosts/{name}',
    summary: 'One host: its daemon, its machine and what it looks after.',
    params: z.strictObject({ name: hostNameSchema }),
    status: 200,
    answer: hostSchema,
  },
  listVms: {
    role: 'viewer',
    method: 'GET',
    path: '/v1/vms',
    summary: 'VMs by name. A page may be shorter than `limit`; the last one is that without `next`.',
    query: z.strictObject({ after: vmNameSchema.optional(), limit }),
    status: 200,
    answer: vmPageSchema,
  },
  declareVm: {
    role: 'admin',
    method: 'POST',
    path: '/v1/vms',
    summary: 'Declare a VM. Answers with its Location and ETag.',
    headers: keyed,
    body: declareVmSchema,
    status: 201,
    answer: vmSchema,
  },
  getVm: {
    role: 'viewer',
    method: 'GET',
    path: '/v1/vms/{name}',
    summary: 'One VM. Its ETag is that of the specification.',
    params: oneVm,
    status: 200,
    answer: vmSchema,
  },
  changeVm: {
    role: 'admin',
    method: 'PUT',
    path: '/v1/vms/{name}',
    summary: 'Change the specification; it takes effect when the VM is started the next time.',
    params: oneVm,
    headers: z.object({ 'if-match': entityTag }),
    body: changeVmSchema,
    status: 200,
    answer: vmSchema,
  },
  deleteVm: {
    role: 'admin',
    method: 'DELETE',
    path: '/v1/vms/{name}',
    summary: 'Stop a VM and forget it.',
    params: oneVm,
    headers: z.object({ 'if-match': entityTag.optional() }),
    status: 204,
    answer: nothing,
    deadlineMs: ACT_DEADLINE_MS,
  },
  startVm: {
    role: 'operator',
    method: 'POST',
    path: '/v1/vms/{name}/start',
    summary: 'Desire a VM to run. Answers at once, the VM follows.',
    params: oneVm,
    headers: keyed,
    body: startVmSchema.nullish().transform((said) => said ?? startVmSchema.parse({})),
    status: 200,
    answer: vmSchema,
  },
  stopVm: {
    role: 'operator',
    method: 'POST',
    path: '/v1/vms/{name}/stop',
    summary: 'Desire a VM not to run. Answers at once, the VM follows.',
    params: oneVm,
    headers: keyed,
    body: stopVmSchema.nullish().transform((said) => said ?? stopVmSchema.parse({})),
    status: 200,
    answer: vmSchema,
  },
  protectVm: {
    role: 'operator',
    method: 'POST',
    path: '/v1/vms/{name}/protect',
    summary: 'Want a shadow from now on, over restarts too. Answers when one will be made.',
    params: oneVm,
    headers: keyed,
    status: 200,
    answer: vmSchema,
    deadlineMs: ACT_DEADLINE_MS,
  },
  unprotectVm: {
    role: 'operator',
    method: 'POST',
    path: '/v1/vms/{name}/unprotect',
    summary: 'Want no shadow any more. Answers when there is none.',
    params: oneVm,
    headers: keyed,
    status: 200,
    answer: vmSchema,
    deadlineMs: ACT_DEADLINE_MS,
  },
  testFailover: {
    role: 'operator',
    method: 'POST',
    path: '/v1/vms/{name}/test-failover',
    summary:
      'Bring a copy of the shadow up, apart from the world, and end it. A shadow that fails is an answer too.',
    params: oneVm,
    headers: keyed,
    status: 200,
    answer: failoverReportSchema,
    deadlineMs: ACT_DEADLINE_MS,
  },
  deleteSavedState: {
    role: 'operator',
    method: 'DELETE',
    path: '/v1/vms/{name}/saved/{kind}',
    summary: 'Give up the state of a VM that does not run.',
    params: oneVm.extend({ kind: z.enum(['suspended', 'snapshot']) }),
    status: 204,
    answer: nothing,
  },
  promoteVm: {
    role: 'operator',
    method: 'POST',
    path: '/v1/vms/{name}/promote',
    summary: 'Switch to the shadow as planned. Answers when it acts.',
    params: oneVm,
    headers: keyed,
    status: 200,
    answer: vmSchema,
    deadlineMs: ACT_DEADLINE_MS,
  },
  migrateVm: {
    role: 'operator',
    method: 'POST',
    path: '/v1/vms/{name}/migrate',
    summary:
      'Move a VM to another host of the site, by way of its shadow. Answers when it acts there, or is protected there too.',
    params: oneVm,
    headers: keyed,
    body: migrateVmSchema.nullish().transform((said) => said ?? migrateVmSchema.parse({})),
    status: 200,
    answer: migrationSchema,
    deadlineMs: MIGRATE_DEADLINE_MS,
  },
  listLodgers: {
    role: 'viewer',
    hostOnly: true,
    method: 'GET',
    path: '/v1/lodgers',
    summary:
      'VMs on this machine that are not declared here: shadows for other hosts, and what they have become.',
    status: 200,
    answer: lodgerPageSchema,
  },
  openConsole: {
    role: 'operator',
    method: 'GET',
    path: '/v1/vms/{name}/console',
    summary:
      'The serial console as WebSocket: binary messages both ways, at most 64 KiB each. Begins with what it showed ' +
      'last; shows nothing that an uncommitted epoch did. Close codes: 1001 the host ends, 1003 text was sent, 4000 the ' +
      'console has ended, 4001 output was not read, 4002 pings were not answered.',
    params: oneVm,
    status: 101,
    answer: z.null().meta({ description: 'It is a WebSocket from here on.' }),
  },
  listEvents: {
    role: 'viewer',
    method: 'GET',
    path: '/v1/events',
    summary: 'Events after number `after`, oldest first.',
    query: z.strictObject({ after: afterEvent, limit, vm: ofVm }),
    status: 200,
    answer: eventPageSchema,
  },
  streamEvents: {
    role: 'viewer',
    method: 'GET',
    path: '/v1/events/stream',
    summary:
      'Events to come, as server-sent events; with `Last-Event-ID` or else `after`, those after that number first. ' +
      'Begins with an `id` of its own, so that a reader that is cut off before the first event can go on.',
    query: z.strictObject({ after: decimal(z.int().nonnegative()).optional(), vm: ofVm }),
    headers: z.object({ 'last-event-id': decimal(z.int().nonnegative()).optional() }),
    status: 200,
    mediaType: 'text/event-stream',
    answer: z.string().meta({ description: '`data` of every event is an Event.' }),
  },
  listTokens: {
    role: 'admin',
    method: 'GET',
    path: '/v1/tokens',
    summary: 'Tokens by id, without their secrets.',
    query: z.strictObject({ after: tokenIdSchema.optional(), limit }),
    status: 200,
    answer: tokenPageSchema,
  },
  createToken: {
    role: 'admin',
    method: 'POST',
    path: '/v1/tokens',
    // No idempotency key: the answer would have to be kept, and it holds the secret.
    summary: 'Make a token. Its text is in this answer and nowhere else: only a hash of it is kept.',
    body: createTokenSchema,
    status: 201,
    answer: newTokenSchema,
  },
  revokeToken: {
    role: 'admin',
    method: 'DELETE',
    path: '/v1/tokens/{id}',
    summary: 'Refuse a token from now on; what is open with it is closed.',
    params: z.strictObject({ id: tokenIdSchema }),
    status: 204,
    answer: nothing,
  },
  ...foresightRoutes,
  ...snapshotRoutes,
  ...accessRoutes,
  getStats: {
    role: 'viewer',
    method: 'GET',
    path: '/v1/stats',
    summary: 'What there is to watch of all VMs that run or shall run, asked of their keepers now.',
    status: 200,
    answer: statsSchema,
  },
  getMetrics: {
    role: 'viewer',
    hostOnly: true,
    method: 'GET',
    path: '/metrics',
    summary:
      'Metrics of the host and of all its VMs, asked of their keepers now, in the text format of Prometheus.',
    status: 200,
    mediaType: 'text/plain',
    answer: z.string().meta({ description: 'docs/observability/metrics.md explains every family.' }),
  },
  getOpenApi: {
    role: 'viewer',
    method: 'GET',
    path: '/openapi.json',
    summary: 'This document.',
    status: 200,
    answer: z.record(z.string(), z.unknown()),
  },
} as const satisfies Record<string, Route>;

export type Routes = typeof routes;
export type RouteId = keyof Routes;

type Schema<Id extends RouteId, Part extends PropertyKey> = Part extends keyof Routes[Id]
  ? Extract<Routes[Id][Part], z.ZodType>
  : never;
type Parts<Id extends RouteId> = Extract<keyof Routes[Id], 'params' | 'query' | 'headers' | 'body'>;

/** What a handler gets: checked, with defaults. */
export type Asked<Id extends RouteId> = {
  readonly [Part in Parts<Id>]: z.output<Schema<Id, Part>>;
};

type Said<Id extends RouteId, Part> = Part extends 'query'
  ? Partial<z.output<Schema<Id, Part>>>
  : z.input<Schema<Id, Part & PropertyKey>>;
/** Parts in which nothing has to be said. */
type Silent<Id extends RouteId> = {
  [Part in Parts<Id>]: Record<never, never> extends Said<Id, Part>
    ? Part
    : undefined extends Said<Id, Part>
      ? Part
      : never;
}[Parts<Id>];

/** What a client says. */
export type Question<Id extends RouteId> = {
  readonly [Part in Exclude<Parts<Id>, Silent<Id>>]: Said<Id, Part>;
} & {
  readonly [Part in Silent<Id>]?: Said<Id, Part>;
};

export type AnswerTo<Id extends RouteId> = z.output<Routes[Id]['answer']>;

export function routeOf(id: RouteId): Route {
  return routes[id];
}

/** Whether a request may carry an Idempotency-Key: it does something new each time that it is carried out. */
export function takesKey(id: RouteId): boolean {
  return 'idempotency-key' in (routeOf(id).headers?.shape ?? {});
}

/** The entity tag of a version, as ETag and If-Match carry it. */
export function entityTagOf(version: number): string {
  return `"${version}"`;
}
