import { readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { identityOf, isAlive, processIdentitySchema } from '../../src/control/process-identity.ts';
import { bootId } from '../../src/linux/boot-clock.ts';
import type { TestRun } from './leftovers.ts';

const recordSchema = z.strictObject({
  id: z.string(),
  runner: processIdentitySchema,
  /** Where the number of its process means something. */
  bootId: z.string(),
  processNamespace: z.string(),
});

const FILE = 'run.json';

/** The beginning of the name of a run's folder. */
export const RUN_FOLDER = 'us-test-';

/** For whoever comes after a run that was killed. */
export function recordRun({ id, folder }: TestRun): void {
  const runner = identityOf(process.pid);
  const record = { id, runner, bootId: bootId(), processNamespace: processNamespace() };
  writeFileSync(join(folder, FILE), JSON.stringify(record));
}

/** Runs below this folder whose runner is gone, which nobody will tidy up any more. Of others nothing is known. */
export function deadRuns(parent: string): TestRun[] {
  return readdirSync(parent)
    .filter((name) => name.startsWith(RUN_FOLDER))
    .map((name) => join(parent, name))
    .flatMap((folder) => deadRunIn(folder) ?? []);
}

function deadRunIn(folder: string): TestRun | undefined {
  try {
    const record = recordSchema.parse(JSON.parse(readFileSync(join(folder, FILE), 'utf8')));
    const isHere = record.processNamespace === processNamespace() && record.bootId === bootId();
    return isHere && !isAlive(record.runner) ? { id: record.id, folder } : undefined;
  } catch {
    // No run, or one that is just beginning or ending, or of another user.
    return undefined;
  }
}

function processNamespace(): string {
  return readlinkSync('/proc/self/ns/pid');
}
