import { describe, expect, it } from 'vitest';
import { TestVm, until } from '../kit/test-vm.ts';

describe('a guest that reboots', () => {
  it('stays protected, and what it does afterwards survives a kill', async () => {
    await using vm = await TestVm.start();
    using console = vm.openConsole();
    await console.untilShell();
    const reset = vm.nextEvent('guest-reset');
    console.type('reboot -f');
    await reset;
    await console.take(/understudy-guest: ready/);
    expect(vm.status).toMatchObject({ phase: 'protected', promotions: 0, restarts: 0 });
    await using load = await vm.newLoad();
    await load.begin();
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    await promoted;
    await vm.untilProtected();
    expect((await load.end()).connections.survived).toBe(1);
    expect(await load.verify()).toMatchObject({ lostWrites: 0 });
  });

  it('and whose QEMU is killed on the way up goes on booting in its shadow', async () => {
    await using vm = await TestVm.start();
    using console = vm.openConsole();
    await console.untilShell();
    const reset = vm.nextEvent('guest-reset');
    console.type('reboot -f');
    await reset;
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    await promoted;
    await console.take(/understudy-guest: ready/);
    expect(vm.status).toMatchObject({ promotions: 1, restarts: 0 });
  });
});

describe('a guest whose QEMU was promoted', () => {
  it('can reboot', async () => {
    await using vm = await TestVm.start();
    using console = vm.openConsole();
    await console.untilShell();
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    await promoted;
    await vm.untilProtected();
    console.type('reboot -f');
    await console.take(/understudy-guest: ready/);
    expect(vm.eventKinds).toContain('guest-reset');
  });
});

describe('a guest that powers off', () => {
  it('is no failure: its VM ends, and nobody takes over', async () => {
    await using vm = await TestVm.start();
    using console = vm.openConsole();
    await console.untilShell();
    console.type('poweroff -f');
    expect(await vm.keeper.finished).toEqual({ reason: 'powered-off' });
    expect(vm.status).toMatchObject({ promotions: 0, restarts: 0, phase: 'stopped' });
    expect(vm.eventKinds).not.toContain('primary-lost');
  });

  it('has not powered off as long as that is not committed: after a kill the shadow does it again', async () => {
    await using vm = await TestVm.start();
    using console = vm.openConsole();
    await console.untilShell();
    const cut = vm.holdAt('cut.before-pause');
    await cut.reached;
    console.type('poweroff -f');
    await until(() => vm.primaryQmpLog.includes('"SHUTDOWN"'));
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    cut.release();
    await promoted;
    expect(vm.eventKinds).not.toContain('guest-powered-off');
    expect(await vm.keeper.finished).toEqual({ reason: 'powered-off' });
    expect(vm.eventKinds.filter((kind) => kind === 'guest-powered-off')).toHaveLength(1);
  });
});

describe('a guest that panics', () => {
  it('is taken over once; when that helps nothing it is restarted cold, and protected again', async () => {
    await using vm = await TestVm.start();
    using console = vm.openConsole();
    await console.untilShell();
    const restarted = vm.nextEvent('restarted-cold');
    // What was typed belongs to the input that the shadow gets again: the panic repeats itself.
    console.type('echo c > /proc/sysrq-trigger');
    await restarted;
    await vm.untilProtected();
    await console.take(/understudy-guest: ready/);
    const story = vm.eventKinds.filter((kind) =>
      ['primary-lost', 'promoted', 'restarted-cold'].includes(kind),
    );
    expect(story).toEqual(['primary-lost', 'promoted', 'primary-lost', 'restarted-cold']);
    const reasons = vm.keeper.eventsSince(0).filter(({ kind }) => kind === 'primary-lost');
    expect(reasons.map(({ facts }) => facts.reason)).toEqual(['panicked', 'panicked']);
    expect(vm.status).toMatchObject({ promotions: 1, restarts: 1 });
  });

  it('in its shadow the moment that it goes on there is restarted cold all the same', async () => {
    await using vm = await TestVm.start();
    using console = vm.openConsole();
    await console.untilShell();
    // The shadow gets again what was typed, or goes on in the middle of the panic.
    const { shadow } = vm.status;
    const runs = vm.holdAt('promote.after');
    const restarted = vm.nextEvent('restarted-cold');
    console.type('echo c > /proc/sysrq-trigger');
    await runs.reached;
    // Nobody is told yet that it acts.
    await until(() => vm.qmpLog(shadow).includes('GUEST_PANICKED'));
    runs.release();
    await restarted;
    expect(vm.eventKinds).not.toContain('guest-reset');
    expect(vm.status).toMatchObject({ promotions: 1, restarts: 1 });
  });

  it('in the middle of a cut is never committed in its panic', async () => {
    await using vm = await TestVm.start();
    using console = vm.openConsole();
    await console.untilShell();
    const cut = vm.holdAt('cut.before-pause');
    await cut.reached;
    const { committed } = vm.status.epochs;
    const fence = vm.holdAt('fence.before-kill');
    const lost = vm.nextEvent('primary-lost');
    console.type('echo c > /proc/sysrq-trigger');
    await lost;
    await fence.reached;
    // The cut goes on before the primary is killed: it finds a machine that stands still already.
    cut.release();
    const promoted = vm.nextEvent('promoted');
    fence.release();
    await promoted;
    expect(vm.status.epochs.committed).toBe(committed);
  });
});
