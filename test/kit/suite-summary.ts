import { loadavg } from 'node:os';
import type { TestModule } from 'vitest/node';

const LONGEST_FILES_SHOWN = 15;
/** A run of fewer files is for these files alone. */
const FILES_OF_A_WHOLE_RUN = 50;

/**
 * What whoever reads the end of a log of CI looks for: each failure in one line with how long it took, which tells a wait that
 * was in vain from a wrong value, how busy the machine is, what could not run here and why, and where the time went.
 */
export function summarize(modules: readonly TestModule[]): string[] {
  const failures = modules.flatMap(failuresOf);
  const skips = modules.flatMap(skipsOf);
  const load = loadavg().map((value) => value.toFixed(1));
  return [
    ...(failures.length > 0 ? ['Failed:', ...failures, `  (load of the machine: ${load.join(', ')})`] : []),
    ...(skips.length > 0 ? ['Skipped:', ...skips] : []),
    ...(modules.length >= FILES_OF_A_WHOLE_RUN ? longestFiles(modules) : []),
  ];
}

function failuresOf(module: TestModule): string[] {
  const place = `${module.project.name} ${module.relativeModuleId}`;
  const outside = module.errors().map((error) => `  ${place}: ${firstLine(error.message)}`);
  const inside = [...module.children.allTests('failed')].map((test) => {
    const seconds = ((test.diagnostic()?.duration ?? 0) / 1000).toFixed(1);
    const [error] = test.result().errors ?? [];
    return `  ${place} > ${test.fullName} (${seconds} s): ${firstLine(error?.message ?? '')}`;
  });
  return [...outside, ...inside];
}

/** Those that say why, one line for each reason. */
function skipsOf(module: TestModule): string[] {
  const skipped = [...module.children.allTests('skipped')].map((test) => test.result());
  const notes = skipped.flatMap((result) => (result.state === 'skipped' && result.note) || []);
  const place = `${module.project.name} ${module.relativeModuleId}`;
  return [...Map.groupBy(notes, firstLine)].map(
    ([note, { length }]) => `  ${place}: ${length} ${length === 1 ? 'test' : 'tests'}: ${note}`,
  );
}

function firstLine(message: string): string {
  return message.split('\n', 1)[0]?.slice(0, 300) ?? '';
}

function longestFiles(modules: readonly TestModule[]): string[] {
  const files = modules
    .map((module) => ({ module, seconds: module.diagnostic().duration / 1000 }))
    .toSorted((one, other) => other.seconds - one.seconds)
    .slice(0, LONGEST_FILES_SHOWN);
  return [
    'The longest files:',
    ...files.map(
      ({ module, seconds }) =>
        `  ${seconds.toFixed(1).padStart(6)} s  ${module.project.name} ${module.relativeModuleId}`,
    ),
  ];
}
