import { execFile, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../../src/base/clock.ts';
import { endProcess, isAlive } from '../../src/control/process-identity.ts';
import { KeptVm } from '../kit/kept-vm.ts';

const CLI = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
/** For all of memory to be there, on a busy machine. */
const WHOLE_MS = 60_000;

/** One guest for all of these, kept by a process of its own. */
let vm: KeptVm;
let keyFile: string;
const nonce = randomUUID();

beforeAll(async () => {
  vm = await KeptVm.start({ clients: 1, spec: { snapshots: { onShutdown: true } } });
  keyFile = join(vm.folder, 'key');
  writeFileSync(keyFile, '5e'.repeat(32));
  chmodSync(keyFile, 0o600);
  await vm.load.command('SET', 'nonce', nonce);
});
afterAll(() => vm?.[Symbol.asyncDispose]());

interface Answer {
  readonly code: number | null;
  // What a command prints is looked at field by field.
  readonly json: Record<string, unknown> & { readonly snapshots?: Record<string, unknown>[] };
}

/** `plant` runs in the keeper that the command starts, if it starts one. */
async function snapshot(words: readonly string[], { plant = '' } = {}): Promise<Answer> {
  const path = join(vm.folder, 'plant-of-command.mjs');
  writeFileSync(path, `if (process.argv[1]?.endsWith('keeper/main.ts')) {\n${plant}\n}\n`);
  const child = spawn(process.execPath, [CLI, 'snapshot', ...words, '--json'], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, NODE_OPTIONS: `--import ${path}` },
  });
  const code = new Promise<number | null>((resolve) => child.once('exit', resolve));
  const said = await text(child.stdout);
  return { code: await code, json: JSON.parse(said.trim().split('\n').at(-1) ?? '') };
}

/** The VM is killed with its keeper, and what is left is cleared away. */
async function kill(): Promise<void> {
  const { keeper, processes } = vm.record;
  await endProcess(keeper, { deadlineMs: 60_000, clock });
  for (const process of processes) await endProcess(process, { deadlineMs: 60_000, clock });
}

/** Memory comes only as the guest asks for it. */
const onDemandOnly = `
  const { Failpoints } = await import(${JSON.stringify(new URL('../../src/base/failpoint.ts', import.meta.url).href)});
  const hit = Failpoints.prototype.hit;
  Failpoints.prototype.hit = function (name) {
    return name === 'restore.background' ? new Promise(() => {}) : hit.call(this, name);
  };`;

describe('understudy snapshot', () => {
  it('creates encrypted files, lists them without the key, and verifies them with it', async () => {
    const created = await snapshot(['create', vm.name, '--key-file', keyFile]);
    expect(created).toMatchObject({ code: 0, json: { name: vm.name, sizeBytes: expect.any(Number) } });
    expect(readFileSync(String(created.json.path)).includes(nonce)).toBe(false);
    const { json } = await snapshot(['list', vm.name]);
    expect(json.snapshots).toMatchObject([{ vm: vm.name, isEncrypted: true, problem: null }]);
    expect((await snapshot(['verify', vm.name, '--key-file', keyFile])).code).toBe(0);
    const blind = await snapshot(['verify', vm.name]);
    expect(blind).toMatchObject({
      code: 1,
      json: { snapshots: [{ problem: { code: 'SNAPSHOT_KEY_WRONG' } }] },
    });
  });

  it('leaves nothing of one that was given up with Ctrl-C, and the VM protected', async () => {
    const [kept] = (await snapshot(['list', vm.name])).json.snapshots ?? [];
    const folder = dirname(String(kept?.path));
    const before = readdirSync(folder);
    const begun = async () => (await vm.kinds()).filter((kind) => kind === 'snapshotting').length;
    const begunBefore = await begun();
    const child = spawn(process.execPath, [CLI, 'snapshot', 'create', vm.name, '--json']);
    const ended = once(child, 'exit');
    await expect.poll(begun, { timeout: WHOLE_MS, interval: 10 }).toBeGreaterThan(begunBefore);
    child.kill('SIGINT');
    const said = await text(child.stdout);
    expect((await ended)[0], said).toBe(130);
    expect(JSON.parse(said)).toMatchObject({ error: { code: 'CLI_INTERRUPTED' } });
    expect(readdirSync(folder)).toEqual(before);
    expect((await vm.status()).phase).toBe('protected');
  });

  it('restores the newest one when the VM and its keeper were killed: the same guest', async () => {
    await expect(snapshot(['restore', vm.name, '--key-file', keyFile])).resolves.toMatchObject({
      code: 1,
      json: { error: { code: 'KEEPER_NAME_TAKEN' } },
    });
    const { token } = await vm.status();
    await kill();
    const restored = await snapshot(['restore', vm.name, '--key-file', keyFile, '--verify']);
    expect(restored).toMatchObject({ code: 0, json: { name: vm.name } });
    await vm.untilAnswered();
    expect(await vm.isSameGuest(), (await vm.kinds()).join(', ')).toBe(true);
    expect(await vm.load.command('GET', 'nonce')).toBe(nonce);
    expect((await vm.status()).token).toBeGreaterThan(token);
    await vm.until('protected');
    // It may be protected before the last page is there.
    await expect.poll(() => vm.kinds(), { timeout: WHOLE_MS }).toContain('memory-whole');
  });

  it('whose keeper is killed while memory is missing leaves nothing that is taken back', async () => {
    await kill();
    await snapshot(['restore', vm.name, '--key-file', keyFile], { plant: onDemandOnly });
    await vm.untilAnswered();
    expect(await vm.isSameGuest()).toBe(true);
    const { processes } = vm.record;
    expect(vm.record.acting).toBe(null);
    await vm.killKeeper();
    expect(vm.found?.orphan).toBe(undefined);
    // The next keeper of the same VM boots it: zeros in the place of memory would be no guest at all.
    await vm.startKeeper();
    expect(processes.map(isAlive)).toEqual([false]);
    await vm.untilAnswered();
    expect(await vm.isSameGuest()).toBe(false);
    expect(await vm.kinds()).not.toContain('taken-back');
  });

  it('prunes, and says what it removed', async () => {
    await vm.until('protected');
    const second = await snapshot(['create', vm.name]);
    const { json } = await snapshot(['prune', vm.name, '--keep', '1']);
    expect(json.removed).toHaveLength(1);
    expect((await snapshot(['list'])).json.snapshots).toMatchObject([{ path: second.json.path }]);
    rmSync(keyFile);
    expect((await snapshot(['prune', vm.name, '--keep', '1', '--key-file', keyFile])).json).toMatchObject({
      removed: [],
    });
  });

  it('lists the one that a VM has left because it was stopped, from its shadow', async () => {
    await promisify(execFile)(process.execPath, [CLI, 'stop', vm.name]);
    const [newest, before] = (await snapshot(['list', vm.name])).json.snapshots ?? [];
    expect(newest).toMatchObject({ reason: 'shutdown', problem: null });
    expect(before).toMatchObject({ reason: 'manual' });
    expect((await snapshot(['verify', vm.name, String(newest?.id)])).json.snapshots).toMatchObject([
      { ok: true },
    ]);
  });
});
