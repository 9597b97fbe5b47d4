import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decodeLine, LineSplitter, requestSchema } from './control-protocol.ts';

describe('the line splitter', () => {
  it('finds the same lines however the bytes are cut', () => {
    const lines = fc.array(fc.string({ unit: 'grapheme' }).map((text) => text.replaceAll('\n', '')));
    fc.assert(
      fc.property(lines, fc.array(fc.integer({ min: 1, max: 7 })), (texts, cuts) => {
        const bytes = Buffer.from(texts.map((text) => `${text}\n`).join(''));
        const splitter = new LineSplitter({ bytesMax: 1000 });
        const found: string[] = [];
        for (let at = 0, step = 0; at < bytes.length; step += 1) {
          const end = at + (cuts[step % Math.max(1, cuts.length)] ?? bytes.length);
          splitter.push(bytes.subarray(at, end));
          at = end;
          for (let next = splitter.next(); next.kind === 'line'; next = splitter.next())
            found.push(next.text);
        }
        expect(found).toEqual(texts);
      }),
    );
  });

  it('refuses a line that is too long before its end has come', () => {
    const splitter = new LineSplitter({ bytesMax: 4 });
    splitter.push(Buffer.from('1234\n12345'));
    expect(splitter.next()).toEqual({ kind: 'line', text: '1234' });
    expect(splitter.next()).toEqual({ kind: 'too-long' });
  });

  it('gives back what follows the last line', () => {
    const splitter = new LineSplitter({ bytesMax: 100 });
    splitter.push(Buffer.from('line\nrest'));
    splitter.next();
    expect(Buffer.from(splitter.takeRest()).toString()).toBe('rest');
  });
});

describe('a request', () => {
  it.each<unknown>([
    { id: 1, method: 'reboot' },
    { id: -1, method: 'status' },
    { method: 'status' },
    { id: 1, method: 'status', extra: true },
    { id: 1, method: 'stop', params: { graceful: 'yes' } },
    { id: 1, method: 'events', params: { since: 0.5 } },
    [],
    null,
  ])('is refused when it is %j', (value) => {
    expect(requestSchema.safeParse(value).success).toBe(false);
  });
});

describe('an order for limits', () => {
  const read = (params: unknown) =>
    requestSchema.safeParse(decodeLine(JSON.stringify({ id: 1, method: 'limits', params }))).success;

  it.each([
    {},
    { cpuMillicores: 300 },
    { cpuMillicores: null, netBytesPerSecond: null, diskBytesPerSecond: 1e9, memoryBytes: 2 ** 40 },
  ])('may be %j', (params) => expect(read(params)).toBe(true));

  it.each([
    { cpuMillicores: 0 },
    { cpuMillicores: -300 },
    { cpuMillicores: 49 },
    { cpuMillicores: 1e12 },
    { cpuMillicores: 300.5 },
    { cpuMillicores: '300' },
    { cpuMillicores: [300] },
    { cpuMillicores: true },
    { netBytesPerSecond: 0 },
    { diskBytesPerSecond: 1e300, netBytesPerSecond: 1e6 },
    { memoryBytes: 0 },
    { memoryReadyBytes: 2 ** 60 },
    { cpu: 300 },
    { __proto__x: null },
    null,
    [],
    undefined,
  ])('may not be %j', (params) => expect(read(params)).toBe(false));
});
