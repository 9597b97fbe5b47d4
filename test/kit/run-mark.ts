import { createHash } from 'node:crypto';

/** Stands in the environment of every process of a run of the suite, with its id. */
export const RUN_ID_VARIABLE = 'UNDERSTUDY_TEST_RUN';

/** What names of a run carry, so that whoever finds such a thing later can tell whose it was: eight characters of 0-9 a-f. */
export function markOf(runId: string): string {
  return createHash('sha256').update(runId).digest('hex').slice(0, 8);
}

/** Of the run that this process belongs to, or of the process itself where there is none. */
export function runMark(): string {
  return markOf(process.env[RUN_ID_VARIABLE] ?? String(process.pid));
}

/** The beginning of a name for something outside of the folder of the run: a network namespace, or a path in /dev/shm. */
export function marked(kind: string): string {
  return `us-${runMark()}-${kind}`;
}

/** Whether somebody who knows this mark gave it this name. */
export function isMarked(name: string, mark: string): boolean {
  return name.split(/[^0-9a-z]/).includes(mark);
}

/** Whether another run gave it this name, perhaps one that goes on beside this one. */
export function isOfAnotherRun(name: string, mark: string): boolean {
  const [, other] = /(?:^us|^us-test|^test)-([0-9a-f]{8})-/.exec(name) ?? [];
  return other !== undefined && other !== mark;
}
