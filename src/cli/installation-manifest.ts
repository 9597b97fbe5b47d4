import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { z } from 'zod';
import { messageOf } from '../base/errors.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { CliError } from './cli-error.ts';
import type { PlannedEntry } from './installation-plan.ts';

const manifestSchema = z.object({
  /** Of this file's form. */
  form: z.literal(1),
  version: z.string(),
  package: z.string(),
  /** The group, when it was made by the installation. */
  group: z.string().nullable(),
  entries: z.array(
    z.discriminatedUnion('kind', [
      z.object({ kind: z.literal('file'), path: z.string(), sha256: z.string() }),
      z.object({ kind: z.literal('link'), path: z.string(), target: z.string() }),
      z.object({ kind: z.literal('directory'), path: z.string() }),
    ]),
  ),
});

/** What an installation wrote, with checksums: what has another one now is somebody else's work. */
export type Manifest = z.infer<typeof manifestSchema>;
export type ManifestEntry = Manifest['entries'][number];

/** Undefined when nothing is installed. @throws CliError CLI_MANIFEST_UNREADABLE */
export function readManifest(path: string): Manifest | undefined {
  try {
    return manifestSchema.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch (cause) {
    if (errnoNameOf(cause) === 'ENOENT') return undefined;
    const why =
      cause instanceof z.ZodError ? 'it is not in the form that this version knows' : messageOf(cause);
    throw new CliError(
      'CLI_MANIFEST_UNREADABLE',
      `cannot read ${path}, the list of what was installed: ${why}`,
      {
        hint: 'Without it nobody knows which files are whose. Use the version that wrote it, or remove it and what it names by hand.',
        facts: { path },
        cause,
      },
    );
  }
}

export function manifestEntry(entry: PlannedEntry): ManifestEntry {
  if (entry.kind === 'file') return { kind: 'file', path: entry.path, sha256: sha256(entry.content) };
  if (entry.kind === 'link') return { kind: 'link', path: entry.path, target: entry.target };
  return { kind: 'directory', path: entry.path };
}

export function sha256(content: string | Uint8Array): string {
  return createHash('sha256').update(content).digest('hex');
}
