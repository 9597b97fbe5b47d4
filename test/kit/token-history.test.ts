import { describe, expect, it } from 'vitest';
import { record } from './lease-store-contract.ts';
import { type Attempt, faultsOf, type History, type Reading } from './token-history.ts';

function wrote(token: number, at: number, change: Partial<Attempt> = {}): Attempt {
  const outcome = { kind: 'swapped', revision: token } as const;
  return {
    holder: 'A',
    token,
    expectedRevision: token - 1,
    outcome,
    beganMs: at,
    endedMs: at + 5,
    ...change,
  };
}

function read(token: number, at: number): Reading {
  const stored = { record: record(token, { mode: 'in-sync' }), revision: token, isHeld: false };
  return { stored, beganMs: at, endedMs: at + 5 };
}

const GOOD: History = {
  attempts: [wrote(1, 0), wrote(2, 10), wrote(3, 20, { outcome: { kind: 'unknown' } }), wrote(4, 40)],
  readings: [read(1, 7), read(2, 16), read(3, 30)],
  final: read(4, 60).stored,
};

describe('the history of a record', () => {
  it('has no fault when it is that of one record, with writes that were carried out without an answer', () => {
    expect(faultsOf(GOOD)).toEqual([]);
  });

  it.each<[string, Partial<History>, string]>([
    [
      'a token that two have',
      { attempts: [...GOOD.attempts, wrote(2, 10, { holder: 'B' })] },
      'token 2 was given to A, B',
    ],
    [
      'a reading that misses what was answered',
      { readings: [read(1, 17)] },
      'a reading at revision 1 missed token 2',
    ],
    [
      'a reading of what is written later',
      { readings: [read(4, 30)] },
      'a reading at revision 4 saw token 4 early',
    ],
    ['readings that go back', { readings: [read(3, 22), read(2, 28)] }, 'revision 2 was read after 3'],
    ['a record that nobody wrote', { final: { ...read(9, 0).stored } }, 'token 9 of A came out of thin air'],
    ['a write that vanished', { final: read(3, 0).stored }, 'a reading at revision 3 missed token 4'],
  ])('is found to have %s (control)', (_, change, fault) => {
    expect(faultsOf({ ...GOOD, ...change })).toContain(fault);
  });
});
