import { expect, it } from 'vitest';
import { runTool, STATIC_CHECKS } from '../kit/static-checks.ts';

it.each(STATIC_CHECKS)('the repository passes its check of $name', async ({ command }) => {
  const { exitCode, output } = await runTool(command);
  expect(exitCode, output).toBe(0);
});
