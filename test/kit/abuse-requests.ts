import fc from 'fast-check';
import type { RawRequest } from '../../src/api/api-fixture.ts';
import type { Contract, Operation } from '../../src/api/contract-fixture.ts';
import { type RouteId, routeOf } from '../../src/api/routes.ts';
import { type AbuseWorld, EMPTY_TENANT, KNOWN_SNAPSHOT, NOBODY, TENANTS } from './abuse-world.ts';

/** So many ways to fill a route in. With less, no way would be left that names what is there and fits it. */
export const FITTINGS_MAX = 12;
const CUT = ' '.repeat(1_300_000);

interface JsonSchema {
  readonly type?: string;
  readonly anyOf?: readonly JsonSchema[];
  readonly enum?: readonly unknown[];
  readonly const?: unknown;
  readonly properties?: Readonly<Record<string, JsonSchema>>;
  readonly required?: readonly string[];
}

/** A request of a route, and whether it is of the form of one: then it reaches the route. */
export interface Attempt {
  readonly id: RouteId;
  readonly request: RawRequest;
  readonly isRouted: boolean;
}

const UPGRADE = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
};

const TRICKY_SEGMENTS = [
  ...['..', '.', '%2e%2e', '%2e%2e%2f', '%2e%2e%2fbeta7', 'alpha7%2f..%2fbeta7', 'alpha7%00', '%00', '%'],
  ...['%zz', '%ff', '%c0%ae', '', '/', '//beta7', 'alpha7/..', 'ALPHA7', 'alpha7%20', '*', ':name', '{name}'],
  ...[
    '__proto__',
    'constructor',
    'alpha7;x',
    'alpha7%3fx=1',
    '-alpha7',
    '%c3%a4',
    'a'.repeat(41),
    'b'.repeat(101),
  ],
  'c'.repeat(5000),
];
const TRICKY_PATHS = [
  (path: string) => `/${path}`,
  (path: string) => `${path}/`,
  (path: string) => `${path}//`,
  (path: string) => path.toUpperCase(),
  (path: string) => `${path}/..`,
  (path: string) => `/v1/../..${path}`,
  (path: string) => `/%2e%2e${path}`,
  (path: string) => `/v1/health/%2e%2e/%2e%2e${path}`,
  (path: string) => path.replace('v1', '%761'),
  (path: string) => `${path}%00`,
  (path: string) => `${path}?after=%00&limit=1e9&vm=..&x[]=1`,
];
const TRICKY_BODIES = [
  ...['', '{', 'null', '[]', '7', '"spec"', '\u0000', '{"__proto__":{"spec":"name: x"}}', '['.repeat(50_000)],
  ...['{"constructor":{"prototype":{}}}', '{"name":"x","name":7}', `{"${'k'.repeat(9000)}":1}`],
];
const WRONG_VALUES = [null, 7, -1, 1.5, true, '', '\u0000', '../..', [], {}, ['x'], 'x'.repeat(70_000)];
const TRICKY_HEADERS: readonly Record<string, string>[] = [
  ...['', '*', '"0"', 'W/"1"', '"1", "2"', '1', '"99"', 'x'.repeat(9000)].map((tag) => ({ 'if-match': tag })),
  ...['', 'two words', 'k', 'x'.repeat(129)].map((key) => ({ 'idempotency-key': key })),
  ...['text/html', 'application/x-www-form-urlencoded', 'application/json; charset=utf-16', ''].map(
    (type) => ({
      'content-type': type,
    }),
  ),
  ...['-1', '1e3', '9'.repeat(30)].map((id) => ({ 'last-event-id': id })),
  { 'x-http-method-override': 'DELETE' },
  { 'x-forwarded-for': '127.0.0.1', 'x-request-id': 'x'.repeat(300) },
  { connection: 'upgrade', upgrade: 'h2c' },
];

/** Requests of any route of the table, made from its description alone. */
export class AbuseRequests {
  readonly #contract: Contract;
  /** Whatever some route may take, tried for every value that some route asks for. */
  readonly #pool: readonly unknown[];
  readonly #names: readonly string[];

