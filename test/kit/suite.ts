/**
 * Runs vitest, looks whether anything was left behind, and ends with a line `N passed, N failed`. Arguments
 * are those of `vitest run`. It stands around vitest, not inside it: only when all of its processes have
 * ended can one tell what stays. Told to end by a signal, it removes what is left of the run; what a run has left that was
 * killed is removed by the next one.
 */
import { randomUUID } from 'node:crypto';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseCLI, startVitest, type Vitest } from 'vitest/node';
import { findLeftovers, type Leftover, survey, type TestRun } from './leftovers.ts';
import { RUN_ID_VARIABLE } from './run-mark.ts';
import { deadRuns, RUN_FOLDER, recordRun } from './run-record.ts';
import { removeRun } from './run-removal.ts';
import { Interruption } from './suite-interruption.ts';
import { summarize } from './suite-summary.ts';

interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

const LEFTOVER_DEADLINE_MS = 5_000;

const interruption = new Interruption();
for (const dead of deadRuns(tmpdir())) {
  const removed = await removeRun(dead);
  say(`A run of the suite was killed; removed what it left in ${dead.folder}`, removed);
}
const run = beginRun();
const before = survey(run);
const counts = await Promise.race([runTests(process.argv.slice(2)), interruption.forced]);
if (interruption.signal !== undefined) await endEarly();
else await endWith(counts ?? { passed: 0, failed: 1, skipped: 0 });

/** What this process sets here, every process of the run inherits. */
function beginRun(): TestRun {
  // A short path: unix sockets of the tests lie below it, and theirs end at 107 bytes.
  const folder = mkdtempSync(join(tmpdir(), RUN_FOLDER));
  // Programs that give up root (passt, QEMU with `user`) have to get through.
  chmodSync(folder, 0o755);
  const id = randomUUID();
  recordRun({ id, folder });
  process.env.TMPDIR = folder;
  process.env[RUN_ID_VARIABLE] = id;
  return { id, folder };
}

async function runTests(args: readonly string[]): Promise<Counts> {
  const { filter, options } = parseCLI(['vitest', 'run', ...args]);
  const plugin = {
    name: 'interruption',
    configureVitest: ({ vitest }: { vitest: Vitest }) => interruption.watch(vitest),
  };
  const vitest = await startVitest(filter, { ...options, watch: false }, { plugins: [plugin] });
  const counts = count(vitest);
  const summary = summarize(vitest.state.getTestModules());
  await vitest.close();
  for (const line of summary) console.log(line);
  return counts;
}

async function endWith(counts: Counts): Promise<void> {
  const left = await findLeftovers(run, { before, deadlineMs: LEFTOVER_DEADLINE_MS });
  report(left);
  counts[left.length === 0 ? 'passed' : 'failed'] += 1;
  rmSync(run.folder, { recursive: true, force: true });
  const skipped = counts.skipped > 0 ? `, ${counts.skipped} skipped` : '';
  process.exitCode = counts.failed > 0 ? 1 : 0;
  process.stdout.write(`${counts.passed} passed, ${counts.failed} failed${skipped}\n`, () => process.exit());
}

async function endEarly(): Promise<void> {
  const removed = await removeRun(run);
  say(`Ended by ${interruption.signal}; removed what was left of the run`, removed);
  process.exitCode = interruption.exitCode;
  process.stdout.write('interrupted\n', () => process.exit());
}

function say(what: string, removed: readonly string[]): void {
  console.error([`\n${what}${removed.length > 0 ? ':' : '.'}`, ...removed].join('\n  '));
}

/** A file that could not be loaded and an error outside of every test are failures as well. */
function count(vitest: Vitest): Counts {
  const counts: Counts = { passed: 0, failed: vitest.state.getUnhandledErrors().length, skipped: 0 };
  for (const module of vitest.state.getTestModules()) {
    let failedInside = 0;
    for (const test of module.children.allTests()) {
      const { state } = test.result();
      if (state === 'passed') counts.passed += 1;
      else if (state === 'skipped') counts.skipped += 1;
      else failedInside += 1;
    }
    counts.failed += module.state() === 'failed' ? Math.max(1, failedInside) : failedInside;
  }
  // "No test was found" must not look like success.
  if (counts.passed + counts.failed === 0) counts.failed = 1;
  return counts;
}

function report(left: readonly Leftover[]): void {
  if (left.length === 0) return;
  console.error('\nThe tests left behind:');
  for (const { kind, name, pid } of left) {
    console.error(`  ${kind} ${name}`);
    // It carries this run's own id. Alive, it could hold our output open for ever.
    if (pid !== undefined) endProcess(pid);
  }
}

function endProcess(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It has ended by itself since it was listed.
  }
}
