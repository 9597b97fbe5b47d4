import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import type { VmSpec } from '../config/vm-spec-schema.ts';

/** SHA-256 of each file that a QEMU of this VM reads at its start, by what it is for. */
export async function digestFiles({ boot }: VmSpec): Promise<Record<string, string>> {
  const files = boot.kind === 'kernel' ? { kernel: boot.kernel, initrd: boot.initrd } : {};
  const digests: Record<string, string> = {};
  for (const [name, path] of Object.entries(files)) {
    if (path === undefined) continue;
    const hash = createHash('sha256');
    await pipeline(createReadStream(path), hash);
    digests[name] = hash.digest('hex');
  }
  return digests;
}
