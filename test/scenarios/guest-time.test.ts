import { describe, expect, it } from 'vitest';
import { standStillFor } from '../kit/outage.ts';
import { soaking } from '../kit/soak.ts';
import { TestVm, until } from '../kit/test-vm.ts';

/** How far the guest's wall clock may be off while the VM is protected and busy. */
const ERROR_MAX_MS = 100;
const READINGS = soaking ? 600 : 30;
const OUTAGE_TOLERANCE_MS = 2000;

describe('the wall clock of a protected guest', () => {
  it('stays right under load, although the guest stands still in every pause', async () => {
    await using vm = await TestVm.start({ boots: true, clients: 4 });
    await until(() => vm.status.clock.answeredAgoMs !== null);
    await vm.load.begin();
    const errors: number[] = [];
    for (let reading = 0; reading < READINGS; reading += 1) {
      errors.push(Math.abs(await vm.load.guestClockErrorMs()));
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    await vm.load.end();
    expect(Math.max(...errors)).toBeLessThan(ERROR_MAX_MS);
  });

  it('without its correction falls behind, and stays behind after an outage', async () => {
    await using vm = await TestVm.start({ clients: 4, unsafe: { leaveClock: true } });
    const startMs = await vm.load.guestClockErrorMs();
    await vm.load.begin();
    let driftMs = 0;
    while (driftMs > -ERROR_MAX_MS) driftMs = (await vm.load.guestClockErrorMs()) - startMs;
    await vm.load.end();

    const beforeMs = await vm.load.guestClockErrorMs();
    await standStillFor(vm, OUTAGE_TOLERANCE_MS + 1000);
    expect((await vm.load.guestClockErrorMs()) - beforeMs).toBeLessThan(-OUTAGE_TOLERANCE_MS);
  });
});
