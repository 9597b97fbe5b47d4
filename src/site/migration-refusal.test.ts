import { describe, expect, it } from 'vitest';
import { refusalOf } from './migration-refusal.ts';

const failed = (code: string) => ({ facts: { code, error: 'what went wrong' } });
const times = (count: number, code: string) => Array.from({ length: count }, () => failed(code));

describe('a VM that is to be moved to a host that takes no shadow of it', () => {
  it.each(['KEEPER_HOST_NO_ROOM', 'KEEPER_HOST_MAINTENANCE', 'KEEPER_HOST_REFUSED'])(
    'is told at once of %s, which that host says of itself',
    (code) => {
      expect(refusalOf('vm', [failed(code)])).toMatchObject({ code, message: 'what went wrong' });
    },
  );

  it.each([
    'WIRE_VERSION',
    'WIRE_PEER_UNTRUSTED',
    'WIRE_PEER_EXPIRED',
    'WIRE_PEER_NOT_A_HOST',
    'WIRE_PEER_NAME',
  ])('is told at once of %s, which nobody mends but an administrator', (code) => {
    const message = `what went wrong (${code})`;
    expect(refusalOf('vm', [failed(code)])).toMatchObject({ code: 'KEEPER_PEER_REFUSED', message });
  });

  it.each(['KEEPER_PEER_REFUSED', 'WIRE_REFUSED'])('is told of %s when that is heard five times', (code) => {
    expect(refusalOf('vm', times(4, code))).toBeUndefined();
    expect(refusalOf('vm', times(5, code))).toMatchObject({ code: 'KEEPER_PEER_REFUSED' });
  });

  it('goes on waiting where nothing failed, or what the next try may not meet', () => {
    expect(refusalOf('vm', [])).toBeUndefined();
    expect(refusalOf('vm', times(20, 'KEEPER_PEER_LOST'))).toBeUndefined();
    expect(refusalOf('vm', [failed('WIRE_VERSION'), failed('WIRE_DIAL_FAILED')])).toBeUndefined();
  });
});
