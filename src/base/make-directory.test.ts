import { mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { makeDirectory } from './make-directory.ts';

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-make-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

describe('a directory', () => {
  it('is made with all that is missing above it, for whom it is meant, and may be there already', () => {
    const path = join(folder, 'a/b/c');
    for (let times = 0; times < 2; times += 1) makeDirectory(path, { mode: 0o700 });
    expect(statSync(path).mode & 0o777).toBe(0o700);
    expect(statSync(join(folder, 'a')).mode & 0o777).toBe(0o700);
    makeDirectory('/');
  });

  it.each([
    ['the kernel takes no new names', () => '/proc/us-none/below', 'ENOENT'],
    ['a file lies in its place', () => join(folder, 'file'), 'EEXIST'],
    ['a file lies above it', () => join(folder, 'file/below'), 'ENOTDIR'],
    ['a link that leads nowhere lies in its place', () => join(folder, 'nowhere'), 'EEXIST'],
  ])('is refused where %s', (_, path, code) => {
    writeFileSync(join(folder, 'file'), '');
    symlinkSync(join(folder, 'none'), join(folder, 'nowhere'));
    expect(() => makeDirectory(path())).toThrow(expect.objectContaining({ code }));
  });
});
