import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { PAGE_BYTES } from '../../src/base/units.ts';
import type { FailoverReport } from '../../src/control/failover-report.ts';
import { TestVm, until } from '../kit/test-vm.ts';

/** What the VM has besides two QEMUs and their files. */
function testTraces(vm: TestVm): string[] {
  const pids = vm.keeper
    .eventsSince(0)
    .filter(({ kind, facts }) => kind === 'qemu-started' && facts.role === 'test');
  return pids.flatMap(({ facts }) =>
    vm.traces.filter((path) => path === `/proc/${facts.pid}` || path.endsWith(`-${facts.instance}.ram`)),
  );
}

const PASSED = { ok: true, reason: null, agentAnswered: true };

describe('a test of the failover', () => {
  it('brings a copy of the shadow up, which runs and answers, and touches nothing else', async () => {
    await using vm = await startedWithAgent();
    await vm.load.begin();
    const before = vm.status;
    const report = await vm.keeper.testFailover();
    expect(report).toMatchObject(PASSED);
    expect(report.epoch).toBeGreaterThan(0);
    for (const figure of ['copyMs', 'heldMs', 'loadMs', 'runningMs', 'memoryBytes'] as const)
      expect(report[figure]).toBeGreaterThan(0);
    const { primary, shadow, promotions, restarts } = vm.status;
    expect({ primary, promotions, restarts }).toEqual({
      primary: before.primary,
      promotions: 0,
      restarts: 0,
    });
    expect(shadow?.instance).toBe(before.shadow?.instance);
    expect(testTraces(vm)).toEqual([]);
    expect(vm.eventKinds).toContain('failover-test');
    // Had anything of the copy left, it would have answered the clients' frames as well.
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
  });

  it('fails when the newest epoch in the shadow is damaged', async () => {
    await using vm = await TestVm.start({ clients: 0 });
    const hold = vm.holdAt('failover-test.before-copy');
    const tested = vm.keeper.testFailover();
    await hold.reached;
    // No more epochs, else a whole one would take the place of the damaged one.
    const cut = vm.holdAt('cut.before-pause');
    await cut.reached;
    for (const path of vm.epochPaths(vm.status.shadow)) flipBit(path, 2 * PAGE_BYTES);
    hold.release();
    expect(await tested).toMatchObject({ ok: false, reason: { code: 'REPLICATION_EPOCH_CORRUPT' } });
    expect(testTraces(vm)).toEqual([]);
    cut.release();
  });

  it("fails when the shadow's memory is damaged, though the device state still loads", async () => {
    await using vm = await startedWithAgent();
    const hold = vm.holdAt('failover-test.before-copy');
    const tested = vm.keeper.testFailover();
    await hold.reached;
    const memory = vm.memoryPath(vm.status.shadow);
    const fd = openSync(memory, 'r+');
    writeSync(fd, Buffer.alloc(readFileSync(memory).length, 0xf4), 0, undefined, 0);
    closeSync(fd);
    hold.release();
    const report = await tested;
    expect(report).toMatchObject({ ok: false, reason: { code: 'KEEPER_TEST_FAILED' } });
    expect(report.loadMs).toBeGreaterThan(0);
    expect(testTraces(vm)).toEqual([]);
  });

  it('is refused without a shadow in sync, and twice at a time', async () => {
    await using vm = await startedWithAgent();
    const hold = vm.holdAt('failover-test.before-load');
    const first = vm.keeper.testFailover();
    await hold.reached;
    await expect(vm.keeper.testFailover()).rejects.toMatchObject({ code: 'KEEPER_TEST_UNDER_WAY' });
    hold.release();
    expect(await first).toMatchObject(PASSED);
    await vm.keeper.unprotect();
    await expect(vm.keeper.testFailover()).rejects.toMatchObject({ code: 'KEEPER_NOT_PROTECTED' });
  });

  it('ends with the VM when that is stopped', async () => {
    await using vm = await TestVm.start({ clients: 0 });
    const hold = vm.holdAt('failover-test.running');
    const tested = vm.keeper.testFailover();
    await hold.reached;
    await vm.keeper.stop({ graceful: false });
    expect(await tested).toMatchObject({ ok: false, reason: { code: 'KEEPER_TEST_CUT_SHORT' } });
    expect(vm.traces).toEqual([]);
  });

  it.each(['before-start', 'before-copy', 'held', 'before-load', 'after-load', 'running', 'before-end'])(
    'at the step %s does not stand in the way of a takeover, and leaves nothing behind',
    async (step) => {
      await using vm = await TestVm.start();
      await vm.load.begin();
      const hold = vm.holdAt(`failover-test.${step}`);
      const tested = vm.keeper.testFailover();
      await hold.reached;
      const promoted = vm.nextEvent('promoted');
      vm.signalPrimary('SIGKILL');
      await promoted;
      expect(await tested).toMatchObject({ ok: false, reason: { code: 'KEEPER_TEST_CUT_SHORT' } });
      hold.release();
      expect((await vm.load.end()).connections.survived).toBe(1);
      expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
      expect(testTraces(vm)).toEqual([]);
    },
  );

  it.each(['before-copy', 'held', 'running'])(
    'at the step %s whose QEMU is killed, or whose standby is, leaves the VM as it was',
    async (step) => {
      await using vm = await TestVm.start({ clients: 0 });
      const { primary } = vm.status;
      const first = await killedAt(vm, step, () => lastTestPid(vm));
      expect(first.ok).toBe(false);
      expect(vm.status).toMatchObject({ phase: 'protected', primary });
      const alone = vm.nextEvent('alone');
      const second = await killedAt(vm, step, () => vm.standbyPid);
      expect(second).toMatchObject({ ok: false, reason: { code: 'KEEPER_TEST_CUT_SHORT' } });
      await alone;
      await vm.untilProtected();
      expect(vm.status).toMatchObject({ primary, promotions: 0, restarts: 0 });
      expect(testTraces(vm)).toEqual([]);
    },
  );
});

/** Its guest has booted: it can be told from one that only spins or halts. */
async function startedWithAgent(): Promise<TestVm> {
  const vm = await TestVm.start();
  await until(() => vm.status.clock.answeredAgoMs !== null);
  return vm;
}

async function killedAt(vm: TestVm, step: string, pid: () => number): Promise<FailoverReport> {
  const hold = vm.holdAt(`failover-test.${step}`);
  const tested = vm.keeper.testFailover();
  await hold.reached;
  process.kill(pid(), 'SIGKILL');
  hold.release();
  return await tested;
}

function lastTestPid(vm: TestVm): number {
  const started = vm.keeper.eventsSince(0).findLast(({ facts }) => facts.role === 'test');
  return Number(started?.facts.pid);
}

function flipBit(path: string, at: number): void {
  const fd = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  readSync(fd, byte, 0, 1, at);
  writeSync(fd, Uint8Array.of((byte[0] ?? 0) ^ 1), 0, 1, at);
  closeSync(fd);
}
