import { readdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { expect, it } from 'vitest';
import { CgroupTree } from '../../src/linux/cgroup.ts';
import { TestVm, until } from '../kit/test-vm.ts';

it('a shadow takes over though the group that limits its processor time is gone', async () => {
  await using vm = await TestVm.start();
  const group = vm.traces.find((path) => path.endsWith(`/${vm.status.name}-${vm.status.shadow?.instance}`));
  const detected = CgroupTree.detect();
  // Where there are no groups there is nothing to take away.
  if (detected.kind === 'usable') {
    if (group === undefined) throw new Error('the standby has no group');
    writeFileSync(join(dirname(dirname(group)), 'cgroup.procs'), String(vm.standbyPid));
    await until(() => removed(group));
  }
  await vm.load.begin();
  const promoted = vm.nextEvent('promoted');
  vm.signalPrimary('SIGKILL');
  await promoted;
  await vm.untilProtected();
  expect((await vm.load.end()).connections.survived).toBe(1);
  expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
});

function removed(group: string): boolean {
  try {
    rmdirSync(group);
  } catch {
    return !readdirSync(dirname(group)).some((name) => group.endsWith(`/${name}`));
  }
  return true;
}
