/** `npm run check`: every static check, then the unit tests. Goes on after a failure, to show them all. */
import { styleText } from 'node:util';
import { runTool, STATIC_CHECKS } from './static-checks.ts';

const steps = [
  ...STATIC_CHECKS,
  { name: 'unit tests', command: ['node', 'test/kit/suite.ts', '--project', 'unit'] as const },
];
const failed: string[] = [];

for (const { name, command } of steps) {
  const startMs = performance.now();
  const { exitCode, output } = await runTool(command);
  const seconds = ((performance.now() - startMs) / 1000).toFixed(1);
  if (exitCode === 0) {
    console.log(`${styleText('green', '✓')} ${name} (${seconds} s)`);
    continue;
  }
  failed.push(name);
  console.log(`${styleText('red', '✗')} ${name} (${seconds} s): ${command.join(' ')}\n${output.trimEnd()}\n`);
}

const verdict = failed.length === 0 ? 'all checks passed' : `failed: ${failed.join(', ')}`;
console.log(styleText(failed.length === 0 ? 'green' : 'red', verdict));
process.exitCode = failed.length === 0 ? 0 : 1;
