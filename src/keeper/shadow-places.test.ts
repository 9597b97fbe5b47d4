import { describe, expect, it } from 'vitest';
import type { HostResources } from '../allocation/shadow-choice.ts';
import { type FindOptions, ShadowPlaces, type ShadowPlacesOptions } from './shadow-places.ts';

const GIB = 2 ** 30;
const { signal } = new AbortController();

function resources(changes: Partial<HostResources> = {}): HostResources {
  return {
    ...{ memoryFreeBytes: 8 * GIB, memoryTotalBytes: 16 * GIB, roomFreeBytes: 8 * GIB, cpus: 4, load: 0 },
    ...{ shadows: 0, vms: [], labels: {}, isInMaintenance: false },
    ...changes,
  };
}

let nowMs = 0;

/** Hosts b, c and d, of which the VM may have b and c. */
function places(
  changes: Partial<ShadowPlacesOptions & Pick<FindOptions<string>, 'askPlace'>> & {
    has?: Record<string, HostResources>;
  } = {},
) {
  const ask = async (host: string) => {
    asked.push(`place on ${host}`);
    return `link to ${host}`;
  };
  const { has = {}, askPlace = ask, ...options } = changes;
  const asked: string[] = [];
  const made = new ShadowPlaces({
    ...{ host: 'a', known: ['b', 'c', 'd'], others: ['b', 'c'] },
    wanted: { vm: 'redis', neededBytes: GIB, antiAffinity: [], labels: {} },
    clock: { nowMs: () => nowMs, wallMs: () => 7, after: () => () => {}, sleep: async () => {} },
    askResources: async (host) => {
      asked.push(`resources of ${host}`);
      return has[host];
    },
    ...options,
  });
  const find = () => made.find({ askPlace, signal });
  return { made, asked, find };
}

describe('the places of a shadow', () => {
  it('are asked in the order of what they have left, and the choice is explained', async () => {
    const has = { b: resources({ load: 3 }), c: resources() };
    const { made, asked, find } = places({ has });
    expect(await find()).toEqual({ host: 'c', place: 'link to c' });
    expect(asked).toEqual(['resources of b', 'resources of c', 'place on c']);
    expect(made.status).toMatchObject({ host: 'c', atMs: 7, candidates: [{ host: 'c' }, { host: 'b' }] });
    expect(made.status?.candidates[0]?.why).toBe('has room; 44 % left; 0 shadows');
  });

  it('are not compared where there is one', async () => {
    const { made, asked, find } = places({ others: ['b'] });
    expect(await find()).toMatchObject({ host: 'b' });
    expect(asked).toEqual(['place on b']);
    expect(made.status?.candidates).toMatchObject([{ host: 'b', why: 'is the only one' }]);
  });

  it('come after the others for a minute when they have turned the shadow away', async () => {
    const has = { b: resources(), c: resources({ load: 1 }) };
    let isRefusing = true;
    const askPlace = async (host: string) => {
      if (host === 'b' && isRefusing) throw new Error('not here');
      return host;
    };
    const { find } = places({ has, askPlace });
    expect(await find()).toMatchObject({ host: 'c' });
    isRefusing = false;
    expect(await find()).toMatchObject({ host: 'c' });
    nowMs += 60_001;
    expect(await find()).toMatchObject({ host: 'b' });
  });

  it('are left alone while a disk fails there, longer each time, and say so', async () => {
    const failure = { code: 'BLOCK_DISK_FAILED', error: 'no space' };
    const { made, asked, find } = places({ others: ['b'] });
    for (const leftAloneMs of [1000, 2000, 4000]) {
      made.noteFailing('b', failure);
      await expect(find()).rejects.toMatchObject({ code: 'KEEPER_HOST_FAILING' });
      const why = 'has a disk that fails: no space (BLOCK_DISK_FAILED)';
      expect(made.status).toMatchObject({ host: null, candidates: [{ host: 'b', verdict: 'failing', why }] });
      nowMs += leftAloneMs - 1;
      await expect(find()).rejects.toMatchObject({ code: 'KEEPER_HOST_FAILING' });
      expect(asked.splice(0)).toEqual([]);
      nowMs += 1;
      expect(await find()).toMatchObject({ host: 'b' });
      expect(asked.splice(0)).toEqual(['place on b']);
    }
    // After a time without a failure it is the first one again; and a person who names the host knows better.
    nowMs += 600_001;
    made.noteFailing('b', failure);
    nowMs += 1000;
    await find();
    made.noteFailing('b', failure);
    made.prefer('b');
    await find();
  });

  it('are others where a disk fails on one', async () => {
    const { made, find } = places({ has: { b: resources(), c: resources({ load: 3 }) } });
    made.noteFailing('b', { code: 'BLOCK_DISK_FAILED', error: 'no space' });
    expect(await find()).toMatchObject({ host: 'c' });
  });

  it.each([
    ['KEEPER_HOST_MAINTENANCE', { isInMaintenance: true }],
    ['KEEPER_HOST_NO_ROOM', { roomFreeBytes: 0 }],
  ])('are refused with %s where none can have it', async (code, changes) => {
    const { asked, find } = places({ has: { b: resources(changes), c: resources(changes) } });
    await expect(find()).rejects.toMatchObject({ code });
    expect(asked.filter((each) => each.startsWith('place'))).toEqual([]);
  });

  it('are the one that somebody named, which says why not, and all of them again afterwards', async () => {
    const has = { b: resources({ roomFreeBytes: 0 }), c: resources() };
    const { made, find } = places({ has });
    made.prefer('b');
    await expect(find()).rejects.toMatchObject({ code: 'KEEPER_HOST_NO_ROOM' });
    made.prefer(undefined);
    expect(await find()).toMatchObject({ host: 'c' });
  });

  it.each([
    ['x', 'KEEPER_HOST_UNKNOWN', 'Known are a, b, c, d.'],
    ['d', 'KEEPER_HOST_REFUSED', 'Possible: b, c.'],
    ['a', 'KEEPER_HOST_REFUSED', 'Possible: b, c.'],
  ])('are not the host %s: %s', async (host, code, hint) => {
    const { made, find } = places();
    expect(() => made.prefer(host)).toThrow(expect.objectContaining({ code, hint }));
    expect(await find()).toMatchObject({ host: 'b' });
  });
});
