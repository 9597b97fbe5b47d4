import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { ensureDemoGuest } from '../../guest/build.ts';
import type { VmStatus } from '../../src/control/vm-status.ts';
import { PACKAGE_THERE, SystemdMachine } from '../kit/systemd-machine.ts';

/** For what a restart of a unit takes on a machine that is busy. */
const WAIT = { timeout: 90_000, interval: 50 };
const UNITS = '/usr/local/lib/systemd/system';
const KEEPER = 'understudy-keeper@kept';

let machine: SystemdMachine;
let spec: (name: string, more: string) => string;

beforeAll(async () => {
  const { kernel, initrd, cmdline } = await ensureDemoGuest();
  machine = await SystemdMachine.start();
  await put('/srv/kernel', readFileSync(kernel));
  await put('/srv/initrd', readFileSync(initrd));
  const boot = `{kernel: kernel, initrd: initrd, cmdline: "${cmdline} us.ip=10.78.0.2/24"}`;
  spec = (name, more) => `name: ${name}\nmemory: 128MiB\naccel: tcg\nboot: ${boot}\n${more}\n`;
  const nics = 'nics: [{uplink: {kind: tap, device: us-kept, address: 10.78.0.1/24}}]';
  await put('/srv/kept.yaml', spec('kept', nics));
  await put('/srv/broken.yaml', 'name: broken\nmemory: 128MiB\naccel: tcg\nboot: {kernel: kept.yaml}\n');
  await machine.must(`${PACKAGE_THERE}/bin/understudy`, 'install');
});
afterAll(() => machine?.[Symbol.asyncDispose]());

async function put(path: string, content: string | Uint8Array): Promise<void> {
  const { exitCode, stderr } = await machine.run(['sh', '-c', `cat >${path}`], { input: content });
  expect(stderr).toBe('');
  expect(exitCode).toBe(0);
}

async function json(...words: string[]) {
  const { stdout } = await machine.run(['understudy', ...words, '--json']);
  return JSON.parse(stdout);
}

async function vm(called = 'kept'): Promise<{ state: string; status: VmStatus }> {
  const { vms } = await json('ls');
  return vms.find(({ name }: { name: string }) => name === called);
}

/** What must not change when something happens to the host only. */
async function identity() {
  const { status } = await vm();
  return {
    keeper: await machine.show(KEEPER, 'MainPID'),
    primary: status.primary?.pid,
    shadow: status.shadow?.pid,
  };
}

async function hostIsAnotherThan(pid: string): Promise<void> {
  await vi.waitFor(async () => {
    expect(await machine.show('understudy-host', 'ActiveState')).toBe('active');
    expect(await machine.show('understudy-host', 'MainPID')).not.toBe(pid);
  }, WAIT);
}

