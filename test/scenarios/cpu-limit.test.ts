import { readdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { expect, it } from 'vitest';
import { CgroupTree } from '../../src/linux/cgroup.ts';
import { TestVm, until } from '../kit/test-vm.ts';

it('a shadow takes over though the group that limits its processor time is gone, and says that its limit is lost', async () => {
  await using vm = await TestVm.start();
  const group = vm.traces.find((path) => path.endsWith(`/${vm.status.name}-${vm.status.shadow?.instance}`));
  const detected = CgroupTree.detect();
  // Where there are no groups there is nothing to take away.
  if (detected.kind === 'usable') {
    if (group === undefined) throw new Error('the standby has no group');
    writeFileSync(join(dirname(dirname(group)), 'cgroup.procs'), String(vm.standbyPid));
    await until(() => removed(group));
  }
  if (detected.kind === 'usable') {
    const limited = await vm.keeper.limits({ cpuMillicores: 900 });
    expect(limited.cpuMillicores).toEqual({ wanted: 900, inForce: 900 });
  }
  await vm.load.begin();
  const promoted = vm.nextEvent('promoted');
  vm.signalPrimary('SIGKILL');
  await promoted;
  await vm.untilProtected();
  expect((await vm.load.end()).connections.survived).toBe(1);
  if (detected.kind === 'usable') {
    expect(vm.eventKinds).toContain('limit-lost');
    const problem = { code: 'KEEPER_LIMIT_IMPOSSIBLE', message: expect.stringContaining('cgroup') };
    expect((await vm.keeper.limits({})).cpuMillicores).toEqual({ wanted: 900, inForce: null, problem });
  }
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
