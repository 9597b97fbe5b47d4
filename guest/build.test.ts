import { execFile } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { type DemoGuest, ensureDemoGuest } from './build.ts';
import { sha256 } from './debian-packages.ts';

let shared: DemoGuest;
const folder = mkdtempSync(join(tmpdir(), 'build-test-'));
const aptCalled = join(folder, 'apt-called');

beforeAll(async () => {
  shared = await ensureDemoGuest();
  mkdirSync(join(folder, 'bin'));
  writeFileSync(
    join(folder, 'bin/apt-get'),
    `#!/bin/sh\n: > ${aptCalled}\necho "no network" >&2\nexit 100\n`,
  );
  chmodSync(join(folder, 'bin/apt-get'), 0o755);
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(aptCalled, { force: true });
});
afterAll(() => rmSync(folder, { recursive: true }));

/** A cache that holds the packages and nothing else, on a machine whose apt reaches nothing. */
function offlineCache(): string {
  const cacheDir = mkdtempSync(join(folder, 'cache-'));
  const [from, to] = [dirname(dirname(shared.kernel)), join(cacheDir, 'guest')].map((path) =>
    join(path, 'packages'),
  );
  mkdirSync(to as string, { recursive: true });
  for (const name of readdirSync(from as string))
    linkSync(join(from as string, name), join(to as string, name));
  vi.stubEnv('PATH', `${join(folder, 'bin')}:${process.env.PATH}`);
  return cacheDir;
}

const outputs = (guest: DemoGuest) => [guest.kernel, guest.initrd, guest.probeInitrd];
const checksums = (guest: DemoGuest) => outputs(guest).map((path) => sha256(readFileSync(path)));

describe('building the demo guest', () => {
  it('says what it was made from', () => {
    expect(shared.kernelRelease).toMatch(/^\d+\.\d+\.\d+-\d+-cloud-amd64$/);
    expect(shared.redisVersion).toMatch(/^7\.\d+\.\d+$/);
    expect(shared.packages).toHaveProperty(['redis-tools'], expect.stringContaining(shared.redisVersion));
    expect(shared.packages).toHaveProperty([`linux-image-${shared.kernelRelease}`]);
  });

  it('gives the same bytes again, from the packages in the cache, without the network', async () => {
    const cacheDir = offlineCache();
    const again = await ensureDemoGuest({ cacheDir });
    expect(checksums(again)).toEqual(checksums(shared));

    const steps: string[] = [];
    await ensureDemoGuest({ cacheDir, onProgress: (step) => steps.push(step) });
    expect(steps).toEqual([]);
    expect(existsSync(aptCalled)).toBe(false);
  });

  it('repairs a damaged file, and removes what a killed builder left', async () => {
    const cacheDir = offlineCache();
    const folderOfGuest = join(cacheDir, 'guest', basename(dirname(shared.kernel)));
    mkdirSync(folderOfGuest);
    mkdirSync(join(cacheDir, 'guest/building-killed/root'), { recursive: true });
    for (const path of outputs(shared)) copyFileSync(path, join(folderOfGuest, basename(path)));
    const initrd = readFileSync(shared.initrd);
    initrd.writeUInt8(initrd.readUInt8(1000) ^ 1, 1000);
    writeFileSync(join(folderOfGuest, basename(shared.initrd)), initrd);
    linkSync(join(dirname(shared.kernel), 'manifest.json'), join(folderOfGuest, 'manifest.json'));

    expect(checksums(await ensureDemoGuest({ cacheDir }))).toEqual(checksums(shared));
    expect(readdirSync(join(cacheDir, 'guest')).sort()).toEqual(
      [basename(folderOfGuest), 'lock', 'packages'].sort(),
    );
  });

  it('happens once when several processes ask at the same time', async () => {
    const env = { ...process.env, UNDERSTUDY_CACHE: offlineCache() };
    const builder = join(import.meta.dirname, 'build.ts');
    const runs = await Promise.all(
      [1, 2, 3].map(() => promisify(execFile)(process.execPath, [builder], { env })),
    );
    expect(runs.filter(({ stderr }) => stderr.includes('Assembling'))).toHaveLength(1);
    expect(new Set(runs.map(({ stdout }) => stdout)).size).toBe(1);
  });

  it('fails clearly when a damaged package cannot be fetched again', async () => {
    const cacheDir = offlineCache();
    const packages = join(cacheDir, 'guest/packages');
    const name = readdirSync(packages).find((file) => file.startsWith('busybox')) ?? '';
    rmSync(join(packages, name));
    writeFileSync(join(packages, name), 'damaged');
    await expect(ensureDemoGuest({ cacheDir })).rejects.toMatchObject({
      code: 'GUEST_DOWNLOAD_FAILED',
      message: expect.stringMatching(/busybox-static: no network$/),
      hint: expect.stringContaining('apt-get update'),
    });
    expect(readdirSync(join(cacheDir, 'guest')).sort()).toEqual(['lock', 'packages']);
  });

  it('is given up at once, with what it has started, and goes on from what it had fetched', async () => {
    const cacheDir = offlineCache();
    const packages = join(cacheDir, 'guest/packages');
    const lost = readdirSync(packages).find((file) => file.startsWith('busybox')) ?? '';
    rmSync(join(packages, lost));
    const pidFile = join(folder, 'apt-pid');
    const tools = mkdtempSync(join(folder, 'tools-'));
    writeFileSync(join(tools, 'apt-get'), `#!/bin/sh\necho $$ > ${pidFile}\nexec sleep 600\n`);
    chmodSync(join(tools, 'apt-get'), 0o755);
    vi.stubEnv('PATH', `${tools}:${process.env.PATH}`);
    const controller = new AbortController();
    const building = ensureDemoGuest({ cacheDir, signal: controller.signal });
    await vi.waitFor(() => expect(readFileSync(pidFile, 'utf8')).toMatch(/\n$/), { timeout: 20_000 });
    controller.abort(new Error('no longer wanted'));
    await expect(building).rejects.toThrow('no longer wanted');
    expect(existsSync(`/proc/${readFileSync(pidFile, 'utf8').trim()}`)).toBe(false);
    expect(readdirSync(join(cacheDir, 'guest')).sort()).toEqual(['lock', 'packages']);
    expect(readdirSync(packages)).not.toContain('arriving');

    linkSync(join(dirname(dirname(shared.kernel)), 'packages', lost), join(packages, lost));
    vi.stubEnv('PATH', `${join(folder, 'bin')}:${process.env.PATH}`);
    expect(checksums(await ensureDemoGuest({ cacheDir }))).toEqual(checksums(shared));
  });

  it('names the package of a tool that is not installed', async () => {
    vi.stubEnv('PATH', join(folder, 'nothing'));
    await expect(ensureDemoGuest({ cacheDir: join(folder, 'other') })).rejects.toMatchObject({
      code: 'GUEST_TOOL_MISSING',
      hint: 'Install it with: apt-get install gcc libc6-dev',
    });
  });

  it('says which folder cannot be written', async () => {
    writeFileSync(join(folder, 'file'), '');
    // In /proc nobody can make anything, and Node's own recursive mkdir would try for ever.
    for (const cacheDir of [join(folder, 'file'), '/proc/us-none'])
      await expect(ensureDemoGuest({ cacheDir })).rejects.toMatchObject({
        code: 'GUEST_CACHE_UNWRITABLE',
        hint: expect.stringContaining('UNDERSTUDY_CACHE'),
      });
  });
});
