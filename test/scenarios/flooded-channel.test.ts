import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { systemClock } from '../../src/base/clock.ts';
import { TestVm, until } from '../kit/test-vm.ts';

/** Long enough for a guest to fill the socket of a channel that nobody reads. */
const FILL_MS = 50;
/** Long enough for QEMU to go on with its queue when somebody makes room in the socket. */
const SLOW_MS = 20;
const CUTS = 6;
const FLOOD =
  'kill -STOP $(pidof agent); for p in /dev/vport*p1; do :; done; kill -9 $(pidof agent); while :; do cat /bin/busybox > $p; done';

it('a guest that fills its agent channel is taken over from memory and devices of one moment', async () => {
  await using vm = await TestVm.start({ clients: 0 });
  using console = vm.openConsole();
  await console.take(/understudy-guest: ready[\s\S]*\/ # /);
  const { releasedItems } = vm.link('agent');
  console.type(FLOOD);
  await until(() => vm.link('agent').releasedItems > releasedItems + 30);
  vm.failpoints.arm('cut.before-pause', () => standStill(FILL_MS));
  const memoryPath = vm.memoryPath(vm.status.primary);
  const cuts: string[] = [];
  vm.failpoints.arm('cut.after-save', async () => {
    const saved = readFileSync(memoryPath);
    await systemClock.sleep(SLOW_MS);
    cuts.push(readFileSync(memoryPath).equals(saved) ? 'of one moment' : 'newer than its devices');
  });
  await until(() => cuts.length >= CUTS);
  const over = Promise.race([vm.nextEvent('promoted'), vm.nextEvent('restarted-cold')]);
  vm.signalPrimary('SIGKILL');
  await over;
  expect(new Set(cuts)).toEqual(new Set(['of one moment']));
  expect(vm.eventKinds).not.toContain('promote-failed');
  expect(vm.status).toMatchObject({ promotions: 1, restarts: 0 });
});

/** Holds the whole process up, so that it reads no socket. */
function standStill(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}
