import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { goData, MemoryDisk, metaData } from './nbd-fixture.ts';
import { type NbdExport, Negotiation } from './nbd-negotiation.ts';
import { EXPORT_FLAG, OPTION, OPTION_REPLY } from './nbd-wire.ts';

const served: NbdExport = {
  name: 'disk',
  description: 'of a test',
  device: new MemoryDisk(8192),
  readOnly: false,
};
const exports = new Map([[served.name, served]]);

function negotiation(): Negotiation {
  return new Negotiation(exports, { noZeroes: true });
}

function ask(talk: Negotiation, option: number, data: Uint8Array = Buffer.alloc(0)) {
  const { send, next } = talk.answer({ option, data: Buffer.from(data) });
  return {
    types: send.map((reply) => reply.readUInt32BE(12)),
    data: send.map((reply) => reply.subarray(20)),
    next,
  };
}

describe('a client that negotiates', () => {
  test('is told names, and what it asks about an export', () => {
    const list = ask(negotiation(), OPTION.list);
    expect(list.types).toEqual([OPTION_REPLY.server, OPTION_REPLY.ack]);
    expect(list.data[0]?.subarray(4).toString()).toBe('disk');
    const info = ask(negotiation(), OPTION.info, goData('disk', 1, 2));
    expect(info.types).toEqual([...new Array(4).fill(OPTION_REPLY.info), OPTION_REPLY.ack]);
    expect(info.data[0]?.readBigUInt64BE(2)).toBe(8192n);
    expect(info.data[3]?.subarray(2).toString()).toBe('of a test');
    expect(info.next).toBe('go-on');
  });

  test('goes on to the export that exists, and to no other', () => {
    expect(ask(negotiation(), OPTION.go, goData('disk')).next).toEqual({
      export: served,
      structured: false,
      allocation: false,
    });
    expect(ask(negotiation(), OPTION.go, goData('other'))).toMatchObject({
      types: [OPTION_REPLY.unknown],
      next: 'go-on',
    });
    expect(ask(negotiation(), OPTION.exportName, Buffer.from('other'))).toMatchObject({
      types: [],
      next: 'close',
    });
  });

  test('gets block status for the export that it named, and only with structured replies', () => {
    const early = negotiation();
    expect(ask(early, OPTION.setMetaContext, metaData('disk', 'base:allocation')).types).toEqual([
      OPTION_REPLY.invalid,
    ]);
    const talk = negotiation();
    ask(talk, OPTION.structuredReply);
    expect(ask(talk, OPTION.listMetaContext, metaData('disk')).types).toHaveLength(2);
    expect(ask(talk, OPTION.setMetaContext, metaData('disk', 'qemu:dirty-bitmap:x')).types).toEqual([
      OPTION_REPLY.ack,
    ]);
    expect(ask(talk, OPTION.setMetaContext, metaData('disk', 'base:allocation')).types).toHaveLength(2);
    expect(ask(talk, OPTION.go, goData('disk')).next).toMatchObject({ structured: true, allocation: true });
    // A later question takes the place of the earlier one.
    ask(talk, OPTION.setMetaContext, metaData('disk'));
    expect(ask(talk, OPTION.go, goData('disk')).next).toMatchObject({ allocation: false });
  });

  test('is told that fragments can be forbidden only where replies have fragments', () => {
    const flagsOf = (talk: Negotiation) =>
      ask(talk, OPTION.info, goData('disk')).data[0]?.readUInt16BE(10) ?? 0;
    const talk = negotiation();
    expect(flagsOf(talk) & EXPORT_FLAG.doNotFragment).toBe(0);
    ask(talk, OPTION.structuredReply);
    expect(flagsOf(talk) & EXPORT_FLAG.doNotFragment).not.toBe(0);
  });

  test('is refused TLS, which makes no sense on a unix socket, and goes on without', () => {
    expect(ask(negotiation(), OPTION.startTls)).toMatchObject({
      types: [OPTION_REPLY.policy],
      next: 'go-on',
    });
  });

  test('may say anything: it is answered, or the connection ends, and nothing is kept', () => {
    const options = fc.oneof(fc.constantFrom(...Object.values(OPTION)), fc.nat(0xffffffff));
    const data = fc.oneof(
      fc.uint8Array({ maxLength: 64 }),
      fc.tuple(fc.nat(0xffffffff), fc.uint8Array({ maxLength: 40 })).map(([length, rest]) => {
        const bytes = Buffer.alloc(4 + rest.length);
        bytes.writeUInt32BE(length, 0);
        bytes.set(rest, 4);
        return bytes;
      }),
    );
    fc.assert(
      fc.property(fc.array(fc.tuple(options, data), { maxLength: 10 }), (said) => {
        const talk = negotiation();
        for (const [option, bytes] of said) {
          const { send, next } = talk.answer({ option, data: Buffer.from(bytes) });
          expect(send.length > 0 || next === 'close' || option === OPTION.exportName).toBe(true);
          expect(Buffer.concat(send).length).toBeLessThan(1000);
        }
      }),
    );
  });
});
