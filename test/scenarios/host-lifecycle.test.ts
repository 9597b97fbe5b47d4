import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it, vi } from 'vitest';
import { ensureDemoGuest } from '../../guest/build.ts';
import type { Vm } from '../../src/api/resources.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { ControlClient } from '../../src/control/control-client.ts';
import { controlSocketOf, RunDirectory } from '../../src/control/run-directory.ts';
import { TestHost } from '../kit/test-host.ts';

const params = { name: 'kept' };
let spec: string;

beforeAll(async () => {
  const { kernel, initrd, cmdline } = await ensureDemoGuest();
  spec = `name: kept\nmemory: 128MiB\naccel: tcg\nboot: {kernel: ${kernel}, initrd: ${initrd}, cmdline: ${cmdline}}\n`;
});

async function declared(host: TestHost): Promise<void> {
  await host.client.call('declareVm', { body: { spec, directory: '/' } });
  await host.until('kept', isIn('protected'));
}

const isIn =
  (...states: Vm['observed']['state'][]) =>
  ({ observed }: Vm) =>
    states.includes(observed.state);

/** Types a line into the guest's shell and waits for what it says. */
async function inGuest(line: string, answer: RegExp): Promise<void> {
  using control = await ControlClient.connect(controlSocketOf('kept'), { vm: 'kept', clock });
  const console = await control.console();
  const said = Promise.withResolvers<void>();
  let text = '';
  const cancel = clock.after(60_000, () => said.reject(new Error(`no ${answer} in ${JSON.stringify(text)}`)));
  console.on('data', (bytes: Buffer) => {
    text += bytes.toString('latin1');
    if (answer.test(text)) said.resolve();
  });
  console.write(line);
  await said.promise.finally(cancel);
}

/** What is only in the guest's memory. A guest that boots anew does not know it. */
async function leaveNonce(): Promise<void> {
  await inGuest('', /understudy-guest: ready/);
  await inGuest('nonce=$$-in-memory-only; echo set-$nonce\n', /set-\d+-in/);
}

async function untilAgentIsHeard(): Promise<void> {
  using control = await ControlClient.connect(controlSocketOf('kept'), { vm: 'kept', clock });
  const signal = AbortSignal.timeout(60_000);
  while ((await control.status()).clock.answeredAgoMs === null) await clock.sleep(50, signal);
}

const findNonce = () => inGuest('echo got-$nonce\n', /got-\d+-in-memory-only/);

describe('the protection of a VM that a host owns', () => {
  it('is wanted or not over restarts of host, keeper and VM, until somebody says otherwise', async () => {
    await using host = await TestHost.start();
    await declared(host);
    expect(await host.client.call('unprotectVm', { params })).toMatchObject({ shadowWanted: false });
    await host.until('kept', isIn('alone'));
    await host.end('SIGKILL');
    await host.startDaemon();
    expect((await host.until('kept', isIn('alone'))).shadowWanted).toBe(false);

    const after = await host.lastEventId();
    process.kill(RunDirectory.find('kept')?.record?.keeper.pid ?? 0, 'SIGKILL');
    await host.nextEvent('alone', { vm: 'kept', after });
    await host.client.call('stopVm', { params, body: { graceful: false } });
    await host.until('kept', isIn('absent'));
    await host.client.call('protectVm', { params });
    await host.client.call('startVm', { params });
    expect((await host.until('kept', isIn('protected'))).shadowWanted).toBe(true);
    const kinds = (await host.events()).filter(({ id }) => id > after).map(({ kind }) => kind);
    expect(kinds.filter((kind) => kind === 'syncing')).toHaveLength(1);
  });

  it('is tried out on a copy', async () => {
    await using host = await TestHost.start();
    await declared(host);
    await untilAgentIsHeard();
    const report = await host.client.call('testFailover', { params });
    expect(report).toMatchObject({ ok: true, reason: null, agentAnswered: true });
    const event = await host.nextEvent('failover-test', { vm: 'kept', after: 0 });
    expect(event.facts).toMatchObject({ ok: true, epoch: report.epoch });
  });
});

