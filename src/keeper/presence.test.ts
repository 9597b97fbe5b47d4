import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { describe, expect, it, onTestFinished } from 'vitest';
import { isGone } from './presence.ts';

const PRESENT = `
  const { openPresence } = await import(${JSON.stringify(new URL('./presence.ts', import.meta.url).href)});
  console.log((await openPresence(['127.0.0.1', '127.0.0.2'])).port);
  setInterval(() => {}, 1000);`;

/** Of the range for documentation: no host has it. */
const NOBODY = '192.0.2.1';

async function startProcess() {
  const child = spawn(process.execPath, ['--input-type=module', '--eval', PRESENT], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  const [line] = await once(createInterface({ input: child.stdout }), 'line');
  return { child, at: { hosts: ['127.0.0.1', '127.0.0.2'], port: Number(line) } };
}

describe('a process that shows that it lives', () => {
  it('is not gone while it runs or stands still, and is once it was killed', async () => {
    const { child, at } = await startProcess();
    const signal = AbortSignal.timeout(20_000);
    expect(await isGone(at, signal)).toBe(false);
    child.kill('SIGSTOP');
    expect(await isGone(at, signal)).toBe(false);
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
    expect(await isGone(at, signal)).toBe(true);
    // One way to it may lead nowhere.
    expect(await isGone({ ...at, hosts: [NOBODY, '127.0.0.2'] }, signal)).toBe(true);
  });

  it('is not taken for gone when nobody answers, or no answer came in time', async () => {
    expect(await isGone({ hosts: [NOBODY], port: 9 }, AbortSignal.timeout(200))).toBe(false);
    const { child, at } = await startProcess();
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
    expect(await isGone(at, AbortSignal.abort())).toBe(false);
  });
});
