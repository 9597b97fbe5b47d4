import { describe, expect, it } from 'vitest';
import { standStillFor } from '../kit/outage.ts';
import { TestVm } from '../kit/test-vm.ts';

const OUTAGE_MS = 20_000;
const TOLERANCE_MS = 2000;

// Apart from the other tests of a guest's time, which are of milliseconds: another file may run meanwhile.
describe('the wall clock of a protected guest', () => {
  it('is right again after an outage of 20 s, and connections live on', async () => {
    await using vm = await TestVm.start();
    await standStillFor(vm, OUTAGE_MS);
    expect(Math.abs(await vm.load.guestClockErrorMs())).toBeLessThan(TOLERANCE_MS);
    expect(await vm.load.paced({ requests: 3, gapMs: 1 })).toHaveLength(3);
  });
});
