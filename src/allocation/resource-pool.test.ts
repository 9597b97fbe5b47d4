import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ResourcePool } from './resource-pool.ts';

const untilMs = 1000;

test('what is asked for is granted at once, and only as far as it is free', () => {
  const pool = new ResourcePool({ capacity: 100 });
  expect(pool.allocate('a', 60).granted).toBe(60);
  expect(pool.reserve('b', { amount: 60, untilMs }).granted).toBe(40);
  expect(pool.allocate('c', 1).granted).toBe(0);
  expect(pool.free).toBe(0);
});

test('a demand is met from the reservation, which is another one’s loan until then', () => {
  const pool = new ResourcePool({ capacity: 100 });
  pool.reserve('a', { amount: 50, untilMs });
  expect(pool.lend('batch', 200)).toBe(100);
  expect(pool.handOver('a', 30)).toEqual({
    granted: 30,
    recalls: [{ borrower: 'batch', amount: 30, left: 70 }],
  });
  expect(pool.holding('a')).toEqual({ allocated: 30, reserved: 20, untilMs });
  expect(pool.lend('batch', 1)).toBe(0);
});

test('a reservation that nobody used ends, and is free again', () => {
  const pool = new ResourcePool({ capacity: 100 });
  pool.reserve('a', { amount: 50, untilMs });
  pool.reserve('b', { amount: 50, untilMs: untilMs + 1 });
  expect(pool.expire(untilMs)).toEqual([{ vm: 'a', amount: 50 }]);
  expect(pool.free).toBe(50);
});

test('an old end does not outlast the reservation that it was of', () => {
  const pool = new ResourcePool({ capacity: 100 });
  pool.reserve('a', { amount: 10, untilMs: 5000 });
  pool.release('a', 10);
  pool.allocate('a', 1);
  pool.reserve('a', { amount: 10, untilMs: 1000 });
  expect(pool.expire(1000)).toEqual([{ vm: 'a', amount: 10 }]);
});

test('a host with less of it takes back reservations and loans, and nothing from VMs', () => {
  const pool = new ResourcePool({ capacity: 100 });
  pool.allocate('a', 40);
  pool.reserve('b', { amount: 30, untilMs: 1000 });
  pool.reserve('c', { amount: 30, untilMs: 2000 });
  pool.lend('batch', 60);
  expect(pool.resize(50)).toEqual({
    dropped: [
      { vm: 'c', amount: 30 },
      { vm: 'b', amount: 20 },
    ],
    recalls: [{ borrower: 'batch', amount: 50, left: 10 }],
  });
  expect(pool.resize(30).dropped).toEqual([{ vm: 'b', amount: 10 }]);
  expect(pool.holding('a').allocated).toBe(40);
  expect(pool.free).toBe(-10);
});

const vm = fc.constantFrom('a', 'b', 'c');
const amount = fc.integer({ min: 0, max: 120 });
const operation = fc.oneof(
  fc.record({
    kind: fc.constantFrom('allocate', 'handOver', 'release', 'lower', 'lend', 'giveBack'),
    vm,
    amount,
  }),
  fc.record({ kind: fc.constant('reserve'), vm, amount, untilMs: fc.integer({ min: 0, max: 50 }) }),
  fc.record({ kind: fc.constant('expire'), vm, amount }),
  fc.record({ kind: fc.constant('resize'), vm, amount }),
  fc.record({ kind: fc.constant('remove'), vm, amount }),
);
type Operation = typeof operation extends fc.Arbitrary<infer T> ? T & { readonly untilMs?: number } : never;

function apply(pool: ResourcePool, { kind, vm, amount, untilMs = 0 }: Operation): void {
  if (kind === 'reserve') pool.reserve(vm, { amount, untilMs });
  else if (kind === 'expire') pool.expire(amount);
  else if (kind === 'resize') pool.resize(amount);
  else if (kind === 'remove') pool.remove(vm);
  else pool[kind as 'allocate'](vm, amount);
}

test('whatever is asked for, no more is given than there is, but to VMs that have it already', () => {
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 60 }), (operations) => {
      const pool = new ResourcePool({ capacity: 100 });
      for (const operation of operations) {
        const allocated = pool.allocated;
        apply(pool, operation);
        const bound = Math.max(pool.capacity, Math.min(allocated, pool.allocated));
        expect(pool.allocated + pool.reserved).toBeLessThanOrEqual(bound);
        expect(pool.allocated + pool.lent).toBeLessThanOrEqual(bound);
        const held = ['a', 'b', 'c'].map((name) => pool.holding(name));
        expect(held.reduce((sum, { allocated }) => sum + allocated, 0)).toBe(pool.allocated);
        expect(held.reduce((sum, { reserved }) => sum + reserved, 0)).toBe(pool.reserved);
      }
    }),
    { numRuns: 500 },
  );
});
