import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { assertNoMaintenance, beginMaintenance, endMaintenance, maintenanceOf } from './maintenance.ts';

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-maintenance-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('the maintenance of a host', () => {
  it('begins once, whoever asks for it again, and ends once', () => {
    const state = join(folder, 'not/there/yet');
    expect(maintenanceOf(state)).toBeUndefined();
    expect(beginMaintenance({ sinceMs: 5 }, state)).toEqual({ sinceMs: 5 });
    expect(beginMaintenance({ sinceMs: 6 }, state)).toEqual({ sinceMs: 5 });
    expect(maintenanceOf(state)).toEqual({ sinceMs: 5 });
    expect(endMaintenance(state)).toBe(true);
    expect(endMaintenance(state)).toBe(false);
    expect(maintenanceOf(state)).toBeUndefined();
  });

  it('keeps VMs away, also where what is on disk is damaged', () => {
    expect(() => assertNoMaintenance('redis', folder)).not.toThrow();
    writeFileSync(join(folder, 'maintenance.json'), '{"since');
    expect(() => assertNoMaintenance('redis', folder)).toThrow(
      expect.objectContaining({ code: 'KEEPER_HOST_MAINTENANCE' }),
    );
  });
});
