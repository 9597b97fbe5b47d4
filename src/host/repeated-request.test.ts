import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ask, type RawAnswer } from '../api/api-fixture.ts';

const HOST = fileURLToPath(new URL('../../test/kit/crashing-host.ts', import.meta.url));
const SPEC = `name: alpha\nmemory: 64MiB\nboot: {kernel: ${import.meta.filename}}\n`;

let folder: string;
let children: ChildProcess[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-repeat-'));
  children = [];
});
afterEach(async () => {
  for (const child of children) await killed(child);
  rmSync(folder, { recursive: true });
});

async function killed(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill('SIGKILL');
  await exited;
}

/** A host on the same state as the one before. */
async function startHost(moment: string): Promise<ChildProcess> {
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', HOST, folder, moment], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, UNDERSTUDY_RUN_DIR: join(folder, 'run') },
  });
  children.push(child);
  await once(child.stdout ?? process.stdin, 'data');
  return child;
}

function declare(): Promise<RawAnswer> {
  const body = JSON.stringify({ spec: SPEC, desired: 'stopped' });
  return ask(join(folder, 'host.sock'), {
    ...{ method: 'POST', path: '/v1/vms', body },
    headers: { 'idempotency-key': 'k1' },
  });
}

async function events(): Promise<string[]> {
  const { text } = await ask(join(folder, 'host.sock'), { path: '/v1/events' });
  return JSON.parse(text).events.map(({ kind }: { kind: string }) => kind);
}

/** Asks a host that dies of it, and then the next one the same. */
async function askTwice(moment: string): Promise<RawAnswer> {
  const first = await startHost(moment);
  const died = once(first, 'exit');
  await expect(declare()).rejects.toThrow(/socket hang up|ECONNRESET/);
  expect(await died).toEqual([null, 'SIGKILL']);
  await startHost('never');
  return await declare();
}

describe('a request with an Idempotency-Key that is repeated after its host was killed', () => {
  it.each([
    ['before its effect was committed: it is carried out', 'answered', undefined],
    ['after that, before it was answered: it gets the answer', 'committed', 'true'],
  ])('%s', async (_, moment, replayed) => {
    const answer = await askTwice(moment);
    expect([answer.status, answer.headers['idempotency-replayed']]).toEqual([201, replayed]);
    expect(JSON.parse(answer.text)).toMatchObject({ name: 'alpha', version: 1, desired: 'stopped' });
    expect(answer.headers).toMatchObject({ etag: '"1"', location: '/v1/vms/alpha' });
    expect(await events()).toEqual(
      // What the first host did is there once or not at all.
      moment === 'committed'
        ? ['host-started', 'declared', 'audit', 'host-started']
        : ['host-started', 'host-started', 'declared', 'audit'],
    );
  });

  it('would be refused because of its own effect if the two were written apart', async () => {
    const answer = await askTwice('apart');
    expect([answer.status, JSON.parse(answer.text).code]).toEqual([409, 'HOST_VM_EXISTS']);
  });
});
