import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { epochId } from '../epoch/epoch-id.ts';
import { OutputGate, type Releasable } from './output-gate.ts';

type Right = 'nothing' | 'acknowledged' | 'everything';

type Step =
  | { readonly kind: 'send' | 'hold' | 'pass' | 'cut' | 'commit' | 'due' }
  | { readonly kind: 'right'; readonly right: Right };

const steps = fc.array(
  fc.oneof(
    { weight: 4, arbitrary: fc.constant<Step>({ kind: 'send' }) },
    fc.constantFrom<Step>(
      { kind: 'hold' },
      { kind: 'pass' },
      { kind: 'cut' },
      { kind: 'commit' },
      { kind: 'due' },
    ),
    fc.record({
      kind: fc.constant('right' as const),
      right: fc.constantFrom<Right>('nothing', 'acknowledged', 'everything'),
    }),
  ),
  { maxLength: 60 },
);

/** Plays steps; returns what left, each with the right at that moment and whether a shadow had acknowledged it. */
function play(given: readonly Step[], { looks = true } = {}) {
  let right: Right = 'everything';
  let sent = 0;
  let open = 1;
  const sealed: number[] = [];
  let acknowledged = 0;
  const epochOf: number[] = [];
  const left: { item: number; right: Right; isAcknowledged: boolean }[] = [];
  const allows = (what: Releasable) =>
    right === 'everything' || (right === 'acknowledged' && what === 'acknowledged');
  const gate = new OutputGate({
    release: ([item = -1]) =>
      void left.push({
        item,
        right,
        isAcknowledged: (epochOf[item] ?? Number.POSITIVE_INFINITY) <= acknowledged,
      }),
    onHeld: () => {},
    onPressure: () => {},
    limitBytes: 1 << 20,
    ...(looks && { mayRelease: allows }),
  });
  for (const step of given) {
    switch (step.kind) {
      case 'send':
        epochOf[sent] = open;
        gate.push(Uint8Array.of(sent));
        sent += 1;
        break;
      case 'cut':
        gate.seal(epochId(open));
        sealed.push(open);
        open += 1;
        break;
      case 'commit': {
        const epoch = sealed.shift();
        if (epoch === undefined) break;
        acknowledged = epoch;
        gate.commit(epochId(epoch));
        break;
      }
      case 'right':
        right = step.right;
        break;
      case 'due':
        gate.releaseDue();
        break;
      default:
        gate[step.kind]();
    }
  }
  right = 'everything';
  gate.pass();
  gate.releaseDue();
  return { left, sent, held: gate.stats().heldItems };
}

function isLawful({ left }: ReturnType<typeof play>): boolean {
  return left.every(
    ({ right, isAcknowledged }) => right === 'everything' || (right === 'acknowledged' && isAcknowledged),
  );
}

describe('output', () => {
  it('leaves in order, once, and only what the right to act allows at that moment', () => {
    fc.assert(
      fc.property(steps, (given) => {
        const played = play(given);
        expect(played.left.map(({ item }) => item)).toEqual(Array.from({ length: played.sent }, (_, n) => n));
        expect(isLawful(played)).toBe(true);
        expect(played.held).toBe(0);
      }),
    );
  });

  it('leaves against the right where nobody looks at it (control)', () => {
    expect(isLawful(play([{ kind: 'right', right: 'nothing' }, { kind: 'send' }], { looks: false }))).toBe(
      false,
    );
  });
});
