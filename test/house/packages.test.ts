import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { REPOSITORY } from '../kit/static-checks.ts';

interface LockedPackage {
  readonly optional?: boolean;
  readonly os?: readonly string[];
  readonly cpu?: readonly string[];
  readonly libc?: readonly string[];
  readonly engines?: { readonly node?: string };
}

type Packages = Readonly<Record<string, LockedPackage>>;

/** The Node that Debian 12 runs npm with, see docs/decisions/0003-libraries.md. */
const NODE_OF_DEBIAN = '18.20.0';

const { packages } = JSON.parse(readFileSync(join(REPOSITORY, 'package-lock.json'), 'utf8')) as {
  packages: Packages;
};

/** Native packages for Debian on x86-64 that its npm would leave out without a word. */
function leftOut(locked: Packages): string[] {
  return Object.entries(locked)
    .filter(([, { os, cpu }]) => os !== undefined || cpu !== undefined)
    .filter(([, { os, cpu, libc }]) => fits(os, 'linux') && fits(cpu, 'x64') && fits(libc, 'glibc'))
    .filter(([, { optional, engines }]) => optional && !admits(engines?.node ?? '>=0', NODE_OF_DEBIAN))
    .map(([path]) => path.replace(/^.*node_modules\//, ''));
}

function fits(wanted: readonly string[] | undefined, ours: string): boolean {
  return wanted === undefined || wanted.includes(ours);
}

/** Ranges as `engines` has them: `>=20.1`, `^18.2.0 || >=22`. */
function admits(range: string, version: string): boolean {
  return range.split('||').some((part) => {
    const [, operator, from = ''] = /^\s*(>=|\^)\s*(\d+(?:\.\d+){0,2})\s*$/.exec(part) ?? [];
    if (operator === undefined) throw new Error(`teach this test to read the range ${range}`);
    const sameMajor = Number.parseInt(from, 10) === Number.parseInt(version, 10);
    return isAtLeast(version, from) && (operator === '>=' || sameMajor);
  });
}

function isAtLeast(version: string, from: string): boolean {
  return version.localeCompare(from, 'en', { numeric: true }) >= 0;
}

describe('the native packages', () => {
  it('are all installed by the npm of a bare Debian 12', () => {
    expect(leftOut(packages)).toEqual([]);
  });

  it('would be missed if they were optional only', () => {
    const name = '@rolldown/binding-linux-x64-gnu';
    const binding = packages[`node_modules/${name}`];
    expect(leftOut({ [`node_modules/${name}`]: { ...binding, optional: true } })).toEqual([name]);
  });
});
