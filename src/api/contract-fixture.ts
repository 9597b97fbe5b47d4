import { z } from 'zod';
import { assert } from '../base/assert.ts';
import type { RawAnswer } from './api-fixture.ts';

interface Content {
  readonly content?: Readonly<Record<string, { readonly schema: object }>>;
}

export interface Parameter {
  readonly name: string;
  readonly in: string;
  readonly required: boolean;
  readonly schema: object;
}

export interface Operation {
  readonly operationId: string;
  readonly parameters?: readonly Parameter[];
  readonly requestBody?: Content & { readonly required: boolean };
  readonly responses: Readonly<Record<string, Content>>;
}

interface OpenApi {
  readonly openapi: string;
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components: { readonly schemas: Readonly<Record<string, object>> };
}

/** The OpenAPI document of a server, as something that checks answers. */
export class Contract {
  readonly document: OpenApi;
  readonly operations: ReadonlyMap<string, Operation>;
  readonly #checkers = new Map<object, z.ZodType>();

  constructor(document: OpenApi) {
    this.document = document;
    const all = Object.values(document.paths).flatMap((path) => Object.values(path));
    this.operations = new Map(all.map((each) => [each.operationId, each]));
  }

  schema(name: string): z.ZodType {
    return this.checkerOf(this.document.components.schemas[name] ?? {});
  }

  /** A schema of the document as something that checks. */
  checkerOf(schema: object): z.ZodType {
    const known = this.#checkers.get(schema);
    if (known !== undefined) return known;
    const made = z.fromJSONSchema(this.inlined(schema) as Parameters<typeof z.fromJSONSchema>[0]);
    this.#checkers.set(schema, made);
    return made;
  }

  /** With what it refers to put in. */
  inlined(value: unknown): unknown {
    if (Array.isArray(value)) return value.map((each) => this.inlined(each));
    if (typeof value !== 'object' || value === null) return value;
    if (!('$ref' in value))
      return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, this.inlined(part)]));
    const name = /^#\/components\/schemas\/(\w+)$/.exec(String(value.$ref))?.[1] ?? '';
    const found = this.document.components.schemas[name];
    assert(found !== undefined, `${value.$ref} is nowhere`);
    return this.inlined(found);
  }

  /** What is wrong with an answer by the document; undefined when nothing is. */
  faultOf(id: string, answer: RawAnswer): string | undefined {
    const operation = this.operations.get(id);
    if (operation === undefined) return `${id} is not described`;
    const described = operation.responses[answer.status] ?? operation.responses.default;
    // The default is for refusals.
    if (operation.responses[answer.status] === undefined && answer.status < 400)
      return `${answer.status} is not described`;
    if (described?.content === undefined)
      return answer.text === '' ? undefined : 'a body where none is described';
    const mediaType = answer.headers['content-type']?.split(';')[0] ?? '';
    const schema = described.content[mediaType]?.schema;
    if (schema === undefined) return `${answer.status} with ${mediaType} is not described`;
    const said = mediaType.startsWith('text/') ? answer.text : JSON.parse(answer.text);
    return this.checkerOf(schema).safeParse(said).error?.message;
  }
}
