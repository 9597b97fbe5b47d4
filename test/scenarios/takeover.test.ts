import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { soaking } from '../kit/soak.ts';
import { TestVm } from '../kit/test-vm.ts';

/** Every place in an epoch where a primary can die. */
const PLACES = [
  'cut.before-pause',
  'cut.after-pause',
  'cut.before-scan',
  'cut.after-scan',
  'cut.after-stage',
  'cut.before-resume',
  'cut.after-resume',
  'commit.before-acknowledge',
  'commit.after-acknowledge',
  'commit.after-release',
  'apply.before',
  'apply.middle',
  'apply.after',
];
const CLIENTS = 2;
const RANDOM_KILLS = soaking ? 100 : 5;

let vm: TestVm;
/** Redis makes it up when it starts: another one would mean that the guest, or Redis in it, began anew. */
let runId: string;

beforeAll(async () => {
  vm = await TestVm.start({ clients: CLIENTS });
  runId = await runIdOf();
});
afterAll(() => vm[Symbol.asyncDispose]());

async function runIdOf(): Promise<string> {
  const info = String(await vm.load.command('INFO', 'server'));
  return /run_id:(\w+)/.exec(info)?.[1] ?? info;
}

/** Nothing acknowledged is lost, no connection broke, and it is the same guest as ever. */
async function expectNothingLost(): Promise<void> {
  const report = await vm.load.end();
  expect(report.errors).toEqual([]);
  expect(report.connections).toEqual({ total: CLIENTS, survived: CLIENTS });
  expect(await vm.load.verify()).toMatchObject({ lostWrites: 0, examples: [] });
  expect(await runIdOf()).toBe(runId);
}

describe('a VM under load whose QEMU is killed', () => {
  it.each(PLACES)('at %s loses nothing that was acknowledged, and its connections live on', async (place) => {
    await vm.load.begin();
    const promoted = vm.nextEvent('promoted');
    await vm.atNext(place, () => {
      vm.signalPrimary('SIGKILL');
    });
    await promoted;
    await vm.untilProtected();
    await expectNothingLost();
  });

  it('while it is being fenced is killed but once, and goes on in its shadow', async () => {
    await vm.load.begin();
    const killed = vm.atNext('fence.before-kill', () => {
      vm.signalPrimary('SIGKILL');
    });
    await vm.keeper.promote();
    await killed;
    await vm.untilProtected();
    await expectNothingLost();
  });

  it('before an epoch is committed answers a request that was still open then, from the shadow', async () => {
    const hold = vm.holdOutputCommit();
    const reply = vm.load.paced({ requests: 1, gapMs: 0 });
    await hold.reached;
    const promoted = vm.nextEvent('promoted');
    const killedMs = vm.signalPrimary('SIGKILL');
    hold.release();
    const [timing] = await reply;
    await promoted;
    // Both on one clock: the request was sent before the kill and its reply was read after it.
    expect(timing?.sentMs).toBeLessThan(killedMs);
    expect(timing?.repliedMs).toBeGreaterThan(killedMs);
    await vm.untilProtected();
    await expectNothingLost();
  });

  it('at a random moment, again and again, loses nothing', async () => {
    let openAtKills = 0;
    for (let kill = 0; kill < RANDOM_KILLS; kill += 1) {
      await vm.load.begin();
      const promoted = vm.nextEvent('promoted');
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 150));
      const killedMs = vm.signalPrimary('SIGKILL');
      await promoted;
      await vm.untilProtected();
      await expectNothingLost();
      openAtKills += (await vm.load.openAt(killedMs)).length;
    }
    expect(openAtKills, 'requests that were open at a kill').toBeGreaterThan(0);
    expect(vm.status).toMatchObject({ restarts: 0 });
  });
});

describe('a planned promotion', () => {
  it('loses nothing and leaves the VM protected again', async () => {
    await vm.load.begin();
    const before = vm.status.primary;
    await vm.keeper.promote();
    expect(vm.status.primary).not.toEqual(before);
    await vm.untilProtected();
    await expectNothingLost();
  });
});
