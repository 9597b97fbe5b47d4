import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';
import { createInterface } from 'node:readline';
import { describe, expect, it, onTestFinished } from 'vitest';
import { Presence } from './presence.ts';

const PRESENT = `
  const { openPresence } = await import(${JSON.stringify(new URL('./presence.ts', import.meta.url).href)});
  console.log((await openPresence(['127.0.0.1', '127.0.0.2'])).port);
  setInterval(() => {}, 1000);`;

/** Nobody listens there. */
const REFUSING_HOST = '127.0.0.4';
const SILENT_HOST = '127.0.0.3';
const silent = ({ port, host }: { port: number; host: string }) => `
  const server = (await import('node:net')).createServer();
  server.listen({ host: '${host}', port: ${port}, backlog: 1 }, () => {
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

async function end(child: ChildProcess): Promise<void> {
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

async function startProcess() {
  const { child, port } = await run(PRESENT);
  return { child, at: { hosts: ['127.0.0.1', '127.0.0.2'], port } };
}

/** Nobody answers there, as where no host is, which an address that should be nobody's does not do in every network. */
async function startSilence({ port: wanted = 0, host = SILENT_HOST } = {}) {
  const { child, port } = await run(silent({ port: wanted, host }));
  child.kill('SIGSTOP');
  // Its kernel takes one more than the backlog, and drops what comes then.
  for (let count = 0; count < 2; count++) {
    const socket = connect({ host, port });
    onTestFinished(() => void socket.destroy());
    socket.on('error', () => {});
    await once(socket, 'connect');
  }
  return { hosts: [host], port };
}

describe('a process that shows that it lives', () => {
  it('is not gone while it runs or stands still, and is once it was killed', async () => {
    const { child, at } = await startProcess();
    const signal = AbortSignal.timeout(20_000);
    const present = new Presence(at);
    expect(await present.isGone(signal)).toBe(false);
    child.kill('SIGSTOP');
    expect(await present.isGone(signal)).toBe(false);
    await end(child);
    expect(await present.isGone(signal)).toBe(true);
    // For who never saw it as well.
    expect(await new Presence(at).isGone(signal)).toBe(true);
  });

  it('is known by the addresses that led to it, however many others there are that refuse or say nothing', async () => {
    const { child, at } = await startProcess();
    const { hosts: mute } = await startSilence(at);
    const present = new Presence({ ...at, hosts: [...mute, REFUSING_HOST, '127.0.0.2'] });
    await present.meet(AbortSignal.timeout(500));
    expect(await present.isGone(AbortSignal.timeout(20_000))).toBe(false);
    await end(child);
    expect(await present.isGone(AbortSignal.timeout(20_000))).toBe(true);
  });

  it('is not gone because addresses refuse that do not lead to it while others say nothing', async () => {
    const { child, at } = await startProcess();
    const hosts = ['127.0.0.2', REFUSING_HOST];
    const [seen, unseen] = [new Presence({ ...at, hosts }), new Presence({ ...at, hosts: [REFUSING_HOST] })];
    for (const presence of [seen, unseen]) await presence.meet(AbortSignal.timeout(20_000));
    // What cannot be reached any more says no more than one that stands still and takes nobody in.
    await end(child);
    await startSilence({ ...at, host: '127.0.0.2' });
    expect(await seen.isGone(AbortSignal.timeout(200))).toBe(false);
    expect(await unseen.isGone(AbortSignal.timeout(20_000))).toBe(false);
    // Of which nothing is known, not even that it was ever there (control).
    const control = new Presence({ ...at, hosts: [REFUSING_HOST] });
    expect(await control.isGone(AbortSignal.timeout(20_000))).toBe(true);
  });

  it('is not taken for gone when nobody answers, or no answer came in time', async () => {
    expect(await new Presence(await startSilence()).isGone(AbortSignal.timeout(200))).toBe(false);
    const { child, at } = await startProcess();
    await end(child);
    expect(await new Presence(at).isGone(AbortSignal.abort())).toBe(false);
  });
});
