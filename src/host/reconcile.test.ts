import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Termination } from '../config/vm-spec-schema.ts';
import { type HostAction, type KeeperSight, reconcile, type VmSight } from './reconcile.ts';
import type { Desired, VmOutline } from './vm-inventory.ts';
import type { Place } from './whereabouts.ts';

const BOOT = 'this boot';

function vm(changes: Partial<VmOutline> = {}): VmOutline {
  return {
    name: 'a',
    tenant: null,
    extent: { memoryBytes: 0, vcpus: 0, diskBytes: 0 },
    version: 1,
    desired: 'running',
    graceful: true,
    shadowInSpec: true,
    shadowWanted: null,
    termination: null,
    startFrom: null,
    started: null,
    createdMs: 0,
    changedMs: 0,
    ...changes,
  };
}

function sight(changes: Partial<VmSight> = {}): VmSight {
  return { vm: vm(), keeper: 'none', end: undefined, busy: false, failures: 0, failedAtMs: 0, ...changes };
}

const known = (place: Place, isStale = false) => ({ place, isStale });

const plan = (vms: VmSight[], nowMs = 0) => reconcile({ nowMs, bootId: BOOT, vms });
const started = { version: 1, bootId: BOOT };

describe('a VM that shall run', () => {
  it('is started when there is nothing of it', () => {
    expect(plan([sight()]).actions).toEqual([{ kind: 'start', name: 'a' }]);
  });

  it('is left alone while its keeper lives, and while the host is at work on it', () => {
    expect(plan([sight({ keeper: 'alive' })]).actions).toEqual([]);
    expect(plan([sight({ busy: true })]).actions).toEqual([]);
  });

  it('is given a shadow, or loses it, when its keeper was told something else than the host', () => {
    const wished = (wish: boolean | null, told: boolean | undefined) =>
      plan([sight({ keeper: 'alive', shadowWanted: told, vm: vm({ shadowWanted: wish }) })]).actions;
    expect(wished(true, false)).toEqual([{ kind: 'protect', name: 'a' }]);
    expect(wished(false, true)).toEqual([{ kind: 'unprotect', name: 'a' }]);
    for (const told of [true, false]) {
      expect(wished(told, told)).toEqual([]);
      expect(wished(null, told)).toEqual([]);
      expect(wished(told, undefined)).toEqual([]);
    }
  });

  it('is started again when its keeper was killed or it failed', () => {
    for (const keeper of ['lost', 'failed'] as const)
      expect(plan([sight({ keeper, vm: vm({ started }) })]).actions).toEqual([{ kind: 'start', name: 'a' }]);
  });

  it('is started again after a reboot of the machine', () => {
    const before = vm({ started: { version: 1, bootId: 'the boot before' } });
    expect(plan([sight({ vm: before })]).actions).toEqual([{ kind: 'start', name: 'a' }]);
  });

  it('stays off when its keeper said that it ended in good order', () => {
    for (const end of ['powered-off', 'requested'] as const)
      expect(plan([sight({ end, vm: vm({ started }) })]).actions).toEqual([
        { kind: 'accept-end', name: 'a' },
      ]);
  });

  it('is started again when it is gone and its keeper said that it failed, or nothing', () => {
    for (const end of ['failed', undefined] as const)
      expect(plan([sight({ end, vm: vm({ started }) })]).actions).toEqual([{ kind: 'start', name: 'a' }]);
  });

  it('is tried again later and later when it does not start', () => {
    expect(plan([sight({ failures: 1, failedAtMs: 100 })], 1099)).toEqual({ actions: [], againAtMs: 1100 });
    expect(plan([sight({ failures: 1, failedAtMs: 100 })], 1100).actions).toHaveLength(1);
    expect(plan([sight({ failures: 4, failedAtMs: 0 })], 1).againAtMs).toBe(8000);
    expect(plan([sight({ failures: 99, failedAtMs: 0 })], 1).againAtMs).toBe(300_000);
  });
});

describe('a VM that shall not run', () => {
  it('is stopped in the way that was asked for', () => {
    expect(
      plan([sight({ keeper: 'alive', vm: vm({ desired: 'stopped', graceful: false }) })]).actions,
    ).toEqual([{ kind: 'stop', name: 'a', graceful: false, termination: null }]);
  });

  it('leaves the state behind that was asked for, and none when it is to be forgotten', () => {
    const stopped = (desired: Desired) =>
      plan([sight({ keeper: 'alive', vm: vm({ desired, termination: 'suspend' }) })]).actions;
    expect(stopped('stopped')).toMatchObject([{ kind: 'stop', termination: 'suspend' }]);
    expect(stopped('deleted')).toMatchObject([{ kind: 'stop', termination: null }]);
  });

  it('goes on first where its keeper was killed before its state was saved, if its shadow is there yet', () => {
    const lost = (couldGoOn: boolean, changes: Partial<VmOutline>) =>
      plan([sight({ keeper: 'lost', couldGoOn, vm: vm({ desired: 'stopped', ...changes }) })]).actions;
    for (const termination of ['suspend', 'snapshot'] as const) {
      expect(lost(true, { termination })).toEqual([{ kind: 'start', name: 'a' }]);
      expect(lost(false, { termination })).toEqual([{ kind: 'sweep', name: 'a' }]);
    }
    for (const termination of ['remove', null] as const)
      expect(lost(true, { termination })).toEqual([{ kind: 'sweep', name: 'a' }]);
    expect(lost(true, { desired: 'deleted', termination: 'suspend' })).toEqual([
      { kind: 'sweep', name: 'a' },
    ]);
  });

  it('is cleared away when its keeper was killed or it failed', () => {
    for (const keeper of ['lost', 'failed'] as const)
      expect(plan([sight({ keeper, vm: vm({ desired: 'stopped' }) })]).actions).toEqual([
        { kind: 'sweep', name: 'a' },
      ]);
  });

  it('is forgotten when it is to be deleted, and only when nothing of it is left', () => {
    expect(plan([sight({ vm: vm({ desired: 'deleted' }) })]).actions).toEqual([
      { kind: 'forget', name: 'a' },
    ]);
    expect(plan([sight({ keeper: 'lost', vm: vm({ desired: 'deleted' }) })]).actions).toEqual([
      { kind: 'sweep', name: 'a' },
    ]);
  });
});

