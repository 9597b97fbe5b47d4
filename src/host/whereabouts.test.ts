import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { KeeperEnd } from '../control/keeper-end.ts';
import type { VmOutline } from './vm-inventory.ts';
import { Whereabouts } from './whereabouts.ts';

let nowMs: number;
let asked: string[];

beforeEach(() => {
  nowMs = 0;
  asked = [];
});
afterEach(() => vi.unstubAllEnvs());

const clock = { nowMs: () => nowMs, wallMs: () => 0, after: () => () => {}, sleep: async () => {} };

function whereabouts(isSpread = true): Whereabouts {
  const ask = (name: string) => {
    asked.push(name);
    return isSpread;
  };
  return new Whereabouts({ clock, isSpread: ask });
}

const vm = (version = 1) => ({ name: 'redis', version }) as VmOutline;
const moved: KeeperEnd = { bootId: 'b', reason: 'moved', token: 3, host: 'b' };

describe('where a VM acts', () => {
  it('is no question for one of this host alone, whose specification is read once for each version', () => {
    const places = whereabouts(false);
    for (const version of [1, 1, 2])
      expect(places.of(vm(version), { end: undefined, staleMs: 5 })).toBeUndefined();
    expect(asked).toEqual(['redis', 'redis']);
  });

  it('is what its keeper said when it ended, until the record is asked', () => {
    const places = whereabouts();
    const of = (end: KeeperEnd | undefined) => places.of(vm(), { end, staleMs: 5 });
    expect(of(undefined)).toEqual({ place: { kind: 'unknown' }, isStale: true });
    expect(of({ ...moved, reason: 'requested' })).toEqual({ place: { kind: 'unknown' }, isStale: true });
    expect(of(moved)).toEqual({ place: { kind: 'elsewhere', host: 'b' }, isStale: true });
    places.assumeHere('redis');
    expect(of(moved)).toEqual({ place: { kind: 'here' }, isStale: false });
    nowMs = 5;
    expect(of(moved)).toEqual({ place: { kind: 'here' }, isStale: true });
    places.forget('redis');
    expect(of(moved)?.place).toEqual({ kind: 'elsewhere', host: 'b' });
  });

  it('cannot be asked for on a host without a site, and stays unknown', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'us-whereabouts-'));
    vi.stubEnv('UNDERSTUDY_SITE', join(folder, 'site.yaml'));
    const places = whereabouts();
    await expect(places.locate('redis')).rejects.toMatchObject({ code: 'CONFIG_NOT_FOUND' });
    expect(places.of(vm(), { end: undefined, staleMs: 5 })?.place).toEqual({ kind: 'unknown' });
    rmSync(folder, { recursive: true });
  });
});
