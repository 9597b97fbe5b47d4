import { describe, expect, it } from 'vitest';
import { BlockError } from '../block/block-error.ts';
import type { ProtectionState } from '../shadow/protection.ts';
import type { ActingRight } from './acting-right.ts';
import { type WatchedVm, watchDisks } from './disk-opening.ts';
import { RemoteShadow } from './remote-shadow.ts';

type Listener = Parameters<WatchedVm['disks']['listen']>[0];

/** What becomes of a VM whose shadow on another host may take over, when something of a disk fails. */
function outcomesOf(fail: keyof Listener, { storeAwayMs }: { storeAwayMs: number | null }): string[] {
  const outcomes: string[] = [];
  let listener: Listener | undefined;
  const current: RemoteShadow = Object.create(RemoteShadow.prototype, { mayTakeOver: { value: true } });
  const state = { phase: 'protected', wanted: true } as unknown as ProtectionState;
  watchDisks({
    right: { status: () => ({ storeAwayMs }) as ReturnType<ActingRight['status']> },
    disks: {
      listen: (given) => {
        listener = given;
      },
    },
    shadow: { current, pipeline: undefined, freeze: () => void outcomes.push('frozen') },
    state: () => state,
    publish: (kind) => void outcomes.push(kind),
    dispatch: ({ kind }) => void outcomes.push(kind),
    losePrimary: (reason) => void outcomes.push(reason),
    noteFailed: () => {},
  });
  listener?.[fail]('/disk.img', new BlockError('BLOCK_DISK_FAILED', 'an error of the disk'));
  return outcomes;
}

describe('a place on a disk that cannot be read', () => {
  it('moves a VM to where another disk has it, but not while nobody can write down who acts', () => {
    expect(outcomesOf('onUnreadable', { storeAwayMs: null })).toEqual(['frozen', 'disk-failed']);
    expect(outcomesOf('onUnreadable', { storeAwayMs: 0 })).toEqual([]);
    // A disk that takes nothing any more does not get better by waiting.
    expect(outcomesOf('onFailed', { storeAwayMs: 0 })).toEqual(['disk-failed', 'frozen', 'disk-failed']);
  });
});
