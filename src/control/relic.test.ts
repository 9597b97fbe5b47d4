import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import { Mapping } from '../linux/mapping.ts';
import { dropAllRelics, keepRelic, listRelics, sweepRelics, takeRelic } from './relic.ts';
import { RunDirectory } from './run-directory.ts';

const BYTES = 8192;
let root: string;
let to: string;

beforeEach(() => {
  root = mkdtempSync(`/dev/shm/${marked('relic')}-`);
  vi.stubEnv('UNDERSTUDY_MEMORY_DIR', join(root, 'memory'));
  vi.stubEnv('UNDERSTUDY_RUN_DIR', join(root, 'run'));
  mkdirSync(join(root, 'memory'), { mode: 0o700 });
  to = join(root, 'taken');
});

afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(root, { recursive: true });
});

function leave(vm: string, content = 'memory'): boolean {
  const path = join(root, 'left');
  writeFileSync(path, content);
  truncateSync(path, BYTES);
  return keepRelic(vm, path);
}

function left(): string[] {
  return readdirSync(join(root, 'memory'), { recursive: true, encoding: 'utf8' });
}

describe('memory that is put aside', () => {
  it('is taken once, and the newest takes the place of what was there', () => {
    expect([leave('one', 'old'), leave('one', 'new')]).toEqual([true, true]);
    expect(listRelics().map(({ vm }) => vm)).toEqual(['one']);
    expect(takeRelic('one', { to, memoryBytes: BYTES })).toBe(true);
    expect(existsSync(to)).toBe(true);
    expect(takeRelic('one', { to, memoryBytes: BYTES })).toBe(false);
    expect(left()).toEqual([]);
  });

  it('is not taken by a VM that has another size by now, and does not stay', () => {
    leave('one');
    expect(takeRelic('one', { to, memoryBytes: 2 * BYTES })).toBe(false);
    expect(existsSync(to)).toBe(false);
    expect(left()).toEqual([]);
  });

  it('is not taken while somebody has it mapped, and that of another VM is taken meanwhile', () => {
    for (const vm of ['used', 'free']) leave(vm);
    const [path = ''] = left().filter((name) => name.endsWith('used.ram'));
    const fd = openSync(join(root, 'memory', path), 'r');
    using _user = Mapping.ofFile(fd, BYTES, { writable: false });
    closeSync(fd);
    expect(takeRelic('free', { to, memoryBytes: BYTES })).toBe(true);
    expect(takeRelic('used', { to, memoryBytes: BYTES })).toBe(false);
    expect(left()).toEqual([]);
  });

  it('is left alone in a directory that somebody else may have prepared', async () => {
    const elsewhere = join(root, 'elsewhere');
    mkdirSync(elsewhere);
    writeFileSync(join(elsewhere, 'one.ram'), Buffer.alloc(BYTES));
    symlinkSync(elsewhere, join(root, 'memory', `understudy-relics.${process.geteuid?.()}`));
    expect(leave('one')).toBe(false);
    expect(takeRelic('one', { to, memoryBytes: BYTES })).toBe(false);
    await sweepRelics(async () => true);
    expect(dropAllRelics()).toBe(false);
    expect(readdirSync(elsewhere)).toEqual(['one.ram']);
  });

  it('goes when it is of no more use, when it is old, or when somebody needs the room', async () => {
    for (const vm of ['wanted', 'over', 'old']) leave(vm);
    const [path] = left().filter((name) => name.endsWith('old.ram'));
    utimesSync(join(root, 'memory', path ?? ''), 0, 0);
    await sweepRelics(async (vm) => vm === 'over');
    expect(listRelics().map(({ vm }) => vm)).toEqual(['wanted']);
    expect([dropAllRelics(), dropAllRelics()]).toEqual([true, false]);
    expect(left()).toEqual([]);
  });

  it('goes when it is old and any keeper begins, where nobody sweeps', async () => {
    for (const vm of ['young', 'old']) leave(vm);
    const [path = ''] = left().filter((name) => name.endsWith('old.ram'));
    utimesSync(join(root, 'memory', path), 0, 0);
    const keeper = await RunDirectory.open('other', { clock });
    expect(listRelics().map(({ vm }) => vm)).toEqual(['young']);
    keeper.remove();
  });

  it('comes from the last QEMU of a killed keeper where the VM has its shadow next, and nowhere else', async () => {
    for (const keepsRelic of [true, false]) {
      const killed = await RunDirectory.open('one', { clock });
      mkdirSync(killed.memoryPath, { recursive: true });
      for (const number of [9, 10]) {
        writeFileSync(join(killed.memoryPath, `us-one-${number}.ram`), String(number));
        truncateSync(join(killed.memoryPath, `us-one-${number}.ram`), number * 4096);
      }
      killed.leaveHeritage();
      const next = await RunDirectory.open('one', { clock, keepsRelic });
      expect(takeRelic('one', { to, memoryBytes: 10 * 4096 })).toBe(keepsRelic);
      next.remove();
    }
    leave('one');
    await RunDirectory.sweep('one', { clock });
    expect(left()).toEqual([]);
  });
});
