import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeSync } from 'node:fs';
import { basename, join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock } from '../base/clock.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { CompiledWriter } from './compiled-writer.ts';
import { openDirtyLog } from './dirty-log-choice.ts';
import { GuestMemory } from './guest-memory.ts';
import { MemoryWriter } from './memory-writer.ts';
import { PreloadChannel } from './preload-channel.ts';
import { ensurePreloadLibrary } from './preload-library.ts';

const PAGES = 5000;
const deadline = { deadlineMs: 20_000, clock: systemClock };

let compiled: CompiledWriter;
let directory: string;
let memory: GuestMemory;

beforeAll(async () => {
  compiled = await CompiledWriter.make();
});
afterAll(() => compiled[Symbol.dispose]());

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('preload')}-`);
  memory = GuestMemory.create(join(directory, 'vm.ram'), PAGES * PAGE_BYTES);
});
afterEach(() => {
  memory[Symbol.dispose]();
  rmSync(directory, { recursive: true });
});

function startWriter(
  channel: PreloadChannel,
  other: Partial<ConstructorParameters<typeof MemoryWriter>[0]> = {},
) {
  const { libraryPath, writerPath } = compiled;
  const { path: memoryPath, sizeBytes } = memory;
  return new MemoryWriter({ writerPath, libraryPath, memoryPath, sizeBytes, channel, ...other });
}

describe('the handshake', () => {
  test('tells who mapped guest memory and where, and hands over the userfaultfd', async () => {
    using channel = new PreloadChannel();
    await using writer = startWriter(channel);
    const hello = await channel.awaitHello(deadline);
    expect(hello).toMatchObject({ pid: writer.pid, lengthBytes: memory.sizeBytes, fileOffset: 0 });
    expect(hello.protection).toMatchObject({ kind: 'ready', userfaultfd: expect.any(Number) });
    expect(await channel.awaitHello(deadline)).toBe(hello);
  });

  test('works in a process of a user without privileges', async () => {
    chmodSync(directory, 0o755);
    chmodSync(memory.path, 0o666);
    using channel = new PreloadChannel();
    await using writer = startWriter(channel, { uid: 65_534 });
    await channel.awaitHello(deadline);
    using log = openDirtyLog({ memory, channel, method: 'pagemap-scan' }).log;
    await writer.do([{ kind: 'kernel-write', page: 12 }]);
    expect(log.collect()).toEqual([{ firstPage: 12, pageCount: 1 }]);
  });

  test('names the step and the errno when the memory file is not there', async () => {
    using channel = new PreloadChannel();
    const environment = channel.environment(join(directory, 'other.ram'), compiled.libraryPath);
    const child = spawn('true', [], {
      stdio: ['ignore', 'ignore', 'ignore', channel.childFd],
      env: environment,
    });
    const hello = await channel.awaitHello(deadline);
    expect(hello.protection).toEqual({ kind: 'refused', step: 'find the memory file', errnoName: 'ENOENT' });
    child.kill('SIGKILL');
  });

  test.each([
    ['is started without the library', async () => ({ libraryPath: undefined })],
    ['is linked statically', async () => ({ writerPath: compiled.compile('static-writer', ['-static']) })],
  ])('does not come when the program %s, and there is no protection', async (_, different) => {
    using channel = new PreloadChannel();
    await using _writer = startWriter(channel, await different());
    await expect(channel.awaitHello({ ...deadline, deadlineMs: 300 })).rejects.toMatchObject({
      code: 'MEMORY_NO_HANDSHAKE',
      hint: expect.stringContaining('statically'),
    });
  });

  test('is not waited for when the program has ended', async () => {
    using channel = new PreloadChannel();
    spawn('true', [], { stdio: ['ignore', 'ignore', 'ignore', channel.childFd] });
    await expect(channel.awaitHello({ ...deadline, deadlineMs: 600_000 })).rejects.toMatchObject({
      code: 'MEMORY_NO_HANDSHAKE',
    });
  });
});

describe('the channel', () => {
  test('keeps every discard while nobody asks for them, and holds nobody up', async () => {
    using channel = new PreloadChannel();
    await using writer = startWriter(channel);
    await channel.awaitHello(deadline);
    const pages = Array.from({ length: PAGES / 2 }, (_, index) => 2 * index);
    await writer.do(pages.map((page) => ({ kind: 'remove', page, pageCount: 1 })));
    expect(channel.takeDiscards().map(({ firstPage }) => firstPage)).toEqual(pages);
    expect(channel.takeDiscards()).toEqual([]);
  });

  test('does not hurt the program when its keeper is gone', async () => {
    const channel = new PreloadChannel();
    await using writer = startWriter(channel);
    await channel.awaitHello(deadline);
    channel[Symbol.dispose]();
    await writer.do([
      { kind: 'remove', page: 1, pageCount: 1 },
      { kind: 'write', page: 1, byte: 1 },
    ]);
  });

  test('refuses memory that is mapped a second time', async () => {
    using channel = new PreloadChannel();
    await using writer = startWriter(channel);
    await channel.awaitHello(deadline);
    using log = openDirtyLog({ memory, channel, method: 'pagemap-scan' }).log;
    await writer.do([{ kind: 'map-again' }]);
    expect(() => log.collect()).toThrow(expect.objectContaining({ code: 'MEMORY_MAPPED_TWICE' }));
  });

  const garbageMessage = fc.oneof(
    fc.uint8Array({ minLength: 1, maxLength: 100 }),
    fc.constantFrom(48, 5000, 50_000).map((length) => new Uint8Array(length)),
  );

  test('takes no garbage for a message, and trusts nothing after it', async () => {
    await fc.assert(
      fc.asyncProperty(garbageMessage, async (garbage) => {
        using channel = new PreloadChannel();
        writeSync(channel.childFd, garbage);
        await expect(channel.awaitHello(deadline)).rejects.toMatchObject({ code: 'MEMORY_CHANNEL_GARBLED' });
        expect(() => channel.takeDiscards()).toThrow(
          expect.objectContaining({ code: 'MEMORY_CHANNEL_GARBLED' }),
        );
      }),
    );
  });
});

test('children of the program inherit neither the library nor its variables nor its socket', async () => {
  using channel = new PreloadChannel();
  const environment = channel.environment(memory.path, compiled.libraryPath);
  const child = spawn('sh', ['-c', 'env; readlink /proc/self/fd/3 || echo no socket'], {
    stdio: ['ignore', 'pipe', 'inherit', channel.childFd],
    env: { ...process.env, ...environment, LD_PRELOAD: `libm.so.6:${environment.LD_PRELOAD} libdl.so.2` },
  });
  const output = (await child.stdout?.toArray())?.join('') ?? '';
  expect(output).toContain('LD_PRELOAD=libm.so.6:libdl.so.2\n');
  expect(output).toContain('no socket\n');
  expect(output).not.toMatch(/^UNDERSTUDY_(MEMORY|FD|KEEPER_\w+)=/m);
});

describe('a program whose keeper is killed', () => {
  /** Starts a shell that starts a program, kills the shell, and waits until the program is no longer what it was. */
  async function fateOf(end: string, program: string): Promise<string> {
    const variables = [
      ...[`UNDERSTUDY_KEEPER_END=${end}`, 'UNDERSTUDY_KEEPER_PID=$$', `LD_PRELOAD=${compiled.libraryPath}`],
      // Nobody listens: the handshake goes nowhere.
      ...[`UNDERSTUDY_MEMORY=${memory.path}`, 'UNDERSTUDY_FD=9'],
    ];
    const keeper = spawn('sh', ['-c', `${variables.join(' ')} ${program} <&3 & echo $!; read line`], {
      stdio: ['pipe', 'pipe', 'inherit', 'pipe'],
    });
    if (keeper.stdout === null) throw new Error('a pipe was asked for');
    const [line] = await once(keeper.stdout, 'data');
    const pid = Number(line);
    const name = basename(program.split(' ')[0] ?? '').slice(0, 15);
    // It waits for its input: whatever the library does at its start is done.
    while (readIfPossible(`/proc/${pid}/comm`).trim() !== name || stateOf(pid) !== 'S') await setImmediate();
    keeper.kill('SIGKILL');
    while ('SRD'.includes(stateOf(pid))) await setImmediate();
    const fate = stateOf(pid);
    if (fate === 'T') process.kill(pid, 'SIGKILL');
    return fate;
  }
  const stateOf = (pid: number) => /\) (.)/.exec(readIfPossible(`/proc/${pid}/stat`))?.[1] ?? 'gone';
  const writer = () => `${compiled.writerPath} ${memory.path} ${memory.sizeBytes}`;

  test('stands still where it is to be taken back', async () => {
    expect(await fateOf('stop', writer())).toBe('T');
  });

  test('ends where it has not mapped guest memory yet: nobody would find it', async () => {
    expect(await fateOf('stop', 'cat')).toMatch(/Z|X|gone/);
  });

  test('ends where nobody would take it back', async () => {
    expect(await fateOf('end', writer())).toMatch(/Z|X|gone/);
  });
});

function readIfPossible(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}

describe('the library', () => {
  test('is compiled once, by whoever comes first', async () => {
    const cacheDir = join(directory, 'cache');
    const paths = await Promise.all([1, 2].map(() => ensurePreloadLibrary({ cacheDir })));
    expect(new Set(paths).size).toBe(1);
    const { ino } = statSync(paths[0] ?? '');
    expect(statSync(await ensurePreloadLibrary({ cacheDir })).ino).toBe(ino);
    expect(readdirSync(cacheDir)).toHaveLength(1);
  });

  test('says what is missing when there is no compiler, or one that does not work', async () => {
    await expect(
      ensurePreloadLibrary({ cacheDir: directory, compiler: 'no-such-gcc' }),
    ).rejects.toMatchObject({
      code: 'MEMORY_COMPILER_MISSING',
    });
    await expect(ensurePreloadLibrary({ cacheDir: directory, compiler: 'false' })).rejects.toMatchObject({
      code: 'MEMORY_COMPILE_FAILED',
    });
  });

  test('says where its directory cannot be made', async () => {
    await expect(ensurePreloadLibrary({ cacheDir: '/proc/us-none' })).rejects.toMatchObject({
      code: 'MEMORY_CACHE_REFUSED',
    });
  });

  test('is not kept where the dynamic loader cannot take it from', async () => {
    await expect(ensurePreloadLibrary({ cacheDir: join(directory, 'a b') })).rejects.toMatchObject({
      code: 'MEMORY_LIBRARY_PATH',
    });
  });
});
