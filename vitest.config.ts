import { defineConfig } from 'vitest/config';
import { soaking } from './test/kit/soak.ts';

/** Tests that boot machines or run whole tools. Two files at a time: they wait for events, and mostly for QEMU to start. */
const machines = [
  'guest/**/*.test.ts',
  'bench/**/*.test.ts',
  'src/{qemu,keeper,cli}/**/*.test.ts',
  'test/{integration,scenarios}/**/*.test.ts',
];

/** Tools without a guest beside them: they may share the machine with another file. */
const tools = ['test/integration/{etcd-faults,lease-hosts,nbd-tester,nbd-tools,qcow2-layer}.test.ts'];

/** What looks at time, at CPU shares or at the machine as a whole: one file at a time, with nothing beside it. */
const alone = [
  'test/integration/{debian-guest,systemd}.test.ts',
  'test/scenarios/{cpu-limit,guest-time,hanging-primary}.test.ts',
  // Two hosts and their clients want both processors; and what takes too long there is taken for dead.
  'test/scenarios/{file-systems,site,two-hosts*}.test.ts',
];

const MINUTE_MS = 60_000;

export default defineConfig({
  test: {
    pool: 'forks',
    // Two is what the smallest supported machine has; more would only make deadlines flicker.
    maxWorkers: 2,
    teardownTimeout: 20_000,
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: ['src/**/*.test.ts', 'test/**/*.test.ts'],
          exclude: machines,
          // Seconds of one processor each; on a machine that is busy with ten times as much, they take ten times as long.
          testTimeout: 2 * MINUTE_MS,
          hookTimeout: 2 * MINUTE_MS,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: {
          name: 'tools',
          include: tools,
          testTimeout: 3 * MINUTE_MS,
          hookTimeout: 2 * MINUTE_MS,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: {
          name: 'machines',
          include: machines,
          exclude: [...tools, ...alone],
          testTimeout: soaking ? 180 * MINUTE_MS : 3 * MINUTE_MS,
          hookTimeout: 5 * MINUTE_MS,
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: {
          name: 'alone',
          include: alone,
          fileParallelism: false,
          testTimeout: soaking ? 180 * MINUTE_MS : 3 * MINUTE_MS,
          hookTimeout: 5 * MINUTE_MS,
          sequence: { groupOrder: 2 },
        },
      },
    ],
  },
});
