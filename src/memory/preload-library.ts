import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile, rename, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { messageOf } from '../base/errors.ts';
import { makeDirectory } from '../base/make-directory.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { MemoryError } from './memory-error.ts';

const run = promisify(execFile);

const SOURCE = fileURLToPath(new URL('../../native/preload.c', import.meta.url));
const FLAGS = ['-O2', '-shared', '-fPIC', '-Wall', '-Wextra', '-Werror'];
const COMPILE_DEADLINE_MS = 60_000;

interface LibraryOptions {
  /** Where compiled libraries are kept. QEMU's user has to be able to read it. */
  readonly cacheDir: string;
  readonly compiler?: string;
}

/**
 * The path of the preload library, compiled when there is none yet for this source and this compiler.
 * @throws MemoryError MEMORY_COMPILER_MISSING, MEMORY_COMPILE_FAILED, MEMORY_LIBRARY_PATH, MEMORY_CACHE_REFUSED.
 */
export async function ensurePreloadLibrary(options: LibraryOptions): Promise<string> {
  const { compiler = 'gcc' } = options;
  const cacheDir = resolve(options.cacheDir);
  if (/[\s:]/.test(cacheDir)) {
    throw new MemoryError('MEMORY_LIBRARY_PATH', `the dynamic loader cannot preload from ${cacheDir}`, {
      hint: 'Choose a cache directory without spaces and colons in its path.',
    });
  }
  const version = await compile(compiler, ['--version']);
  const source = await readFile(SOURCE);
  const key = createHash('sha256').update(source).update(version).update(FLAGS.join(' ')).digest('hex');
  const library = join(cacheDir, `understudy-preload-${key.slice(0, 16)}.so`);
  if (existsSync(library)) return library;

  makeCache(cacheDir);
  // Several keepers may do this at once: each writes its own file, and the last rename wins.
  const fresh = `${library}.${process.pid}.${performance.now()}`;
  try {
    await compile(compiler, [...FLAGS, '-o', fresh, SOURCE]);
    await rename(fresh, library);
  } finally {
    await rm(fresh, { force: true });
  }
  return library;
}

function makeCache(cacheDir: string): void {
  try {
    makeDirectory(cacheDir);
  } catch (cause) {
    throw new MemoryError('MEMORY_CACHE_REFUSED', `cannot make ${cacheDir}: ${messageOf(cause)}`, {
      cause,
      facts: { cacheDir },
      hint: 'Set UNDERSTUDY_CACHE to a folder that this user may write.',
    });
  }
}

async function compile(compiler: string, args: readonly string[]): Promise<string> {
  try {
    return (await run(compiler, args, { timeout: COMPILE_DEADLINE_MS })).stdout;
  } catch (thrown) {
    if (errnoNameOf(thrown) === 'ENOENT') {
      throw new MemoryError('MEMORY_COMPILER_MISSING', `there is no C compiler called ${compiler}`, {
        cause: thrown,
        hint: 'Install one: apt-get install gcc libc6-dev',
      });
    }
    const output = thrown instanceof Error && 'stderr' in thrown ? String(thrown.stderr).trim() : '';
    throw new MemoryError('MEMORY_COMPILE_FAILED', `${compiler} could not compile the preload library`, {
      cause: thrown,
      facts: { compiler, output },
      hint: 'Install the C headers: apt-get install libc6-dev. If they are there, report this output.',
    });
  }
}