describe('under systemd, the units that were installed', () => {
  it('are without fault in its eyes, and confined as docs/systemd.md says', async () => {
    const units = ['understudy-host', 'understudy-keeper@', 'understudy-site'].map(
      (unit) => `${unit}.service`,
    );
    const { exitCode, stdout, stderr } = await machine.run([
      'systemd-analyze',
      'verify',
      ...[...units, 'understudy.slice'].map((unit) => `${UNITS}/${unit}`),
    ]);
    expect({ exitCode, said: stdout + stderr }).toEqual({ exitCode: 0, said: '' });
    const document = readFileSync(new URL('../../docs/systemd.md', import.meta.url), 'utf8');
    const version = /^systemd (\d+)/.exec(await machine.must('systemctl', '--version'))?.[1];
    for (const unit of units) {
      const path = `${UNITS}/${unit}`;
      const told = await machine.must('systemd-analyze', 'security', '--offline=true', '--no-pager', path);
      const exposure = Number(/Overall exposure level for .+?: ([\d.]+)/.exec(told)?.[1]);
      const documented = Number(new RegExp(`\\| \`${unit}\` \\| ([\\d.]+) \\|`).exec(document)?.[1]);
      // Other versions weigh differently, and know more that could be confined.
      if (version === '252') expect(exposure).toBe(documented);
      else expect(Math.abs(exposure - documented)).toBeLessThan(1);
    }
  });

  it('would be found faulty with a directive that there is not', async () => {
    const planted = (await machine.must('cat', `${UNITS}/understudy-host.service`)).replace(
      'UMask=',
      'UMarsk=',
    );
    await put('/srv/planted.service', planted);
    const { stdout, stderr } = await machine.run(['systemd-analyze', 'verify', '/srv/planted.service']);
    expect(stdout + stderr).toContain('UMarsk');
  });

  it('run the host, which says when it is ready and lets its group in', async () => {
    await machine.must('systemctl', 'enable', '--now', 'understudy-host');
    expect(await machine.show('understudy-host', 'StatusText')).toBe('API on /run/understudy/host.sock');
    expect(await machine.must('stat', '-c', '%U %G %a', '/run/understudy/host.sock')).toBe(
      'root understudy 660',
    );
    expect(await machine.must('stat', '-c', '%a', '/run/understudy')).toBe('711');
  });

  it('keep a VM in a unit of its own, with its journal', async () => {
    expect((await json('create', '/srv/kept.yaml', '--timeout', '120')).observed.state).toBe('protected');
    expect(await machine.show(KEEPER, 'StatusText')).toBe('keeps kept');
    expect(await machine.show(KEEPER, 'ControlGroup')).toBe(
      '/understudy.slice/understudy-keeper@kept.service',
    );
    expect((await json('ls')).vms).toMatchObject([{ name: 'kept', state: 'protected', desired: 'running' }]);
    expect(await machine.must('journalctl', '-o', 'cat', '-t', 'understudy-kept')).toContain('"protected"');
    expect(await machine.must('ls', '-A', '/run/understudy/.orders')).toBe('');
  });

  it('leave the VM alone when the host is restarted, killed, or hangs', async () => {
    const before = await identity();
    expect(before.primary).toBeGreaterThan(0);
    let host = await machine.show('understudy-host', 'MainPID');

    await machine.must('systemctl', 'restart', 'understudy-host');
    await hostIsAnotherThan(host);
    expect(await identity()).toEqual(before);

    host = await machine.show('understudy-host', 'MainPID');
    await machine.must('kill', '-KILL', host);
    await hostIsAnotherThan(host);
    expect(await identity()).toEqual(before);

    await machine.must('mkdir', '-p', '/etc/systemd/system/understudy-host.service.d');
    await put('/etc/systemd/system/understudy-host.service.d/impatient.conf', '[Service]\nWatchdogSec=3\n');
    await machine.must('systemctl', 'daemon-reload');
    await machine.must('systemctl', 'restart', 'understudy-host');
    host = await machine.show('understudy-host', 'MainPID');
    // As long as it lives it shows signs of that, and when it hangs it shows none.
    for (let signs = 0; signs < 3; signs += 1) {
      const last = await machine.show('understudy-host', 'WatchdogTimestampMonotonic');
      await vi.waitFor(async () => {
        expect(await machine.show('understudy-host', 'WatchdogTimestampMonotonic')).not.toBe(last);
      }, WAIT);
    }
    expect(await machine.show('understudy-host', 'MainPID')).toBe(host);
    await machine.must('kill', '-STOP', host);
    await hostIsAnotherThan(host);
    expect(await machine.must('journalctl', '-o', 'cat', '-u', 'understudy-host')).toContain(
      'Watchdog timeout',
    );
    expect(await identity()).toEqual(before);
    expect((await vm()).state).toBe('protected');
    await machine.must('rm', '-r', '/etc/systemd/system/understudy-host.service.d');
    await machine.must('systemctl', 'daemon-reload');
    await machine.must('systemctl', 'restart', 'understudy-host');
  });

  it('have the host read its configuration again, and stay with what it has when that is wrong', async () => {
    const host = await machine.show('understudy-host', 'MainPID');
    const lines = () => machine.must('journalctl', '-o', 'cat', '-t', 'understudy-host');
    await put('/etc/understudy/host.yaml', 'log: {level: debug}\nkeepers: {start: direct}\n');
    await machine.must('systemctl', 'reload', 'understudy-host');
    await vi.waitFor(async () => {
      expect(await lines()).toContain('"applied":["log"],"needRestart":["keepers"]');
    }, WAIT);
    await put('/etc/understudy/host.yaml', 'logs: {}\n');
    await machine.must('systemctl', 'reload', 'understudy-host');
    await vi.waitFor(async () => {
      expect(await lines()).toContain('/etc/understudy/host.yaml:1: logs: unknown field (did you mean log?)');
    }, WAIT);
    await put('/etc/understudy/host.yaml', '');
    expect(await machine.show('understudy-host', 'MainPID')).toBe(host);
  });

  it('let the next keeper go on from the shadow when one is killed', async () => {
    const { keeper } = await identity();
    await machine.must('kill', '-KILL', keeper);
    await vi.waitFor(async () => {
      expect(await machine.show(KEEPER, 'ActiveState')).toBe('active');
      expect(await machine.show(KEEPER, 'MainPID')).not.toBe(keeper);
      expect((await vm()).state).toBe('protected');
    }, WAIT);
    expect(await machine.must('journalctl', '-o', 'cat', '-t', 'understudy-kept')).toContain('"inherited"');
  });

  it('tell what keeps a VM from starting, to who asks the host and in the journal', async () => {
    const { error } = await json('create', '/srv/broken.yaml', '--timeout', '60');
    expect(error.code).toBe('QEMU_START_FAILED');
    expect(await machine.must('journalctl', '-o', 'cat', '-t', 'understudy-broken')).toContain(
      'QEMU_START_FAILED',
    );
    await machine.must('understudy', 'delete', 'broken');
  });

  it('start no keeper that nobody asked for', async () => {
    expect((await machine.run(['systemctl', 'start', 'understudy-keeper@nobody'])).exitCode).not.toBe(0);
    expect(await machine.must('journalctl', '-o', 'cat', '-t', 'understudy-nobody')).toContain(
      'KEEPER_NO_ORDER',
    );
    await machine.must('systemctl', 'reset-failed', 'understudy-keeper@nobody');
  });

  it('would take a VM along with the host if it lived in the unit of the host', async () => {
    const plant = '/etc/systemd/system/understudy-host.service.d/planted.conf';
    const before = await identity();
    await machine.must('mkdir', '-p', '/etc/systemd/system/understudy-host.service.d');
    await put(plant, '[Service]\nKillMode=control-group\n');
    await put('/etc/understudy/host.yaml', 'keepers: {start: direct}\n');
    await put('/srv/inside.yaml', spec('inside', 'nics: []'));
    await machine.must('systemctl', 'daemon-reload');
    await machine.must('systemctl', 'restart', 'understudy-host');
    await json('create', '/srv/inside.yaml', '--timeout', '120');
    const { primary } = (await vm('inside')).status;
    expect(await machine.must('cat', `/proc/${primary?.pid}/cgroup`)).toContain('understudy-host.service');
    await machine.must('systemctl', 'restart', 'understudy-host');
    expect((await machine.run(['ls', `/proc/${primary?.pid}`])).exitCode).not.toBe(0);
    expect(await identity()).toEqual(before);

    await machine.must('understudy', 'delete', 'inside');
    await machine.must('rm', plant);
    await put('/etc/understudy/host.yaml', '');
    await machine.must('systemctl', 'daemon-reload');
    await machine.must('systemctl', 'restart', 'understudy-host');
  });

  it('are not uninstalled while the VM runs, and end it after the host when all ends', async () => {
    const refused = await json('uninstall');
    expect(refused.error).toMatchObject({ code: 'CLI_VMS_RUN', vms: ['kept'] });
    expect(await machine.show('understudy-host', 'ActiveState')).toBe('active');

    // One job after the other is queued: the first one has begun before the second is known, as in a shutdown it has not.
    await machine.must('systemctl', 'stop', 'understudy-host', KEEPER);
    const told = await machine.must('journalctl', '-o', 'cat');
    const hostStopped = told.lastIndexOf('Stopped understudy-host.service');
    expect(hostStopped).toBeGreaterThan(0);
    expect(told.lastIndexOf(`Stopping ${KEEPER}.service`)).toBeGreaterThan(hostStopped);
    expect((await machine.run(['ls', '/run/understudy/kept'])).exitCode).not.toBe(0);
  });

  it('are gone after uninstall, and what others wrote stays', async () => {
    await put(`${UNITS}/understudy.slice`, '[Slice]\nCPUWeight=50\n');
    const { steps } = await json('uninstall');
    const kept = steps
      .filter(({ done }: { done: string }) => done === 'kept')
      .map(({ what }: { what: string }) => what);
    expect(kept.sort()).toEqual(
      [
        '/etc/understudy',
        '/etc/understudy/host.yaml',
        '/var/lib/understudy',
        `${UNITS}/understudy.slice`,
      ].sort(),
    );
    expect(await machine.show('understudy-host', 'LoadState')).toBe('not-found');
    expect((await machine.run(['getent', 'group', 'understudy'])).exitCode).not.toBe(0);
    expect((await machine.run(['ls', '/var/lib/understudy/host.db'])).exitCode).toBe(0);
  });
});
