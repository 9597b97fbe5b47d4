import type { FastifyDynamicSwaggerOptions } from '@fastify/swagger';
import type { FastifySchema } from 'fastify';
import { jsonSchemaTransform, jsonSchemaTransformObject } from 'fastify-type-provider-zod';
import { problemSchema } from './resources.ts';
import { type RouteId, routeOf, routes } from './routes.ts';

export const PROBLEM_TYPE = 'application/problem+json';

const problemResponse = {
  description: 'Refused or failed, RFC 9457. `code` is stable; docs/errors.md lists all.',
  content: { [PROBLEM_TYPE]: { schema: problemSchema } },
};

/** A row of the table of routes as fastify and its document know it. */
export function fastifySchemaOf(id: RouteId): FastifySchema & { readonly 'x-role': string } {
  const { role, summary, params, query, headers, body, status, answer, mediaType } = routeOf(id);
  const success =
    status === 204 || status === 101
      ? answer
      : {
          description: answer.description ?? 'Done.',
          content: { [mediaType ?? 'application/json']: { schema: answer } },
        };
  return {
    operationId: id,
    summary,
    // Over the unix socket nothing has to be shown.
    security: role === 'anyone' ? [] : [{ bearer: [] }, { mutualTLS: [] }],
    'x-role': role,
    ...(params && { params }),
    ...(query && { querystring: query }),
    ...(headers && { headers }),
    ...(body && { body }),
    response: { [status]: success, default: problemResponse },
  };
}

export function fastifyPath(path: string): string {
  return path.replace(/\{(\w+)\}/g, ':$1');
}

export function swaggerOptions(version: string): FastifyDynamicSwaggerOptions {
  return {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Understudy host',
        description: 'Virtual machines of one host, and their shadows.',
        version,
      },
      components: {
        securitySchemes: {
          bearer: {
            type: 'http',
            scheme: 'bearer',
            description: 'A token; `x-role` is the least that it has to be of.',
          },
          // Of OpenAPI 3.1; the plugin's types are of 3.0.
          mutualTLS: { type: 'mutualTLS', description: 'CN is who, OU the role, O the tenant.' } as never,
        },
      },
    },
    transform: jsonSchemaTransform,
    transformObject: (document) => withoutUnused(withOptionalBodies(jsonSchemaTransformObject(document))),
  };
}

type Document = ReturnType<typeof jsonSchemaTransformObject>;

/** The plugin takes every body to be required. */
function withOptionalBodies(document: Document): Document {
  const { paths } = document as {
    paths: Record<string, Record<string, { requestBody: { required: boolean } }>>;
  };
  for (const id of Object.keys(routes) as RouteId[]) {
    const { method, path, body } = routeOf(id);
    const operation = paths[path]?.[method.toLowerCase()];
    if (body !== undefined && operation !== undefined) {
      operation.requestBody.required = !body.safeParse(undefined).success;
    }
  }
  return document;
}

/** Every schema with a name comes as one for input and one for output; most are used one way only. */
function withoutUnused(document: Document): Document {
  const { components } = document as { components?: { schemas?: object } };
  const schemas = Object.entries(components?.schemas ?? {});
  const text = JSON.stringify(document);
  const used = schemas.filter(([name]) => text.includes(`"#/components/schemas/${name}"`));
  if (used.length === schemas.length) return document;
  const trimmed = { ...document, components: { ...components, schemas: Object.fromEntries(used) } };
  // One that was used by an unused one only may be left.
  return withoutUnused(trimmed as Document);
}