it('every VM becomes what it is desired to be, in a few steps, from wherever it starts', () => {
  const sights = fc.record({
    keeper: fc.constantFrom<KeeperSight>('none', 'alive', 'lost', 'failed'),
    desired: fc.constantFrom<Desired>('running', 'stopped', 'deleted'),
    bootId: fc.constantFrom(BOOT, 'another', undefined),
    end: fc.constantFrom(undefined, 'powered-off' as const, 'failed' as const),
    wish: fc.constantFrom(true, false, null),
    told: fc.constantFrom(true, false, undefined),
    couldGoOn: fc.boolean(),
    place: fc.constantFrom<Place | undefined>(undefined, { kind: 'unknown' }, { kind: 'here' }),
    termination: fc.constantFrom<Termination | null>('remove', 'suspend', null),
  });
  fc.assert(
    fc.property(sights, ({ keeper, desired, bootId, end, wish, told, couldGoOn, place, termination }) => {
      let now: VmSight | undefined = sight({
        keeper,
        end,
        shadowWanted: told,
        couldGoOn,
        known: place && known(place, place.kind === 'unknown'),
        vm: vm({
          desired,
          shadowWanted: wish,
          termination,
          started: bootId === undefined ? null : { version: 1, bootId },
        }),
      });
      for (let step = 0; step < 5; step++) {
        if (now === undefined) return desired === 'deleted';
        const [action] = plan([now]).actions;
        if (action === undefined) break;
        now = carriedOut(now, action);
      }
      if (now === undefined) return desired === 'deleted';
      const isAsWished = wish === null || now.shadowWanted === undefined || now.shadowWanted === wish;
      if (now.vm.desired === 'running') return now.keeper === 'alive' && isAsWished;
      return now.vm.desired === 'stopped' && now.keeper === 'none';
    }),
  );
});

describe('a VM of several hosts', () => {
  const elsewhere: Place = { kind: 'elsewhere', host: 'b' };

  it('is looked for before it is started, and started where the record has it here', () => {
    const asked = (place: Place) => plan([sight({ known: known(place) })]).actions;
    expect(asked({ kind: 'unknown' })).toEqual([{ kind: 'locate', name: 'a' }]);
    expect(asked({ kind: 'here' })).toEqual([{ kind: 'start', name: 'a' }]);
  });

  it('is let be as long as another host acts as it, and looked for again', () => {
    for (const desired of ['running', 'stopped'] as const) {
      const of = (isStale: boolean) =>
        plan([sight({ vm: vm({ desired, started }), known: known(elsewhere, isStale) })]).actions;
      expect(of(false)).toEqual([]);
      expect(of(true)).toEqual([{ kind: 'locate', name: 'a' }]);
    }
  });

  it('leaves nothing that a killed keeper had once it acts elsewhere, and stays off when it has ended there', () => {
    const of = (keeper: KeeperSight, place: Place, was: VmOutline['started']) =>
      plan([sight({ keeper, vm: vm({ started: was }), known: known(place) })]).actions[0]?.kind;
    expect(of('lost', elsewhere, started)).toBe('sweep');
    expect(of('lost', { kind: 'ended' }, started)).toBe('sweep');
    expect(of('none', { kind: 'ended' }, started)).toBe('accept-end');
    // Somebody has asked for it since.
    expect(of('none', { kind: 'ended' }, null)).toBe('start');
    expect(of('lost', { kind: 'here' }, started)).toBe('start');
  });

  it('whose shadow is here is neither stopped nor told anything here, and forgotten without it', () => {
    const shadow = { keeper: 'alive', isShadow: true, shadowWanted: true } as const;
    const of = (desired: Desired) => plan([sight({ ...shadow, vm: vm({ desired, shadowWanted: false }) })]);
    expect(of('running').actions).toEqual([]);
    expect(of('stopped').actions).toEqual([]);
    expect(of('deleted').actions).toEqual([{ kind: 'forget', name: 'a' }]);
  });
});

/** What the host does on an action, if all goes well. */
function carriedOut(now: VmSight, { kind }: HostAction): VmSight | undefined {
  switch (kind) {
    case 'start':
      return { ...now, keeper: 'alive', shadowWanted: undefined, vm: { ...now.vm, started } };
    case 'protect':
      return { ...now, shadowWanted: true };
    case 'unprotect':
      return { ...now, shadowWanted: false };
    case 'stop':
    case 'sweep':
      return { ...now, keeper: 'none' };
    case 'locate':
      return { ...now, known: known({ kind: 'here' }) };
    case 'accept-end':
      return { ...now, vm: { ...now.vm, desired: 'stopped', started: null } };
    case 'note-end':
      return { ...now, vm: { ...now.vm, started: null } };
    case 'forget':
      return undefined;
  }
}
