import { describe, expect, it } from 'vitest';
import { limitsText } from './limits-command.ts';
import { Output } from './output.ts';
import { buildProgram } from './program.ts';

const free = { wanted: null, inForce: null };

describe('understudy limits', () => {
  it('shows what holds', () => {
    const status = {
      ...{ cpuMillicores: { wanted: 300, inForce: 300 }, diskBytesPerSecond: free },
      ...{ netBytesPerSecond: { wanted: 1_048_576, inForce: 1_048_576 }, memoryBytes: free },
      memoryReadyBytes: { wanted: null, inForce: 67_108_864 },
    };
    expect(limitsText(status).split('\n')).toEqual([
      'RESOURCE      LIMIT',
      'cpu           0.3 cores',
      'disk          none',
      'net           1 MiB/s',
      'memory        none',
      'memory ready  64 MiB',
    ]);
    const problem = { code: 'KEEPER_LIMIT_IMPOSSIBLE', message: 'it has no balloon' };
    expect(limitsText({ ...status, memoryBytes: { ...free, wanted: 1_048_576, problem } })).toMatch(
      /memory +none +1 MiB +it has no balloon \(KEEPER_LIMIT_IMPOSSIBLE\)$/m,
    );
  });

  it.each([
    ['--cpu', '0'],
    ['--cpu', '0.049'],
    ['--cpu', '-1'],
    ['--cpu', '1e9'],
    ['--cpu', 'NaN'],
    ['--cpu', 'all'],
    ['--net', '4095'],
    ['--net', '10parsecs'],
    ['--disk', '-1MiB'],
    ['--memory', '0'],
  ])('takes no %s %s', async (option, text) => {
    const program = buildProgram(new Output({ json: true }), () => {});
    const args = ['limits', 'a', `${option}=${text}`];
    await expect(program.parseAsync(args, { from: 'user' })).rejects.toThrow('or none.');
  });
});
