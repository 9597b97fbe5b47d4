import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock } from '../base/clock.ts';
import { MIB } from '../base/units.ts';
import { CompiledWriter } from './compiled-writer.ts';
import { openDirtyLog } from './dirty-log-choice.ts';
import { GuestMemory } from './guest-memory.ts';
import { countPages, mergeRuns } from './page-runs.ts';
import { PreloadChannel } from './preload-channel.ts';

let compiled: CompiledWriter;

beforeAll(async () => {
  compiled = await CompiledWriter.make();
});
afterAll(() => compiled[Symbol.dispose]());

/** An unmodified QEMU, stopped before its first instruction, that listens to commands on its standard input. */
function startQemu(memory: GuestMemory, channel: PreloadChannel) {
  const backend = `memory-backend-file,id=ram,size=${memory.sizeBytes},mem-path=${memory.path},share=on`;
  const machine = [
    '-accel',
    'tcg',
    '-machine',
    'q35,memory-backend=ram',
    '-object',
    backend,
    '-m',
    `${memory.sizeBytes / MIB}M`,
  ];
  const child = spawn(
    'qemu-system-x86_64',
    [...machine, '-nodefaults', '-display', 'none', '-monitor', 'stdio', '-S'],
    {
      stdio: ['pipe', 'pipe', 'inherit', channel.childFd],
      env: { ...process.env, ...channel.environment(memory.path, compiled.libraryPath) },
    },
  );
  channel.closeChildEnd();
  const { stdin, stdout } = child;
  if (stdin === null || stdout === null) throw new Error('QEMU has a standard input and output');
  onTestFinished(async () => {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  });
  let output = '';
  stdout.on('data', (data) => {
    output += data;
  });
  return {
    pid: child.pid,
    /** Runs a command of the monitor until `answer` is seen. */
    async tell(command: string, answer: string) {
      output = '';
      stdin.write(`${command}\n`);
      while (!output.includes(answer)) await once(stdout, 'data');
    },
  };
}

test('the scan of a real QEMU finds every page that its firmware changed', async () => {
  const directory = mkdtempSync(`/dev/shm/${marked('qemu-memory')}-`);
  onTestFinished(() => rmSync(directory, { recursive: true }));
  using memory = GuestMemory.create(join(directory, 'vm.ram'), 64 * MIB);
  using channel = new PreloadChannel();
  const qemu = startQemu(memory, channel);
  const hello = await channel.awaitHello({ deadlineMs: 20_000, clock: systemClock });
  expect(hello).toMatchObject({ pid: qemu.pid, lengthBytes: 64 * MIB, protection: { kind: 'ready' } });

  await qemu.tell('info status', 'VM status: paused');
  using scan = openDirtyLog({ memory, channel, method: 'auto' }).log;
  using compare = openDirtyLog({ memory, method: 'compare' }).log;
  expect(scan.method).toBe('pagemap-scan');
  expect(scan.collect()).toEqual([]);

  await qemu.tell('cont\ninfo status', 'VM status: running');
  while ((scan.peek(20) ?? 0) < 20) await delay(5);
  await qemu.tell('stop\ninfo status', 'VM status: paused');
  const [scanned, changed] = [scan.collect(), compare.collect()];
  expect(countPages(changed)).toBeGreaterThan(0);
  expect(mergeRuns(scanned, changed)).toEqual(scanned);
  expect(scan.collect()).toEqual([]);
});
