import { describe, expect, it } from 'vitest';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { heritageOf } from './heritage.ts';
import type { KeeperRecord } from './keeper-record.ts';

const spec = { name: 'redis', memoryBytes: 1 } as VmSpec;
const acting = { instance: 3, process: { pid: 30, startTicks: 300 } };
const record: KeeperRecord = {
  ...{ bootId: 'boot', keeper: { pid: 1, startTicks: 1 }, processes: [], cgroups: [] },
  ...{
    spec,
    shadow: 4,
    acting,
    committed: 17,
    token: 5,
    shadowWanted: null,
    limits: null,
    failed: false,
    generationId: null,
  },
};
const now = { spec, bootId: 'boot', lives: () => true };

describe('what a killed keeper left', () => {
  it('is its shadow where all output had waited for that, whatever became of the QEMU that acted', () => {
    expect(heritageOf(record, now)).toEqual({ kind: 'shadow', instance: 4 });
    expect(heritageOf(record, { ...now, lives: () => false })).toEqual({ kind: 'shadow', instance: 4 });
  });

  it('is else the QEMU that acted, if it is still there', () => {
    const alone = { ...record, shadow: null };
    expect(heritageOf(alone, now)).toEqual({ kind: 'orphan', ...acting });
    expect(heritageOf(alone, { ...now, lives: () => false })).toEqual({ kind: 'none' });
    expect(heritageOf({ ...alone, acting: null }, now)).toEqual({ kind: 'none' });
  });

  it.each<[string, Parameters<typeof heritageOf>]>([
    ['there is no record, or none that can be read', [undefined, now]],
    ['the machine was started anew', [record, { ...now, bootId: 'another' }]],
    ['the VM failed', [{ ...record, failed: true }, now]],
    ['the specification is another', [{ ...record, spec: { ...spec, memoryBytes: 2 } }, now]],
    ['the VM is to begin anew', [record, { ...now, spec: undefined }]],
  ])('is nothing where %s', (_, [found, circumstances]) => {
    expect(heritageOf(found, circumstances)).toEqual({ kind: 'none' });
  });
});
