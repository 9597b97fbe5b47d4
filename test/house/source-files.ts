import { globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { REPOSITORY } from '../kit/static-checks.ts';

export interface SourceFile {
  /** From the root of the repository, with forward slashes. */
  readonly path: string;
  readonly text: string;
}

/** Every file of ours that holds code, tests included. */
export function sourceFiles(): SourceFile[] {
  return globSync(['{src,guest,bench,test}/**/*.ts', '{guest,native}/**/*.c'], { cwd: REPOSITORY })
    .sort()
    .map((path) => ({ path, text: readFileSync(join(REPOSITORY, path), 'utf8') }));
}
