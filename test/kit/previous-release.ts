import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { REPOSITORY } from './static-checks.ts';

/** What runs on a host; tests and documents may differ. */
const PRODUCT = ['bin', 'guest', 'native', 'package.json', 'src'];

export interface PreviousRelease {
  readonly path: string;
  /** What it is, for people. */
  readonly name: string;
}

/**
 * Puts the product as it was before its last change into `path`, which must not exist, with the packages of today.
 * Where there is no history (a tarball, a shallow clone) it is the present one: then only the hand-over itself is tried.
 */
export function previousRelease(path: string): PreviousRelease {
  mkdirSync(path);
  const commit = previousCommit();
  if (commit === undefined) {
    for (const part of PRODUCT) cpSync(join(REPOSITORY, part), join(path, part), { recursive: true });
  } else {
    const archive = git('archive', '--format=tar', commit, ...PRODUCT);
    execFileSync('tar', ['-x', '-C', path], { input: archive });
  }
  symlinkSync(join(REPOSITORY, 'node_modules'), join(path, 'node_modules'));
  const name =
    commit === undefined ? 'the present one, for want of a history' : `commit ${commit.slice(0, 12)}`;
  return { path, name };
}

/** The newest commit whose product is not that of the working tree. */
function previousCommit(): string | undefined {
  try {
    if (git('status', '--porcelain', '--', ...PRODUCT).length > 0) return text(git('rev-parse', 'HEAD'));
    const changed = text(git('rev-list', '-1', 'HEAD', '--', ...PRODUCT));
    return text(git('rev-parse', '--verify', '--quiet', `${changed}^`));
  } catch {
    return undefined;
  }
}

function git(...words: string[]): Buffer {
  const stdio = ['ignore', 'pipe', 'ignore'] as const;
  return execFileSync('git', ['-C', REPOSITORY, ...words], { maxBuffer: 2 ** 28, stdio: [...stdio] });
}

function text(bytes: Buffer): string {
  return bytes.toString().trim();
}
