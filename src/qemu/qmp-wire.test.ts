import fc from 'fast-check';
import { expect, test } from 'vitest';
import { encodeCommand, type QmpMessage, QmpParser } from './qmp-wire.ts';

function parse(chunks: readonly Buffer[], lineBytesMax?: number): QmpMessage[] {
  const messages: QmpMessage[] = [];
  const parser = new QmpParser(
    (message) => messages.push(message),
    lineBytesMax === undefined ? {} : { lineBytesMax },
  );
  for (const chunk of chunks) parser.push(chunk);
  return messages;
}

test('messages arrive whole and in order, however the stream was split', () => {
  const message = fc.dictionary(fc.string({ unit: 'grapheme' }), fc.jsonValue());
  const cuts = fc.array(fc.nat(400), { maxLength: 20 });
  fc.assert(
    fc.property(fc.array(message), cuts, (messages, offsets) => {
      const sent = messages.map((each) => JSON.parse(JSON.stringify(each)));
      const stream = Buffer.from(sent.map((each) => `${JSON.stringify(each)}\r\n`).join(''));
      const bounds = [
        0,
        ...offsets.map((offset) => Math.min(offset, stream.length)).sort((a, b) => a - b),
        stream.length,
      ];
      const chunks = bounds.slice(1).map((end, index) => stream.subarray(bounds[index], end));
      expect(parse(chunks)).toEqual(sent);
    }),
  );
});

test.each(['SSH-2.0-OpenSSH_9.2\r\n', '{"a":\n', '[]\n', 'null\n', '7\n', '\n', '\0\n'])(
  '%j is garbage',
  (text) => {
    expect(() => parse([Buffer.from(text)])).toThrow(expect.objectContaining({ code: 'QMP_GARBAGE' }));
  },
);

test('a line without end is garbage, before it fills the memory', () => {
  const chunks = Array.from({ length: 11 }, () => Buffer.from('"aaaaaaaa'));
  expect(parse(chunks.slice(0, 10), 90)).toEqual([]);
  expect(() => parse(chunks, 90)).toThrow(expect.objectContaining({ code: 'QMP_GARBAGE' }));
});

test('a command is one line', () => {
  expect(encodeCommand('cont', undefined, 7)).toBe('{"execute":"cont","id":7}\r\n');
  expect(encodeCommand('a', { text: 'x\ny' }, 8).trimEnd()).not.toContain('\n');
});
