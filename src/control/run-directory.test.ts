import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../base/clock.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { CgroupTree } from '../linux/cgroup.ts';
import { readEnd, writeEnd } from './keeper-end.ts';
import { identityOf, isAlive } from './process-identity.ts';
import { RunDirectory } from './run-directory.ts';

let folder: string;
const children: ChildProcess[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-run-'));
  process.env.UNDERSTUDY_RUN_DIR = join(folder, 'run');
  process.env.UNDERSTUDY_MEMORY_DIR = join(folder, 'memory');
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  delete process.env.UNDERSTUDY_RUN_DIR;
  delete process.env.UNDERSTUDY_MEMORY_DIR;
  rmSync(folder, { recursive: true, force: true });
});

function start(program: string, args: readonly string[]): ChildProcess & { readonly pid: number } {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  children.push(child);
  return child as ChildProcess & { readonly pid: number };
}

/** Another process that holds the VM `name`, with what it recorded, and the files that a keeper has. */
async function startHolder(name: string, recorded: object, inheritAs?: VmSpec): Promise<ChildProcess> {
  const code = `
    const { RunDirectory } = await import(${JSON.stringify(new URL('./run-directory.ts', import.meta.url).href)});
    const { systemClock } = await import(${JSON.stringify(new URL('../base/clock.ts', import.meta.url).href)});
    const { writeFileSync } = await import('node:fs');
    const directory = await RunDirectory.open(${JSON.stringify(name)}, { clock: systemClock, inheritAs: ${JSON.stringify(inheritAs)} });
    directory.record(${JSON.stringify(recorded)});
    writeFileSync(directory.controlSocket, '');
    writeFileSync(directory.memoryPath + '/us-1.ram', 'guest memory');
    console.log('ready');
    setInterval(() => {}, 1000);`;
  const child = start(process.execPath, ['--input-type=module', '-e', code]);
  if (child.stdout === null) throw new Error('a pipe was asked for');
  await once(createInterface({ input: child.stdout }), 'line');
  return child;
}

async function kill(child: ChildProcess): Promise<void> {
  child.kill('SIGKILL');
  await once(child, 'exit');
}

describe('a run directory', () => {
  it('is open to its user alone and leaves nothing behind', async () => {
    const directory = await RunDirectory.open('a', { clock });
    for (const path of [directory.path, directory.memoryPath])
      expect(statSync(path).mode & 0o777).toBe(0o700);
    expect(RunDirectory.list()).toMatchObject([{ name: 'a', keeper: 'alive', record: { failed: false } }]);
    directory.remove();
    directory.remove();
    expect(readdirSync(join(folder, 'run'))).toEqual([]);
    expect(readdirSync(join(folder, 'memory'))).toEqual([]);
  });

  it('lets other users through, and no further, where QEMU runs as one', async () => {
    using directory = await RunDirectory.open('a', { clock, othersMayPass: true });
    for (const path of [join(folder, 'run'), directory.path, directory.memoryPath]) {
      expect(statSync(path).mode & 0o777).toBe(0o711);
    }
    expect(statSync(join(directory.path, 'keeper.json')).mode & 0o777).toBe(0o600);
  });

  it('belongs to one keeper at a time', async () => {
    const holder = await startHolder('a', {});
    await expect(RunDirectory.open('a', { clock })).rejects.toMatchObject({
      code: 'KEEPER_NAME_TAKEN',
      facts: { keeperPid: holder.pid },
    });
    using _other = await RunDirectory.open('b', { clock });
    await kill(holder);
    using _again = await RunDirectory.open('a', { clock });
  });

  it('is not shared with another run directory over the same guest memory', async () => {
    await startHolder('a', {});
    process.env.UNDERSTUDY_RUN_DIR = join(folder, 'other-run');
    await expect(RunDirectory.open('a', { clock })).rejects.toMatchObject({ code: 'KEEPER_NAME_TAKEN' });
  });

  it('survives others that look whether it is locked while it is opened', async () => {
    (await RunDirectory.open('a', { clock })).leaveLogs();
    let looking = true;
    const look = async () => {
      while (looking) {
        RunDirectory.list();
        await new Promise(setImmediate);
      }
    };
    const looked = look();
    for (let n = 0; n < 20; n += 1) (await RunDirectory.open('a', { clock })).leaveLogs();
    looking = false;
    await looked;
  });

  it('is refused where others may write', async () => {
    mkdirSync(join(folder, 'memory', 'understudy-a'), { recursive: true, mode: 0o777 });
    chmodSync(join(folder, 'memory', 'understudy-a'), 0o777);
    await expect(RunDirectory.open('a', { clock })).rejects.toMatchObject({
      code: 'KEEPER_DIRECTORY_REFUSED',
    });
  });

  it('is refused where a link lies in its place, and what that points to stays as it was', async () => {
    const victim = join(folder, 'victim');
    mkdirSync(victim, { mode: 0o700 });
    for (const link of [join(folder, 'run', 'a'), join(folder, 'memory', 'understudy-a')]) {
      mkdirSync(dirname(link), { recursive: true, mode: 0o700 });
      symlinkSync(victim, link);
      await expect(RunDirectory.open('a', { clock, othersMayPass: true })).rejects.toMatchObject({
        code: 'KEEPER_DIRECTORY_REFUSED',
      });
      expect(statSync(victim).mode & 0o777).toBe(0o700);
      rmSync(link);
    }
  });

  it('kills what is recorded before anything else can happen', async () => {
    using directory = await RunDirectory.open('a', { clock });
    const { pid } = start('sleep', ['600']);
    directory.record({ processes: [pid] });
    directory.killProcesses();
    // The event loop does not get to run: only the kernel has to do its part.
    while (identityOf(pid) !== undefined);
  });

  it('keeps the logs of a VM that failed, and gives its memory and its name back', async () => {
    const failed = await RunDirectory.open('a', { clock });
    writeFileSync(failed.logPath, 'why');
    failed.leaveLogs();
    expect(RunDirectory.find('a')).toMatchObject({ keeper: 'lost', record: { failed: true } });
    expect(existsSync(failed.logPath)).toBe(true);
    expect(existsSync(failed.memoryPath)).toBe(false);
    expect(await RunDirectory.sweep('a', { clock })).toEqual({ kind: 'swept', endedPids: [] });
    expect(RunDirectory.list()).toEqual([]);
  });
});

