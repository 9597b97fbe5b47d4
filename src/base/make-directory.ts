import { existsSync, mkdirSync, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';

/**
 * Makes a directory and those above it that are missing; no error when it is there. Not by `recursive` of `mkdir`, which
 * spins for ever where the kernel takes no new names below a directory that exists, as in /proc.
 * @throws what `mkdir` says
 */
export function makeDirectory(path: string, { mode = 0o777 }: { mode?: number } = {}): void {
  const missing: string[] = [];
  let at = resolve(path);
  for (; !existsSync(at) && dirname(at) !== at; at = dirname(at)) missing.push(at);
  // Says so where a file lies in its place.
  if (missing.length === 0) missing.push(at);
  for (const directory of missing.reverse()) {
    try {
      mkdirSync(directory, mode);
    } catch (thrown) {
      // Also made by somebody else just now.
      if (!statSync(directory, { throwIfNoEntry: false })?.isDirectory()) throw thrown;
    }
  }
}
