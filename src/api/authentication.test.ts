import { once } from 'node:events';
import { createServer, get, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, it } from 'vitest';
import { systemClock as clock } from '../base/clock.ts';
import { Authentication } from './authentication.ts';
import { LOCAL_ADMIN } from './principal.ts';

it.each([
  ['is nobody by the kind of the connection alone', false, undefined],
  ['is the local admin where the server was named (control)', true, LOCAL_ADMIN],
])('who comes without TLS %s', async (_, isTrusted, principal) => {
  const authentication = new Authentication({ findToken: () => undefined, tenantId: () => undefined, clock });
  const asked = Promise.withResolvers<IncomingMessage>();
  const server = createServer((request, response) => {
    asked.resolve(request);
    response.end();
  });
  if (isTrusted) authentication.trust(server);
  await once(server.listen(0, '127.0.0.1'), 'listening');
  try {
    get({ port: (server.address() as AddressInfo).port, agent: false }).on('error', asked.reject);
    expect(authentication.identify(await asked.promise)).toEqual(principal);
  } finally {
    server.close();
  }
});