  constructor(contract: Contract, { tokenIds }: Pick<AbuseWorld, 'tokenIds'>) {
    const vms = ['alpha7', 'beta7', 'gamma7', NOBODY];
    this.#contract = contract;
    this.#names = [
      ...vms,
      ...TENANTS,
      EMPTY_TENANT,
      'default',
      'here',
      ...tokenIds.slice(0, 3),
      '0123456789ab',
      KNOWN_SNAPSHOT,
    ];
    this.#pool = [
      ...vms.map((name) => `name: ${name}`),
      ...[
        ...this.#names,
        '/',
        null,
        true,
        false,
        0,
        0.05,
        1,
        60,
        [],
        {},
        '"1"',
        '"2"',
        '"3"',
        'k1',
        'cpu.usedCores',
      ],
    ];
  }

  /** Every value that fits somewhere is in one of them, up to `max`: what is carried out for who may. */
  fitting(id: RouteId, { max = FITTINGS_MAX } = {}): Attempt[] {
    const operation = this.#operation(id);
    const longest = Math.max(1, ...this.#parts(operation).map(({ schema }) => this.#fits(schema, id).length));
    const bodySchema = this.#bodySchema(operation);
    const inBody = Object.values(bodySchema?.properties ?? {}).map((schema) => this.#fits(schema, id).length);
    const count = Math.min(max, Math.max(longest, ...inBody));
    return Array.from({ length: count }, (_, index) => this.#attempt(id, index));
  }

  /** With one thing or more that is wrong or hostile. */
  hostile(id: RouteId): fc.Arbitrary<Attempt> {
    const { path } = routeOf(id);
    const index = fc.nat({ max: FITTINGS_MAX - 1 });
    const segment = fc.oneof(
      fc.constantFrom(...TRICKY_SEGMENTS),
      fc.string({ unit: 'binary' }).map((text) => encodeURIComponent(text.toWellFormed())),
    );
    const wrongPath = fc.oneof(
      ...(path.includes('{') ? [segment.map((name) => () => path.replaceAll(/\{\w+\}/g, () => name))] : []),
      fc.constantFrom(...TRICKY_PATHS),
    );
    const properties = Object.keys(this.#bodySchema(this.#operation(id))?.properties ?? { name: {} });
    const wrongValue = fc
      .tuple(index, fc.constantFrom(...properties, 'more', '__proto__'), fc.constantFrom(...WRONG_VALUES))
      .map(([at, key, value]) => JSON.stringify({ ...(this.#body(id, at) as object), [key]: value }));
    const wrongBody = fc.oneof(fc.constantFrom(...TRICKY_BODIES), wrongValue, fc.json());
    const wrong = fc.record(
      { path: wrongPath, body: wrongBody, headers: fc.constantFrom(...TRICKY_HEADERS) },
      { requiredKeys: [] },
    );
    return fc.tuple(index, wrong).map(([at, { path: changed, body, headers }]) => {
      const { body: fitting, ...request } = this.#attempt(id, at).request;
      // A connection that ends with the answer takes it along when something is still unread: nobody could judge that.
      const sent = headers !== undefined && 'connection' in headers ? undefined : (body ?? fitting);
      return {
        id,
        isRouted: changed === undefined,
        request: {
          ...request,
          ...(changed !== undefined && { path: changed(request.path) }),
          ...(sent !== undefined && { body: sent }),
          headers: { ...request.headers, ...headers },
        },
      };
    });
  }

  /** With more than may be sent; most of it may never be read. */
  huge(id: RouteId): Attempt {
    const { request } = this.#attempt(id, 0);
    return { id, isRouted: true, request: { ...request, body: CUT } };
  }

  #attempt(id: RouteId, index: number): Attempt {
    const { method, path, body } = routeOf(id);
    const operation = this.#operation(id);
    let filled = path;
    const headers: Record<string, string> = id === 'openConsole' ? { ...UPGRADE } : {};
    for (const { name, in: where, required, schema } of operation.parameters ?? []) {
      const value = String(this.#pick(schema, { id, index }));
      if (where === 'path') filled = filled.replace(`{${name}}`, value);
      // Not a key: that is for who repeats a request.
      else if (where === 'header' && (required || name === 'if-match') && index % 4 !== 3)
        headers[name] = value;
    }
    const isQueried = index % 2 === 1 && operation.parameters?.some((each) => each.in === 'query');
    const query = isQueried ? '?after=0' : '';
    const said = body === undefined ? undefined : JSON.stringify(this.#body(id, index));
    const isTaken = id === 'listEvents' || id === 'streamEvents';
    return {
      id,
      isRouted: true,
      request: {
        method,
        path: filled + (isTaken ? query : ''),
        headers,
        ...(said !== undefined && { body: said }),
      },
    };
  }

  #body(id: RouteId, index: number): unknown {
    const schema = this.#bodySchema(this.#operation(id));
    return schema === undefined ? {} : this.#object(schema, { id, index });
  }

  #object(schema: JsonSchema, { id, index }: { id: RouteId; index: number }): Record<string, unknown> {
    const required = schema.required ?? [];
    const all = Object.entries(schema.properties ?? {});
    const said = all.filter(([name]) => required.includes(name) || index % 3 !== 2);
    return Object.fromEntries(said.map(([name, part]) => [name, this.#pick(part, { id, index })]));
  }

  #pick(schema: object, { id, index }: { id: RouteId; index: number }): unknown {
    const fits = this.#fits(schema, id);
    return fits[index % fits.length];
  }

  /** @throws Error where nothing in the pool fits: then it lacks something for a new route */
  #fits(given: object, id: RouteId): unknown[] {
    const schema = this.#contract.inlined(given) as JsonSchema;
    const objects = [schema, ...(schema.anyOf ?? [])].filter(({ properties }) => properties !== undefined);
    const nested = objects.flatMap((each) => [0, 1].map((index) => this.#object(each, { id, index })));
    const named = [schema, ...(schema.anyOf ?? [])].flatMap((each) => each.enum ?? each.const ?? []);
    const checker = this.#contract.checkerOf(given);
    const fits = [...named, ...nested, ...this.#pool].filter((value) => checker.safeParse(value).success);
    if (fits.length > 0) return fits;
    throw new Error(`${id}: nothing in the pool of this test fits ${JSON.stringify(schema)}: add something`);
  }

  #parts({ parameters = [] }: Operation): readonly { schema: object }[] {
    return parameters.filter(({ in: where }) => where === 'path');
  }

  #bodySchema({ requestBody }: Operation): JsonSchema | undefined {
    const schema = requestBody?.content?.['application/json']?.schema;
    if (schema === undefined) return undefined;
    const inlined = this.#contract.inlined(schema) as JsonSchema;
    return [inlined, ...(inlined.anyOf ?? [])].find(({ properties }) => properties !== undefined);
  }

  #operation(id: RouteId): Operation {
    const found = this.#contract.operations.get(id);
    if (found === undefined) throw new Error(`${id} is not described`);
    return found;
  }
}
