import { once } from 'node:events';
import { request as httpRequest } from 'node:http';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseExposition, sampleOf } from '../../test/kit/exposition.ts';
import { ask, type ServedApi, serveApi } from './api-fixture.ts';
import { routes } from './routes.ts';

async function metricsOf({ client }: ServedApi) {
  return parseExposition(await client.call('getMetrics', {}));
}

describe('the metrics of the API', () => {
  it('count requests by operation and class of status, beside what the host says', async () => {
    await using api = await serveApi();
    const { socketPath } = api;
    await ask(socketPath, { method: 'POST', path: '/v1/vms', body: '{"spec":"name: alpha"}' });
    await ask(socketPath, { path: '/v1/vms/alpha' });
    await ask(socketPath, { path: '/v1/vms/alpha' });
    await ask(socketPath, { path: '/v1/vms/beta' });
    await ask(socketPath, { path: '/v1/nothing' });
    await ask(socketPath, { path: '/v1/vms/%zz' });
    const requests = 'understudy_api_requests_total';
    // An answer is counted when its last byte has left.
    await expect
      .poll(async () => sampleOf(await metricsOf(api), requests, { operation: 'none', status: '4xx' }))
      .toBe(2);
    const families = await metricsOf(api);
    const count = (operation: string, status: string) => sampleOf(families, requests, { operation, status });
    expect([count('declareVm', '2xx'), count('getVm', '2xx'), count('getVm', '4xx')]).toEqual([1, 2, 1]);
    expect(count('getVm', '5xx')).toBeUndefined();
    const duration = 'understudy_api_request_duration_seconds';
    expect(sampleOf(families, `${duration}_count`, { operation: 'getVm' })).toBe(3);
    expect(sampleOf(families, `${duration}_sum`, { operation: 'getVm' })).toBeGreaterThan(0);
    expect(sampleOf(families, 'memory_vms')).toBe(1);
  });

  it('come in the text format of Prometheus', async () => {
    await using api = await serveApi();
    const { headers, status } = await ask(api.socketPath, { path: '/metrics' });
    expect([status, headers['content-type']]).toEqual([200, 'text/plain; version=0.0.4; charset=utf-8']);
  });

  it('count the readers of live events that are connected', async () => {
    await using api = await serveApi();
    const streams = async () => sampleOf(await metricsOf(api), 'understudy_api_event_streams');
    expect(await streams()).toBe(0);
    const { socketPath } = api;
    const request = httpRequest({ socketPath, path: '/v1/events/stream', agent: false }).end();
    request.on('error', () => {});
    await once(request, 'response');
    expect(await streams()).toBe(1);
    request.destroy();
    await expect.poll(streams).toBe(0);
  });

  it('have no label that a caller chooses, whatever is asked for', async () => {
    await using api = await serveApi();
    const path = fc.string({ unit: 'binary' }).map((text) => `/${encodeURIComponent(text.toWellFormed())}`);
    await fc.assert(
      fc.asyncProperty(path, fc.constantFrom('GET', 'PUT', 'DELETE', 'HEAD'), async (tried, method) => {
        await ask(api.socketPath, { method, path: tried });
      }),
      { numRuns: 50 },
    );
    const operations = [...(await metricsOf(api)).values()].flatMap(({ samples }) =>
      samples.flatMap(({ labels }) => labels.get('operation') ?? []),
    );
    expect(operations).toContain('none');
    expect([...Object.keys(routes), 'none']).toEqual(expect.arrayContaining([...new Set(operations)]));
  });
});

describe('the id of a request', () => {
  it('goes to the host with what is asked for', async () => {
    await using api = await serveApi();
    api.service.declareVm({ spec: 'name: alpha', directory: '/', desired: 'running' });
    const promote = { method: 'POST', path: '/v1/vms/alpha/promote' };
    await ask(api.socketPath, { ...promote, headers: { 'x-request-id': 'call-1' } });
    const { headers } = await ask(api.socketPath, promote);
    expect(api.service.traces).toEqual(['call-1', headers['x-request-id']]);
  });
});
