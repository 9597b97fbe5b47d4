import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decodePulse, encodePulse, newPulseKey, type Pulse } from './pulse-datagram.ts';

const ms = fc.double({ min: 0, max: 1e12, noNaN: true });
const pulses: fc.Arbitrary<Pulse> = fc.record({
  path: fc.nat(255),
  run: ms,
  sequence: fc.nat(),
  sentMs: ms,
  echo: fc.option(fc.record({ sentMs: ms, heldMs: ms }), { nil: undefined }),
});

describe('a heartbeat', () => {
  const key = newPulseKey();

  it('is read as it was written', () => {
    fc.assert(
      fc.property(pulses, (pulse) => {
        const datagram = encodePulse(pulse, { key, side: 'primary' });
        expect(decodePulse(datagram, { key, from: 'primary' })).toEqual(pulse);
      }),
    );
  });

  it('is passed over with any bit flipped, of any other length, of another link, or thrown back', () => {
    fc.assert(
      fc.property(pulses, fc.nat(), (pulse, where) => {
        const datagram = encodePulse(pulse, { key, side: 'primary' });
        expect(decodePulse(datagram, { key, from: 'shadow' })).toBeUndefined();
        expect(decodePulse(datagram, { key: newPulseKey(), from: 'primary' })).toBeUndefined();
        expect(decodePulse(datagram.subarray(1), { key, from: 'primary' })).toBeUndefined();
        const bit = where % (datagram.length * 8);
        datagram[bit >> 3] = (datagram[bit >> 3] ?? 0) ^ (1 << (bit & 7));
        expect(decodePulse(datagram, { key, from: 'primary' })).toBeUndefined();
      }),
    );
  });
});
