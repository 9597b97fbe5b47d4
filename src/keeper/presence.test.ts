import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';
import { createInterface } from 'node:readline';
import { describe, expect, it, onTestFinished } from 'vitest';
import { isGone } from './presence.ts';

const PRESENT = `
  const { openPresence } = await import(${JSON.stringify(new URL('./presence.ts', import.meta.url).href)});
  console.log((await openPresence(['127.0.0.1', '127.0.0.2'])).port);
  setInterval(() => {}, 1000);`;

const SILENT_HOST = '127.0.0.3';
const silent = (port: number) => `
  const server = (await import('node:net')).createServer();
  server.listen({ host: '${SILENT_HOST}', port: ${port}, backlog: 1 }, () => {
    console.log(server.address().port);
    setInterval(() => {}, 1000);
  });`;

async function run(program: string) {
  const child = spawn(process.execPath, ['--input-type=module', '--eval', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  const [line] = await once(createInterface({ input: child.stdout }), 'line');
  return { child, port: Number(line) };
}

async function startProcess() {
  const { child, port } = await run(PRESENT);
  return { child, at: { hosts: ['127.0.0.1', '127.0.0.2'], port } };
}

/** Nobody answers there, as where no host is, which an address that should be nobody's does not do in every network. */
async function startSilence({ port: wanted = 0 } = {}) {
  const { child, port } = await run(silent(wanted));
  child.kill('SIGSTOP');
  // Its kernel takes one more than the backlog, and drops what comes then.
  for (let count = 0; count < 2; count++) {
    const socket = connect({ host: SILENT_HOST, port });
    onTestFinished(() => void socket.destroy());
    socket.on('error', () => {});
    await once(socket, 'connect');
  }
  return { hosts: [SILENT_HOST], port };
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
    const { hosts } = await startSilence(at);
    expect(await isGone({ ...at, hosts: [...hosts, '127.0.0.2'] }, signal)).toBe(true);
  });

  it('is not taken for gone when nobody answers, or no answer came in time', async () => {
    expect(await isGone(await startSilence(), AbortSignal.timeout(200))).toBe(false);
    const { child, at } = await startProcess();
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
    expect(await isGone(at, AbortSignal.abort())).toBe(false);
  });
});
