import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type Candidate,
  explainRank,
  type HostResources,
  mayBeAsked,
  rankHosts,
  type WantedPlace,
} from './shadow-choice.ts';

const GIB = 2 ** 30;

function resources(changes: Partial<HostResources> = {}): HostResources {
  return {
    ...{ memoryFreeBytes: 8 * GIB, memoryTotalBytes: 16 * GIB, roomFreeBytes: 8 * GIB, cpus: 4, load: 0 },
    ...{ shadows: 0, vms: [], labels: {}, isInMaintenance: false },
    ...changes,
  };
}

const host = (name: string, changes: Partial<HostResources> = {}): Candidate => ({
  host: name,
  resources: resources(changes),
  hasRefused: false,
});

function wanted(changes: Partial<WantedPlace> = {}): WantedPlace {
  return { vm: 'redis', neededBytes: GIB, antiAffinity: [], labels: {}, ...changes };
}

const names = (candidates: readonly Candidate[], place = wanted()) =>
  rankHosts(candidates, place).map((ranked) => ranked.host);

describe('the host of a shadow', () => {
  it('is the one with the most left, of memory or CPU, whichever is less', () => {
    const hosts = [host('busy', { load: 3.5 }), host('full', { roomFreeBytes: 2 * GIB }), host('idle')];
    expect(names(hosts)).toEqual(['idle', 'busy', 'full']);
  });

  it('is the one with fewer shadows where the rest is the same, and else the first that was named', () => {
    expect(names([host('one', { shadows: 2 }), host('two', { shadows: 1 })])).toEqual(['two', 'one']);
    expect(names([host('one'), host('two')])).toEqual(['one', 'two']);
  });

  it('is none without room, and none in maintenance', () => {
    const ranked = rankHosts(
      [host('closed', { isInMaintenance: true }), host('small', { memoryFreeBytes: GIB / 2 }), host('third')],
      wanted(),
    );
    expect(ranked.map(({ host, verdict }) => [host, verdict])).toEqual([
      ['third', 'fits'],
      ['small', 'no-room'],
      ['closed', 'maintenance'],
    ]);
    expect(ranked.filter(mayBeAsked).map(({ host }) => host)).toEqual(['third']);
  });

  it('is rather one in another rack, though it has less left', () => {
    const place = wanted({ labels: { rack: '1', room: 'x' } });
    const same = host('same', { labels: { rack: '1', room: 'x' } });
    const near = host('near', { labels: { rack: '2', room: 'x' }, memoryFreeBytes: 4 * GIB });
    const far = host('far', { labels: { rack: '3', room: 'y' }, memoryFreeBytes: 2 * GIB });
    expect(names([same, near, far], place)).toEqual(['far', 'near', 'same']);
  });

  it.each([
    ['names', ['db'], 'db', []],
    ['is named by', [], 'db', ['redis']],
    ['has a word in common with', ['cache'], 'db', ['cache']],
  ])('is rather one without a VM that it %s', (_, antiAffinity, name, theirs) => {
    const houses = host('houses', { vms: [{ name, antiAffinity: theirs }] });
    const other = host('other', { memoryFreeBytes: 2 * GIB, labels: { rack: '1' } });
    const place = wanted({ antiAffinity, labels: { rack: '1' } });
    expect(names([houses, other], place)).toEqual(['other', 'houses']);
    expect(explainRank(rankHosts([houses], place)[0] as never)).toContain('houses db');
  });

  it('keeps away from no VM because of its own shadow', () => {
    const own = host('own', { vms: [{ name: 'redis', antiAffinity: ['cache'] }] });
    expect(rankHosts([own], wanted({ antiAffinity: ['cache'] }))[0]?.conflicts).toEqual([]);
  });

  it('is tried last where it says nothing of itself, or turned the shadow away', () => {
    const silent: Candidate = { host: 'silent', resources: undefined, hasRefused: false };
    const refused: Candidate = { ...host('refused'), hasRefused: true };
    expect(names([refused, silent, host('small', { roomFreeBytes: GIB })])).toEqual([
      'small',
      'silent',
      'refused',
    ]);
    expect(rankHosts([refused, silent], wanted()).every(mayBeAsked)).toBe(true);
  });
});

