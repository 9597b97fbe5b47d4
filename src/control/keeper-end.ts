import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { z } from 'zod';

/** A keeper that has said that its VM has ended puts the rest away within this time. */
export const KEEPER_END_DEADLINE_MS = 15_000;

const endSchema = z.object({
  bootId: z.string(),
  /** `failed` is no end in good order: the VM is to be started again. After `moved` and `superseded` it runs on another host. */
  reason: z.enum(['requested', 'powered-off', 'suspended', 'failed', 'moved', 'superseded']),
  /** Of the last QEMU that acted. */
  token: z.int().nonnegative(),
  /** The host that acts now, as it is on record; left out where that is this one or nobody knows. */
  host: z.string().optional(),
});

/**
 * What a keeper leaves to the host that started it, when nothing else of its VM is left: a host that did not look
 * then could not tell a guest that powered off from a run directory that somebody removed.
 */
export type KeeperEnd = z.infer<typeof endSchema>;

/** Renamed into place: there is a whole one or none. */
export function writeEnd(path: string, end: KeeperEnd): void {
  writeFileSync(`${path}.new`, `${JSON.stringify(end)}\n`, { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

/** Undefined when there is none, or none that makes sense. */
export function readEnd(path: string): KeeperEnd | undefined {
  try {
    return endSchema.safeParse(JSON.parse(readFileSync(path, 'utf8'))).data;
  } catch {
    return undefined;
  }
}
