import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chownSync, closeSync, fsyncSync, ftruncateSync, linkSync, openSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { messageOf } from '../base/errors.ts';
import type { DiskSpec } from '../config/vm-spec-schema.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { BlockError } from './block-error.ts';
import { checkDiskImage, imageMissing } from './disk-image.ts';

/** It writes a few clusters, whatever the size of the disk. */
const QEMU_IMG_DEADLINE_MS = 60_000;
const IMAGE_MODE = 0o600;
const NAME_CHARACTERS_MAX = 100;

export interface PrepareOptions {
  /** False where the VM has run already: a disk that is gone then must not come back empty. */
  readonly mayCreate: boolean;
  /** Who QEMU runs as, when that is another user: a new image has to belong to it. */
  readonly owner?: { readonly uid: number; readonly gid: number } | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Sees that every disk has an image that is as the specification says, and makes what is missing and may be made. All
 * are looked at before one is made. Returns the paths of new images.
 * @throws BlockError: an image that is there was not changed; the signal's reason
 */
export async function prepareDisks(disks: readonly DiskSpec[], options: PrepareOptions): Promise<string[]> {
  const absent = disks.filter((disk) => checkDiskImage(disk) === 'absent');
  for (const { path, create } of absent) if (!create || !options.mayCreate) throw imageMissing(path);
  for (const disk of absent) await createImage(disk, options);
  return absent.map(({ path }) => path);
}

/**
 * An image appears whole or not at all, also when the power fails, and never in the place of another: it is made under
 * a name of its own, written through, and linked to its path, which fails where something is by now.
 */
export async function createImage(
  disk: DiskSpec,
  { owner, signal }: Pick<PrepareOptions, 'owner' | 'signal'>,
): Promise<void> {
  const folder = dirname(disk.path);
  const name = basename(disk.path).slice(0, NAME_CHARACTERS_MAX);
  const temporary = join(folder, `.${name}.${randomBytes(6).toString('hex')}.new`);
  try {
    // Made by us alone: a link that lies in wait at this name is not followed.
    closeSync(openSync(temporary, 'wx', IMAGE_MODE));
    if (disk.format === 'qcow2') await makeQcow2(temporary, disk, signal);
    const fd = openSync(temporary, 'r+');
    try {
      if (disk.format === 'raw') ftruncateSync(fd, disk.size);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    if (owner !== undefined) chownSync(temporary, owner.uid, owner.gid);
    linkSync(temporary, disk.path);
  } catch (cause) {
    signal?.throwIfAborted();
    if (cause instanceof BlockError) throw cause;
    throw createFailed(disk.path, messageOf(cause), cause);
  } finally {
    rmSync(temporary, { force: true });
  }
  syncFolder(folder);
}

async function makeQcow2(
  target: string,
  { path, size, backing }: DiskSpec,
  signal?: AbortSignal,
): Promise<void> {
  const words = [
    ...['create', '-q', '-f', 'qcow2'],
    // -u: what it stands on was looked at already, and is not opened.
    ...(backing === undefined ? [] : ['-u', '-b', backing.path, '-F', backing.format]),
    ...[target, String(size)],
  ];
  try {
    await promisify(execFile)('qemu-img', words, {
      timeout: QEMU_IMG_DEADLINE_MS,
      killSignal: 'SIGKILL',
      ...(signal && { signal }),
    });
  } catch (cause) {
    if (errnoNameOf(cause) === 'ENOENT') {
      throw new BlockError('BLOCK_TOOL_MISSING', 'qemu-img, which makes qcow2 images, is not installed', {
        hint: 'Install it: apt-get install --no-install-recommends qemu-utils; or use format: raw.',
        facts: { path },
        cause,
      });
    }
    const said = String((cause as { stderr?: unknown }).stderr ?? '').trim();
    throw createFailed(path, said === '' ? messageOf(cause) : said.replaceAll(target, path), cause);
  }
}

/** The name has to be on the disk as well. */
function syncFolder(folder: string): void {
  const fd = openSync(folder, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function createFailed(path: string, why: string, cause: unknown): BlockError {
  return new BlockError('BLOCK_CREATE_FAILED', `${path}: the image cannot be made: ${why}`, {
    hint: 'Its folder has to exist, be writable, and have room; nothing was left there.',
    facts: { path },
    cause,
  });
}
