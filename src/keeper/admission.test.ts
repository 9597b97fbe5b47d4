import { describe, expect, it } from 'vitest';
import { MIB } from '../base/units.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import { roomNeededBytes } from './admission.ts';

/** Of a VM of 64 MiB with 4 epochs in flight, of 1 MiB at most but for its disks. */
function needed(more = '', shadow = ''): number {
  const yaml = `name: a\nmemory: 64M\nboot: {kernel: k}\nshadow: {dirtyPagesMax: 256, epochsInFlightMax: 4${shadow}}\n`;
  return roomNeededBytes(parseVmSpec(`${yaml}${more}`, { source: 'a.yaml' })) / MIB;
}

const disks = (...fields: string[]) =>
  `disks: [${fields.map((field, index) => `{path: /${index}.raw, format: raw${field}}`).join(', ')}]`;

describe('the room that a VM may come to need', () => {
  it('is its memory, twice with a shadow, and slots for its epochs', () => {
    expect(needed('', ', enabled: false')).toBe(64);
    expect(needed()).toBe(2 * 64 + 6 * 1);
  });

  it('counts in each slot as much as a guest may have written to its disks before it waits', () => {
    expect(needed(disks(''))).toBe(2 * 64 + 6 * (1 + 64));
    expect(needed(disks(', size: 1GiB', ', size: 8MiB'))).toBe(2 * 64 + 6 * (1 + 64 + 8));
  });

  it('counts nothing for disks that are only read or do not commit with epochs, or without a shadow', () => {
    expect(needed(disks(', readOnly: true', ', unprotectedDisk: true'))).toBe(needed());
    expect(needed(disks(''), ', enabled: false')).toBe(64);
  });

  it('counts no more than a slot can hold', () => {
    expect(needed(disks(...Array.from({ length: 11 }, () => '')))).toBe(2 * 64 + 6 * (1 + 640));
  });
});