describe('the token in a run directory', () => {
  it('goes on above what a killed keeper had written down, and above what a host says', async () => {
    const holder = await startHolder('a', { token: 7 });
    await kill(holder);
    const next = await RunDirectory.open('a', { clock, tokenAbove: 3 });
    expect(next.token).toBe(7);
    next.record({ token: 8 });
    next.leaveLogs();
    using after = await RunDirectory.open('a', { clock, tokenAbove: 20 });
    expect(after.token).toBe(20);
    expect(RunDirectory.find('a')?.record?.token).toBe(20);
  });

  it('goes on from what others know of the VM, and never goes back', async () => {
    const first = await RunDirectory.open('a', { clock });
    first.countTokensFrom(1);
    expect(first.token).toBe(0);
    first.countTokensFrom(7);
    expect(first.token).toBe(6);
    first.countTokensFrom(3);
    expect(first.token).toBe(6);
    expect(RunDirectory.find('a')?.record?.token).toBe(6);
    first.remove();
  });

  it('would begin anew where neither is known', async () => {
    const first = await RunDirectory.open('a', { clock });
    first.record({ token: 7 });
    first.remove();
    using next = await RunDirectory.open('a', { clock });
    expect(next.token).toBe(0);
  });
});

describe('how a keeper ended', () => {
  it('can be read by who comes later, and is nothing where it is damaged or was not written', () => {
    const path = join(folder, 'end.json');
    const end = { bootId: 'boot', reason: 'powered-off', token: 3 } as const;
    expect(readEnd(path)).toBeUndefined();
    writeEnd(path, end);
    expect(readEnd(path)).toEqual(end);
    writeEnd(path, { ...end, reason: 'failed' });
    expect(readEnd(path)).toEqual({ ...end, reason: 'failed' });
    expect(readdirSync(folder)).toEqual(['end.json']);
    for (const text of ['', '{"bootId":"boot"', '{"bootId":"boot","reason":"bored","token":3}']) {
      writeFileSync(path, text);
      expect(readEnd(path)).toBeUndefined();
    }
  });
});