const labels = fc.dictionary(fc.constantFrom('rack', 'room'), fc.constantFrom('1', '2'));
const word = fc.constantFrom('db', 'web', 'cache', 'redis');
const anyResources: fc.Arbitrary<HostResources> = fc.record({
  memoryFreeBytes: fc.nat({ max: 16 * GIB }),
  memoryTotalBytes: fc.constant(16 * GIB),
  roomFreeBytes: fc.integer({ min: -GIB, max: 16 * GIB }),
  cpus: fc.integer({ min: 1, max: 64 }),
  load: fc.double({ min: 0, max: 100, noNaN: true }),
  shadows: fc.nat({ max: 20 }),
  vms: fc.array(fc.record({ name: word, antiAffinity: fc.array(word, { maxLength: 2 }) }), { maxLength: 3 }),
  labels,
  isInMaintenance: fc.boolean(),
});
const anyHosts = fc
  .array(fc.record({ resources: fc.option(anyResources, { nil: undefined }), hasRefused: fc.boolean() }), {
    minLength: 1,
    maxLength: 8,
  })
  .map((found) => found.map((each, index) => ({ ...each, host: `h${index}` })));
const anyPlace: fc.Arbitrary<WantedPlace> = fc.record({
  vm: fc.constant('redis'),
  neededBytes: fc.integer({ min: 0, max: 8 * GIB }),
  antiAffinity: fc.array(word, { maxLength: 2 }),
  labels,
});

describe('whatever hosts there are', () => {
  it('all of them are in the order, and none that may not be asked is before one that may', () => {
    fc.assert(
      fc.property(anyHosts, anyPlace, (hosts, place) => {
        const ranked = rankHosts(hosts, place);
        expect(ranked.map(({ host }) => host).sort()).toEqual(hosts.map(({ host }) => host).sort());
        const asked = ranked.map(mayBeAsked);
        expect(asked.lastIndexOf(true)).toBe(asked.filter(Boolean).length - 1);
      }),
    );
  });

  it('the one that is chosen has the room that is needed, and is in no maintenance', () => {
    fc.assert(
      fc.property(anyHosts, anyPlace, (hosts, place) => {
        const [best] = rankHosts(hosts, place);
        const { resources } = hosts.find(({ host }) => host === best?.host) as Candidate;
        if (best?.verdict !== 'fits' || resources === undefined || resources === 'unasked') return;
        expect(resources.isInMaintenance).toBe(false);
        const { roomFreeBytes, memoryFreeBytes } = resources;
        expect(Math.min(roomFreeBytes, memoryFreeBytes)).toBeGreaterThanOrEqual(place.neededBytes);
        const better = rankHosts(hosts, place).filter(
          ({ verdict, conflicts }) => verdict === 'fits' && conflicts.length < best.conflicts.length,
        );
        expect(better).toEqual([]);
      }),
    );
  });

  it('a host that gets more room, and nothing else, is never behind where it was', () => {
    fc.assert(
      fc.property(anyHosts, anyPlace, fc.nat({ max: 8 * GIB }), (hosts, place, moreBytes) => {
        const [first, ...others] = hosts;
        if (first?.resources === undefined) return;
        const { roomFreeBytes, memoryFreeBytes } = first.resources;
        const grown = {
          ...first,
          resources: {
            ...first.resources,
            roomFreeBytes: roomFreeBytes + moreBytes,
            memoryFreeBytes: memoryFreeBytes + moreBytes,
          },
        };
        const at = (all: readonly Candidate[]) => names(all, place).indexOf(first.host);
        expect(at([grown, ...others])).toBeLessThanOrEqual(at(hosts));
      }),
    );
  });
});
