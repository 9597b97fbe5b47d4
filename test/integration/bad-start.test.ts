import { execFileSync, spawnSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ensureDemoGuest } from '../../guest/build.ts';
import { MIB } from '../../src/base/units.ts';
import { probeUserfaultfd } from '../../src/linux/userfaultfd.ts';
import { SmallTmpfs } from '../kit/small-tmpfs.ts';
import { TestVm } from '../kit/test-vm.ts';

const QEMU = '/usr/bin/qemu-system-x86_64';

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-bad-'));
  chmodSync(folder, 0o755);
});
afterEach(() => rmSync(folder, { recursive: true }));

function script(text: string): string {
  const path = join(folder, 'qemu');
  writeFileSync(path, `#!/bin/sh\n${text}\n`, { mode: 0o755 });
  return path;
}

function withCode(code: string, facts = {}) {
  return expect.objectContaining({ code, hint: expect.stringMatching(/\S/), ...facts });
}

describe('a VM is refused, with what to do,', () => {
  it('when QEMU is missing', async () => {
    const yaml = `qemu: {binary: ${folder}/none}`;
    await expect(TestVm.start({ clients: 0, yaml })).rejects.toEqual(withCode('QEMU_MISSING'));
  });

  it('when QEMU is too old', async () => {
    const yaml = `qemu: {binary: ${script('echo "QEMU emulator version 6.2.0 (Debian)"')}}`;
    await expect(TestVm.start({ clients: 0, yaml })).rejects.toEqual(withCode('QEMU_TOO_OLD'));
  });

  it('when QEMU does not start, in its own words', async () => {
    const binary = script(`[ "$1" = --version ] && exec ${QEMU} "$@"; echo "no luck today" >&2; exit 1`);
    await expect(TestVm.start({ clients: 0, yaml: `qemu: {binary: ${binary}}` })).rejects.toEqual(
      withCode('QEMU_START_FAILED', { message: expect.stringContaining('no luck today') }),
    );
  });

  it('when its kernel is gone', async () => {
    await expect(TestVm.start({ clients: 0, kernel: `${folder}/none` })).rejects.toEqual(
      withCode('QEMU_START_FAILED', { message: expect.stringContaining(`${folder}/none`) }),
    );
  });

  it('when the preload library is not loaded: without its handshake there is no protection', async () => {
    const binary = script(`unset LD_PRELOAD; exec ${QEMU} "$@"`);
    await expect(TestVm.start({ clients: 0, yaml: `qemu: {binary: ${binary}}` })).rejects.toEqual(
      withCode('MEMORY_NO_HANDSHAKE'),
    );
  });

  it('when there is too little memory, before anything is made there', async () => {
    using tmpfs = new SmallTmpfs(200 * MIB);
    await expect(TestVm.start({ clients: 0, memoryDirectory: tmpfs.path })).rejects.toEqual(
      withCode('MEMORY_NO_ROOM'),
    );
    expect(readdirSync(tmpfs.path)).toEqual([]);
  });

  it('when its network namespace is gone', async () => {
    const yaml = 'nics: [{uplink: {kind: tap, device: us-none, netns: us-none}}]';
    await expect(TestVm.start({ clients: 0, nics: yaml })).rejects.toEqual(withCode('NET_TAP_FAILED'));
  });

  it('when it holds what cannot be protected', async () => {
    const yaml = 'qemu: {extraArgs: [-device, virtio-balloon-pci]}';
    await expect(TestVm.start({ clients: 0, yaml })).rejects.toEqual(withCode('QEMU_UNPROTECTABLE'));
  });
});

describe('a start that is given up', () => {
  it('does not wait for a QEMU that hangs, and leaves nothing of it', async () => {
    const pidFile = join(folder, 'pid');
    const hangs = `[ "$1" = --version ] && exec ${QEMU} "$@"; echo $$ > ${pidFile}; exec sleep 600`;
    const controller = new AbortController();
    const starting = TestVm.start({
      clients: 0,
      yaml: `qemu: {binary: ${script(hangs)}}`,
      signal: controller.signal,
    });
    await vi.waitFor(() => expect(readFileSync(pidFile, 'utf8')).toMatch(/\n$/), { timeout: 20_000 });
    controller.abort(new Error('no longer wanted'));
    await expect(starting).rejects.toThrow('no longer wanted');
    expect(existsSync(`/proc/${readFileSync(pidFile, 'utf8').trim()}`)).toBe(false);
  });

  it('does not wait for the handshake', async () => {
    // The library is loaded into the shell, which maps no memory; the QEMU behind it answers and ends with it.
    const behind = `[ "$1" = --version ] && exec ${QEMU} "$@"; setpriv --pdeathsig KILL ${QEMU} "$@"; exit 1`;
    const controller = new AbortController();
    const starting = TestVm.start({
      clients: 0,
      yaml: `qemu: {binary: ${script(behind)}}`,
      signal: controller.signal,
    });
    const ended = expect(starting).rejects.toThrow('no longer wanted');
    await vi.waitFor(() => expect(filesBelowRun()).toContainEqual(expect.stringMatching(/qemu\/qmp$/)), {
      timeout: 20_000,
    });
    const log = filesBelowRun().find((path) => path.endsWith('/qmp.log')) ?? '';
    await vi.waitFor(() => expect(readFileSync(log, 'utf8')).toMatch(/"return"/), { timeout: 20_000 });
    controller.abort(new Error('no longer wanted'));
    await ended;
  });
});

/** While a TestVm starts or runs. */
function filesBelowRun(): string[] {
  const run = process.env.UNDERSTUDY_RUN_DIR ?? '';
  return existsSync(run)
    ? readdirSync(run, { recursive: true, encoding: 'utf8' }).map((name) => join(run, name))
    : [];
}

describe('a VM whose QEMU runs as another user than root', () => {
  it('is protected and taken over all the same', async () => {
    const guest = await ensureDemoGuest();
    // What QEMU opens by itself has to be open to that user; our cache is not.
    const [kernel, initrd] = [join(folder, 'kernel'), join(folder, 'initrd')];
    copyFileSync(guest.kernel, kernel);
    copyFileSync(guest.initrd, initrd);
    await using vm = await TestVm.start({ yaml: 'qemu: {user: nobody}', kernel, initrd });
    const nobody = Number(execFileSync('id', ['-u', 'nobody'], { encoding: 'utf8' }));
    const pid = vm.primaryPid;
    expect(readFileSync(`/proc/${pid}/status`, 'utf8')).toMatch(new RegExp(`^Uid:\\s+${nobody}\\s`, 'm'));
    const instance = join(process.env.UNDERSTUDY_RUN_DIR ?? '', vm.status.name, '1');
    const victim = join(folder, 'victim');
    writeFileSync(victim, '');
    // Else root would give whatever such a link points to to that user.
    for (const name of ['nic0', 'qemu.log', 'preload.so', 'qemu', '../2']) {
      const planted = spawnSync('ln', ['-sfT', victim, join(instance, name)], { uid: nobody });
      expect(planted.status).not.toBe(0);
    }
    expect(statSync(join(instance, 'qemu')).uid).toBe(nobody);
    // User-mode userfaultfd is enough for write protection: the log must not fall back to a slower one.
    const userfaultfd = probeUserfaultfd();
    if (userfaultfd.kind === 'supported' && userfaultfd.features.includes('WP_ASYNC'))
      expect(vm.keeper.status().dirtyLog).toBe('pagemap-scan');
    await vm.load.begin();
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    await promoted;
    await vm.untilProtected();
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
  });
});