describe('sweeping', () => {
  it('ends what a killed keeper left and removes its files', async () => {
    const leftover = start('sleep', ['1000']);
    const exited = once(leftover, 'exit');
    const holder = await startHolder('a', { processes: [leftover.pid] });
    await kill(holder);
    expect(RunDirectory.list()).toMatchObject([{ name: 'a', keeper: 'lost' }]);
    expect(await RunDirectory.sweep('a', { clock })).toEqual({ kind: 'swept', endedPids: [leftover.pid] });
    await exited;
    expect(readdirSync(join(folder, 'run'))).toEqual([]);
    expect(readdirSync(join(folder, 'memory'))).toEqual([]);
    expect(await RunDirectory.sweep('a', { clock })).toEqual({ kind: 'absent' });
  });

  it('touches nothing of a VM whose keeper lives', async () => {
    const kept = start('sleep', ['1000']);
    const holder = await startHolder('a', { processes: [kept.pid] });
    expect(await RunDirectory.sweep('a', { clock })).toEqual({ kind: 'alive' });
    for (const { pid } of [kept, holder]) expect(identityOf(pid ?? 0)).toBeDefined();
    expect(RunDirectory.find('a')).toMatchObject({
      keeper: 'alive',
      record: { processes: [{ pid: kept.pid }] },
    });
  });

  it('leaves a process alone that got the id of an ended one', async () => {
    const innocent = start('sleep', ['1000']);
    const holder = await startHolder('a', {});
    await kill(holder);
    const found = RunDirectory.find('a');
    const processes = [{ pid: innocent.pid, startTicks: 1 }];
    writeFileSync(join(folder, 'run', 'a', 'keeper.json'), JSON.stringify({ ...found?.record, processes }));
    expect(await RunDirectory.sweep('a', { clock })).toEqual({ kind: 'swept', endedPids: [] });
    expect(identityOf(innocent.pid)).toBeDefined();
  });

  it('finds a QEMU that its keeper had no time to write down, by the memory that it maps', async () => {
    const holder = await startHolder('a', {});
    const ram = join(folder, 'memory', 'understudy-a', 'us-2.ram');
    const backend = `memory-backend-file,id=ram,size=1M,mem-path=${ram},share=on`;
    const args = ['-machine', 'none', '-nodefaults', '-display', 'none', '-S', '-object', backend];
    const qemu = start('qemu-system-x86_64', [...args, '-qmp', 'stdio']);
    if (qemu.stdout === null) throw new Error('a pipe was asked for');
    await once(qemu.stdout, 'data'); // the greeting: by now its memory is mapped
    const exited = once(qemu, 'exit');
    await kill(holder);
    expect(await RunDirectory.sweep('a', { clock })).toEqual({ kind: 'swept', endedPids: [qemu.pid] });
    await exited;
  });

  it('removes recorded cgroups of ours and no other directory', async ({ skip }) => {
    const detected = CgroupTree.detect();
    if (detected.kind !== 'usable') return skip(`no cgroups here: ${detected.reason}`);
    const cgroup = detected.tree.create(`sweep-${process.pid}`);
    const foreign = join(folder, 'understudy', 'foreign');
    mkdirSync(foreign, { recursive: true });
    const holder = await startHolder('a', { cgroups: [cgroup.directory, foreign] });
    await kill(holder);
    await RunDirectory.sweep('a', { clock });
    expect(existsSync(cgroup.directory)).toBe(false);
    expect(existsSync(foreign)).toBe(true);
  });

  it('removes cgroups of the VM that its keeper had no time to write down, and those of no other', async ({
    skip,
  }) => {
    const detected = CgroupTree.detect();
    if (detected.kind !== 'usable') return skip(`no cgroups here: ${detected.reason}`);
    const name = `lost-${process.pid}`;
    const [ours, other] = [`${name}-3`, `${name}-3-1`].map((group) => detected.tree.create(group));
    try {
      using _directory = await RunDirectory.open(name, { clock });
      expect(existsSync(ours?.directory ?? '')).toBe(false);
      expect(existsSync(other?.directory ?? '')).toBe(true);
    } finally {
      for (const group of [ours, other]) await group?.remove({ clock });
    }
  });

  it('also happens when a keeper of the name starts again, and copes with a damaged record', async () => {
    const holder = await startHolder('a', {});
    await kill(holder);
    writeFileSync(join(folder, 'run', 'a', 'keeper.json'), '{"half');
    expect(RunDirectory.list()).toEqual([{ name: 'a', keeper: 'lost', record: undefined }]);
    using directory = await RunDirectory.open('a', { clock });
    expect(readdirSync(directory.memoryPath)).toEqual([]);
    expect(readdirSync(directory.path).sort()).toEqual(['keeper.json', 'lock']);
  });
});

