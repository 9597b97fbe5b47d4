import { describe, expect, it } from 'vitest';
import { isForLoopback } from './loopback-frames.ts';

const header = (protocol: number) => [...new Array(12).fill(0x52), protocol >> 8, protocol & 0xff];

function toIpv4(address: string): Uint8Array {
  const fields = new Array(16).fill(7);
  return Uint8Array.from([...header(0x0800), ...fields, ...address.split('.').map(Number), 1, 2]);
}

/** `address`: 32 hexadecimal digits. */
function toIpv6(address: string): Uint8Array {
  const fields = new Array(24).fill(7);
  return Uint8Array.from([...header(0x86dd), ...fields, ...Buffer.from(address, 'hex'), 1, 2]);
}

describe('a frame', () => {
  it.each(['127.0.0.1', '127.255.0.9', '0.0.0.0', '0.1.2.3'])('to %s is for the loopback', (address) => {
    expect(isForLoopback(toIpv4(address))).toBe(true);
  });

  it.each(['128.0.0.1', '10.0.0.127', '192.0.2.1', '255.255.255.255', '1.0.0.0'])(
    'to %s is not',
    (address) => {
      expect(isForLoopback(toIpv4(address))).toBe(false);
    },
  );

  it.each([
    ['::1', `${'0'.repeat(31)}1`],
    ['::', '0'.repeat(32)],
    ['::ffff:127.0.0.1', `${'0'.repeat(20)}ffff7f000001`],
    ['::127.0.0.1', `${'0'.repeat(24)}7f000001`],
  ])('to %s is for the loopback', (_, address) => {
    expect(isForLoopback(toIpv6(address))).toBe(true);
  });

  it.each([
    ['fe80::1', `fe80${'0'.repeat(27)}1`],
    ['ff02::1', `ff02${'0'.repeat(27)}1`],
    ['2001:db8::7f00:1', `20010db8${'0'.repeat(16)}7f000001`],
  ])('to %s is not', (_, address) => {
    expect(isForLoopback(toIpv6(address))).toBe(false);
  });

  it('of another protocol is not, and one that is cut off is not let through', () => {
    expect(isForLoopback(Uint8Array.from([...header(0x0806), ...new Array(28).fill(127)]))).toBe(false);
    expect(isForLoopback(Uint8Array.from(header(0x0806)))).toBe(false);
    for (const frame of [toIpv4('192.0.2.1'), toIpv6(`fe80${'0'.repeat(28)}`)])
      expect(isForLoopback(frame.subarray(0, 30))).toBe(true);
  });
});
