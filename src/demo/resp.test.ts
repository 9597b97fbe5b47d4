import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { encodeCommand, RedisErrorReply, type Reply, ReplyDecoder } from './resp.ts';

function decoded(chunks: readonly Uint8Array[]): Reply[] {
  const decoder = new ReplyDecoder();
  const replies: Reply[] = [];
  for (const chunk of chunks) decoder.push(chunk, (reply) => replies.push(reply));
  return replies;
}

function cutAt(bytes: Uint8Array, places: readonly number[]): Uint8Array[] {
  const cuts = [...new Set(places.map((place) => place % (bytes.length + 1)))].sort((a, b) => a - b);
  return [0, ...cuts].map((start, index) => bytes.subarray(start, cuts[index] ?? bytes.length));
}

function encoded(reply: Reply): string {
  if (reply === null) return '$-1\r\n';
  if (typeof reply === 'number') return `:${reply}\r\n`;
  if (typeof reply === 'string') return `$${Buffer.byteLength(reply)}\r\n${reply}\r\n`;
  if (reply instanceof RedisErrorReply) return `-${reply.message}\r\n`;
  return `*${reply.length}\r\n${reply.map(encoded).join('')}`;
}

const { reply: anyReply } = fc.letrec<{ reply: Reply }>((tie) => ({
  reply: fc.oneof(
    { maxDepth: 3 },
    fc.string({ unit: 'binary' }),
    fc.integer(),
    fc.constant(null),
    fc.constant(new RedisErrorReply('ERR no')),
    fc.array(tie('reply'), { maxLength: 4 }),
  ),
}));

describe('the replies of Redis', () => {
  it('are the same however their bytes are split', () => {
    fc.assert(
      fc.property(fc.array(anyReply, { maxLength: 5 }), fc.array(fc.nat()), (replies, places) => {
        const bytes = Buffer.from(replies.map(encoded).join(''));
        expect(decoded(cutAt(bytes, places))).toEqual(replies);
      }),
    );
  });

  it('are found at every single split', () => {
    const bytes = Buffer.from('+OK\r\n:-7\r\n$5\r\nä\r\n1\r\n*2\r\n$-1\r\n*-1\r\n-ERR no\r\n');
    const expected = ['OK', -7, 'ä\r\n1', [null, null], new RedisErrorReply('ERR no')];
    for (let cut = 0; cut <= bytes.length; cut += 1) {
      expect(decoded([bytes.subarray(0, cut), bytes.subarray(cut)])).toEqual(expected);
    }
  });

  it.each([
    ['a type that RESP2 does not know', '%1\r\n'],
    ['a line that ends in the wrong way', '+OK\n'],
    ['a length that is no number', '$x\r\n'],
    ['a negative length', '$-2\r\n'],
    ['a string longer than announced', '$2\r\nabcd\r\n'],
    ['an endless nesting', '*1\r\n'.repeat(20)],
  ])('are refused with %s', (_, bytes) => {
    expect(() => decoded([Buffer.from(bytes)])).toThrow(
      expect.objectContaining({ code: 'DEMO_REDIS_GARBLED' }),
    );
  });

  it('ask for nothing but counted strings', () => {
    expect(encodeCommand(['SET', 'ä', ''])).toBe('*3\r\n$3\r\nSET\r\n$2\r\nä\r\n$0\r\n\r\n');
  });
});