describe('a QEMU that acted when its keeper was killed', () => {
  const spec = { name: 'a', memoryBytes: 1 } as VmSpec;
  let qemu: ChildProcess & { readonly pid: number };
  let standby: ChildProcess & { readonly pid: number };

  /** Kills a keeper of a VM with two processes; the first one acts, and stands still as the kernel has it do. */
  async function loseKeeper({ shadow = null as number | null } = {}): Promise<void> {
    qemu = start('sleep', ['1000']);
    standby = start('sleep', ['1000']);
    const processes = [qemu.pid, standby.pid];
    const acting = { instance: 1, pid: qemu.pid };
    const holder = await startHolder('a', { spec, processes, acting, shadow, committed: 17 });
    mkdirSync(join(folder, 'run/a/1'));
    await kill(holder);
    qemu.kill('SIGSTOP');
    while (RunDirectory.find('a')?.orphan === undefined && shadow === null) await clock.sleep(1);
  }

  it('is spared for the next keeper of the same specification, with its files and its memory', async () => {
    await loseKeeper();
    const exited = once(standby, 'exit');
    using directory = await RunDirectory.open('a', { clock, inheritAs: spec });
    await exited;
    expect(directory.heritage).toMatchObject({ kind: 'orphan', instance: 1, process: { pid: qemu.pid } });
    expect(directory).toMatchObject({ committed: 17, holdsHeritage: true });
    expect(identityOf(qemu.pid)).toBeDefined();
    expect(readdirSync(directory.path).sort()).toEqual(['1', 'keeper.json', 'lock']);
    expect(readdirSync(directory.memoryPath)).toEqual(['us-1.ram']);
    if (directory.heritage.kind !== 'orphan') throw new Error('see above');
    await directory.endOrphan(directory.heritage, clock);
    expect(identityOf(qemu.pid)).toBeUndefined();
    expect(readdirSync(directory.path).sort()).toEqual(['keeper.json', 'lock']);
    expect(readdirSync(directory.memoryPath)).toEqual(['us-1.ram']);
    expect(directory.holdsHeritage).toBe(false);
  });

  it('stays on record until it is ended: the next keeper may be killed as well', async () => {
    await loseKeeper();
    const next = await startHolder('a', {}, spec);
    await kill(next);
    expect(RunDirectory.find('a')?.orphan).toMatchObject({ instance: 1, process: { pid: qemu.pid } });
    using again = await RunDirectory.open('a', { clock, inheritAs: spec });
    expect(again).toMatchObject({ heritage: { kind: 'orphan' }, committed: 17 });
  });

  it('leaves the specification that its keeper was given, as long as it can be gone on from', async () => {
    const given = { text: 'name: a', source: '/etc/vms/a.yaml' };
    await loseKeeper();
    expect(RunDirectory.leftSpec('a')).toBeUndefined();
    writeFileSync(join(folder, 'run/a/spec.json'), JSON.stringify(given));
    expect(RunDirectory.leftSpec('a')).toEqual(given);
    {
      const directory = await RunDirectory.open('a', { clock, inheritAs: spec });
      expect(RunDirectory.leftSpec('a')).toEqual(given);
      directory.keepSpec({ ...given, text: 'name: a # again' });
      expect(RunDirectory.leftSpec('a')?.text).toBe('name: a # again');
      directory.leaveHeritage();
    }
    const exited = once(qemu, 'exit');
    qemu.kill('SIGKILL');
    await exited;
    expect(RunDirectory.leftSpec('a')).toBeUndefined();
    (await RunDirectory.open('a', { clock })).remove();
  });

  it('is ended where the next keeper goes on from a shadow, or with another specification, or a sweep', async () => {
    const ways = [
      { shadow: 2, way: () => RunDirectory.open('a', { clock, inheritAs: spec }) },
      { shadow: null, way: () => RunDirectory.open('a', { clock, inheritAs: { ...spec, memoryBytes: 2 } }) },
      { shadow: null, way: () => RunDirectory.sweep('a', { clock }) },
    ];
    for (const { shadow, way } of ways) {
      await loseKeeper({ shadow });
      const opened = await way();
      expect(identityOf(qemu.pid)).toBeUndefined();
      if (opened instanceof RunDirectory) opened.remove();
    }
  });
});

describe('the identity of a process', () => {
  it('is its id and start, and ends with it', async () => {
    const child = start('sleep', ['1000']);
    const identity = identityOf(child.pid);
    expect(identity && isAlive(identity)).toBe(true);
    await kill(child);
    expect(identity && isAlive(identity)).toBe(false);
    expect(identityOf(child.pid)).toBeUndefined();
  });
});
