import type { TestVm } from './test-vm.ts';

/** Kills the primary, and lets the shadow wait for so long before it goes on. */
export async function standStillFor(vm: TestVm, outageMs: number): Promise<void> {
  const hold = vm.holdAt('promote.before');
  const promoted = vm.nextEvent('promoted');
  vm.signalPrimary('SIGKILL');
  await hold.reached;
  await new Promise((resolve) => setTimeout(resolve, outageMs));
  hold.release();
  await promoted;
  await vm.untilProtected();
}
