import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { systemClock as clock } from '../base/clock.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import { RunDirectory } from '../control/run-directory.ts';
import type { AskedShadow } from './shadow-hello.ts';
import { ShadowLodging } from './shadow-lodging.ts';
import { twoHosts } from './site-fixture.ts';

const SPEC = 'name: one\nvcpus: 1\nmemory: 64MiB\nboot: {disk: {path: /none, format: raw, readOnly: true}}\n';

describe('room for the shadow of a VM of another host', () => {
  it('is not made at the expense of what is here while nobody can tell who acts as it', async () => {
    const root = mkdtempSync('/dev/shm/us-lodging-');
    onTestFinished(() => {
      vi.unstubAllEnvs();
      rmSync(root, { recursive: true });
    });
    vi.stubEnv('UNDERSTUDY_MEMORY_DIR', join(root, 'memory'));
    vi.stubEnv('UNDERSTUDY_RUN_DIR', join(root, 'run'));
    mkdirSync(join(root, 'memory'), { mode: 0o700 });
    const killed = await RunDirectory.open('one', { clock });
    const memory = join(killed.memoryPath, 'us-one-1.ram');
    mkdirSync(killed.memoryPath, { recursive: true });
    writeFileSync(memory, 'all that there is of a VM');
    killed.leaveHeritage();
    const { a } = await twoHosts(onTestFinished);
    const etcd = { ...a.lease.etcd, endpoints: ['https://127.0.0.1:1'] };
    const site = { ...a, lease: { ...a.lease, etcd } };
    const spec = parseVmSpec(SPEC, { source: 'one.yaml' });
    const asked = { spec, peer: 'b', hello: { token: 9, disks: [] } } as unknown as AskedShadow;
    const signal = new AbortController().signal;
    await expect(ShadowLodging.open(site, asked, { clock, signal })).rejects.toMatchObject({
      code: 'LEASE_STORE_AWAY',
    });
    expect(existsSync(memory)).toBe(true);
    // Whoever comes into the name clears it away (control).
    (await RunDirectory.open('one', { clock })).remove();
    expect(existsSync(memory)).toBe(false);
  });
});