describe('a VM that a host suspends', () => {
  it('goes on in the middle of a sentence, though the host is killed in between', async () => {
    await using host = await TestHost.start();
    await declared(host);
    await leaveNonce();
    await host.client.call('stopVm', { params, body: { termination: 'suspend' } });
    await host.end('SIGKILL');
    await host.startDaemon();
    const suspended = await host.until('kept', isIn('absent'));
    expect(suspended).toMatchObject({
      desired: 'stopped',
      saved: { suspended: { sizeBytes: expect.any(Number), problem: null }, snapshot: null },
    });
    expect(readdirSync(process.env.UNDERSTUDY_MEMORY_DIR ?? '')).toEqual([]);
    await host.client.call('startVm', { params });
    expect((await host.until('kept', isIn('protected'))).saved.suspended).toBeNull();
    await findNonce();
    expect((await host.events()).map(({ kind }) => kind)).toContain('resumed');
  });

  it('is neither lost nor doubled when its keeper is killed at random moments of it', async () => {
    await using host = await TestHost.start();
    await declared(host);
    await leaveNonce();
    for (let round = 0; round < 4; round += 1) {
      const after = await host.lastEventId();
      await host.client.call('stopVm', { params, body: { termination: 'suspend' } });
      await clock.sleep(Math.random() * 400);
      const found = RunDirectory.find('kept');
      // Not once it has ended: then there is only the state.
      if (found?.keeper === 'alive' && found.record?.shadow !== null)
        process.kill(found.record?.keeper.pid ?? 0, 'SIGKILL');
      await host.client.call('startVm', { params });
      await host.nextEvent('protected', { vm: 'kept', after });
      expect(RunDirectory.list()).toHaveLength(1);
    }
    await findNonce();
  });

  it('is not booted anew by itself when its state is damaged, but when that is discarded', async () => {
    await using host = await TestHost.start();
    await declared(host);
    await host.client.call('stopVm', { params, body: { termination: 'suspend' } });
    await host.until('kept', isIn('absent'));
    const header = join(host.stateDirectory, 'suspended/kept/header.json');
    writeFileSync(header, 'damage');
    await host.client.call('startVm', { params });
    const failed = await host.until('kept', ({ observed }) => observed.problem !== null);
    expect(failed.observed.problem).toMatchObject({ code: 'REPLICATION_STATE_DAMAGED' });
    expect(failed.saved.suspended?.problem).toMatchObject({ code: 'REPLICATION_STATE_DAMAGED' });
    expect(existsSync(header)).toBe(true);
    await vi.waitFor(() => host.client.call('startVm', { params, body: { discard: true } }), {
      timeout: 60_000,
    });
    await host.until('kept', isIn('protected'));
    expect(existsSync(header)).toBe(false);
  });
});

describe('a VM whose specification says that it leaves a snapshot', () => {
  it('does so when it is stopped, starts from it when it is told to, and takes it along when it is deleted', async () => {
    await using host = await TestHost.start();
    const body = { spec: `${spec}termination: snapshot\n`, directory: '/' };
    await host.client.call('declareVm', { body });
    await host.until('kept', isIn('protected'));
    await leaveNonce();
    await host.client.call('stopVm', { params });
    const stopped = await host.until('kept', isIn('absent'));
    expect(stopped.saved).toMatchObject({ suspended: null, snapshot: { problem: null } });
    await host.client.call('startVm', { params, body: { from: 'snapshot' } });
    await host.until('kept', isIn('protected'));
    await findNonce();
    await host.client.call('deleteVm', { params });
    const deleted = await host.nextEvent('deleted', { vm: 'kept', after: 0 });
    expect(deleted.facts).toMatchObject({ removed: ['snapshot'] });
    expect(existsSync(join(host.stateDirectory, 'snapshots/kept'))).toBe(false);
  });
});
