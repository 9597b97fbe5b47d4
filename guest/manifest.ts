import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { sha256 } from './debian-packages.ts';

const FILE_NAME = 'manifest.json';
const KERNEL = 'vmlinuz';
const INITRD = 'initrd.cpio';
const PROBE_INITRD = 'probe.cpio';
export const OUTPUTS = { kernel: KERNEL, initrd: INITRD, probeInitrd: PROBE_INITRD } as const;

const checksum = z.string().regex(/^[0-9a-f]{64}$/);
const manifestSchema = z.object({
  kernelRelease: z.string(),
  redisVersion: z.string(),
  packages: z.record(z.string(), z.object({ version: z.string(), sha256: checksum })),
  outputs: z.object({ [KERNEL]: checksum, [INITRD]: checksum, [PROBE_INITRD]: checksum }),
});

/** What a built guest was made of, and the checksums of its files. */
export type Manifest = z.infer<typeof manifestSchema>;

/** Writes the outputs' checksums with everything else that is known; the last step of a build. */
export async function writeManifest(folder: string, facts: Omit<Manifest, 'outputs'>): Promise<void> {
  const outputs = Object.fromEntries(await outputChecksums(folder));
  await writeFile(join(folder, FILE_NAME), `${JSON.stringify({ ...facts, outputs }, null, 2)}\n`);
}

/** The manifest of a folder whose files are all there and unchanged; undefined of any other. */
export async function verifiedManifest(folder: string): Promise<Manifest | undefined> {
  try {
    const manifest = manifestSchema.parse(JSON.parse(await readFile(join(folder, FILE_NAME), 'utf8')));
    const actual = await outputChecksums(folder);
    return actual.every(([name, checksum]) => manifest.outputs[name] === checksum) ? manifest : undefined;
  } catch {
    // Not built, half deleted, unreadable: in every case the answer is to build.
    return undefined;
  }
}

function outputChecksums(folder: string): Promise<[keyof Manifest['outputs'], string][]> {
  return Promise.all(
    Object.values(OUTPUTS).map(async (name) => [name, sha256(await readFile(join(folder, name)))] as const),
  ) as Promise<[keyof Manifest['outputs'], string][]>;
}
