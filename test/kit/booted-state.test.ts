import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { parseVmSpec } from '../../src/config/vm-spec.ts';
import { savedStatePaths } from '../../src/control/run-paths.ts';
import { bootedState, nameOfWorker } from './booted-state.ts';
import { RUN_ID_VARIABLE } from './run-mark.ts';

let folder: string;
let boots: string[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-states-'));
  vi.stubEnv('TMPDIR', folder);
  vi.stubEnv(RUN_ID_VARIABLE, 'a-run');
  boots = [];
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true });
});

function stateOf(more: string) {
  const text = `name: ${nameOfWorker()}\nmemory: 64MiB\nboot: {kernel: /kernel}\n${more}`;
  const spec = parseVmSpec(text, { source: 'test.yaml' });
  const qemu = { path: '/qemu', version: '7.2.0' };
  return bootedState({ spec, qemu, accel: 'tcg' }, async (directory) => {
    boots.push(more);
    const { snapshot } = savedStatePaths(directory, spec.name);
    mkdirSync(snapshot, { recursive: true });
    writeFileSync(join(snapshot, 'header.json'), '');
  });
}

describe('the state of a VM that has booted', () => {
  it('is made once in a run for each machine, whoever protects it and wherever its frames go', async () => {
    const first = await stateOf('');
    expect(first).toMatch(folder);
    expect(await stateOf('shadow: {enabled: false}')).toEqual(first);
    expect(boots).toEqual(['']);
    expect(await stateOf('vcpus: 2')).not.toBe(first);
    expect(boots).toEqual(['', 'vcpus: 2']);
  });

  it('is made again when the one before was cut short', async () => {
    const directory = (await stateOf('')) ?? '';
    rmSync(join(savedStatePaths(directory, nameOfWorker()).snapshot, 'header.json'));
    await stateOf('');
    expect(boots).toEqual(['', '']);
  });

  it('is of no other run, and there is none outside of a run, where nobody would remove it', async () => {
    const name = nameOfWorker();
    vi.stubEnv(RUN_ID_VARIABLE, 'another-run');
    expect(nameOfWorker()).not.toBe(name);
    vi.stubEnv(RUN_ID_VARIABLE, undefined);
    expect(await stateOf('')).toBeUndefined();
    expect(boots).toEqual([]);
  });
});
