import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { ByteQueue } from './byte-queue.ts';
import { OptionReader, RequestReader, takeClientFlags } from './nbd-reader.ts';
import { COMMAND, NBD_PAYLOAD_BYTES_MAX, optionRequest, request } from './nbd-wire.ts';
import { PayloadMemory } from './payload-memory.ts';

const memory = new PayloadMemory({ ...systemClock, after: () => () => {} });

const anyRequest = fc.record({
  flags: fc.nat(0xffff),
  command: fc.nat(9),
  high: fc.nat(0xffffffff),
  low: fc.nat(0xffffffff),
  offset: fc.maxSafeNat(),
  // Around the size above which payloads are copied as they come.
  lengthBytes: fc.oneof(fc.nat(100), fc.integer({ min: 16_000, max: 17_000 })),
});
const anyCuts = fc.array(fc.integer({ min: 1, max: 20_000 }), { minLength: 1, maxLength: 20 });

/**
 * Feeds a stream in pieces of these sizes, over and over, and takes what is whole after each. What belongs into `room` is put
 * there as a socket does, no more than is room.
 */
function readAll<Item>(
  stream: Buffer,
  cuts: readonly number[],
  next: (queue: ByteQueue) => Item | undefined,
  inPlace?: Pick<RequestReader, 'room' | 'filled'>,
): Item[] {
  const queue = new ByteQueue();
  const found: Item[] = [];
  for (let at = 0, index = 0; at < stream.length; index++) {
    let cut = cuts[index % cuts.length] ?? 1;
    const room = queue.lengthBytes === 0 ? inPlace?.room : undefined;
    if (room === undefined) queue.push(stream.subarray(at, at + cut));
    else {
      cut = stream.copy(room, 0, at, at + cut);
      inPlace?.filled(cut);
    }
    at += cut;
    for (let item = next(queue); item !== undefined; item = next(queue)) found.push(item);
  }
  return found;
}

describe('a stream of requests', () => {
  test('is read the same however it is cut', () => {
    fc.assert(
      fc.property(fc.array(anyRequest, { maxLength: 12 }), anyCuts, fc.nat(255), (requests, cuts, byte) => {
        const expected = requests.map((one) => ({
          ...one,
          payload: Buffer.alloc(one.command === COMMAND.write ? one.lengthBytes : 0, byte),
        }));
        const stream = Buffer.concat(expected.flatMap((one) => [request(one), one.payload]));
        for (const isInPlace of [false, true]) {
          const reader = new RequestReader(memory);
          const next = (queue: ByteQueue) => {
            const found = reader.next(queue);
            if (found === undefined) return undefined;
            const { onPayloadFree, payload, ...rest } = found;
            const copy = Buffer.from(payload);
            // What is used again by the next ones, where it is.
            payload.fill(~byte);
            onPayloadFree?.();
            return { ...rest, payload: copy };
          };
          expect(readAll(Buffer.from(stream), cuts, next, isInPlace ? reader : undefined)).toEqual(expected);
        }
      }),
      { numRuns: 200 },
    );
  });

  test('ends at a wrong magic, and at a write larger than any may be', () => {
    const fine = request({ flags: 0, command: COMMAND.write, high: 0, low: 0, offset: 0, lengthBytes: 1 });
    const reading = (bytes: Buffer) => () =>
      readAll(bytes, [7], (queue) => new RequestReader(memory).next(queue));
    const spoiled = Buffer.from(fine);
    spoiled[0] = 1;
    expect(reading(spoiled)).toThrow(expect.objectContaining({ code: 'BLOCK_NBD_VIOLATION' }));
    const large = Buffer.from(fine);
    large.writeUInt32BE(NBD_PAYLOAD_BYTES_MAX + 1, 24);
    expect(() => readAll(large, [28], (queue) => new RequestReader(memory).next(queue))).toThrow('33554433');
  });
});

describe('a stream of options', () => {
  test('is read the same however it is cut', () => {
    const anyOption = fc.record({ option: fc.nat(0xffffffff), data: fc.uint8Array({ maxLength: 300 }) });
    fc.assert(
      fc.property(fc.array(anyOption, { maxLength: 8 }), anyCuts, (options, cuts) => {
        const stream = Buffer.concat(options.map(({ option, data }) => optionRequest(option, data)));
        const reader = new OptionReader();
        const found = readAll(stream, cuts, (queue) => reader.next(queue));
        expect(found).toEqual(options.map(({ option, data }) => ({ option, data: Buffer.from(data) })));
      }),
    );
  });

  test('ends at once where one announces more than anybody needs to say', () => {
    const option = optionRequest(7);
    option.writeUInt32BE(0x7fffffff, 12);
    expect(() => readAll(option, [16], (queue) => new OptionReader().next(queue))).toThrow(
      '2147483647 bytes',
    );
  });
});

test('a client has to know fixed newstyle, and nothing that the server does not know', () => {
  const flagsOf = (flags: number) => {
    const queue = new ByteQueue();
    queue.push(Buffer.of(0, 0, 0, flags));
    return takeClientFlags(queue);
  };
  expect([flagsOf(1), flagsOf(3)]).toEqual([{ noZeroes: false }, { noZeroes: true }]);
  expect(() => flagsOf(2)).toThrow('fixed newstyle');
  expect(() => flagsOf(5)).toThrow('0x5');
});
