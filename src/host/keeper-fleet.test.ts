import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { systemClock as clock } from '../base/clock.ts';
import { controlSocketOf } from '../control/run-directory.ts';
import { KeeperFleet } from './keeper-fleet.ts';

interface Said {
  readonly id: number;
  readonly method: string;
  readonly trace?: string;
}

let folder: string;
let server: Server | undefined;
let said: Said[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-fleet-'));
  vi.stubEnv('UNDERSTUDY_RUN_DIR', folder);
  said = [];
});
afterEach(async () => {
  await new Promise((resolve) => (server === undefined ? resolve(undefined) : server.close(resolve)));
  server = undefined;
  rmSync(folder, { recursive: true, force: true });
  vi.unstubAllEnvs();
});

/** A keeper on the wire only: it answers as `answer` says, and hangs up after a refusal. */
async function keeperThat(answer: (request: Said) => object): Promise<void> {
  const path = controlSocketOf('a');
  mkdirSync(dirname(path), { recursive: true });
  server = createServer((socket) => {
    socket.on('error', () => {});
    createInterface({ input: socket }).on('line', (line) => {
      const request = JSON.parse(line) as Said;
      said.push(request);
      const told = answer(request);
      socket.write(`${JSON.stringify(told)}\n`);
      if ('error' in told) socket.end();
    });
  });
  await new Promise<void>((resolve) => server?.listen(path, resolve));
}

function fleet(): KeeperFleet {
  return new KeeperFleet({
    ...{
      startKeeper: async () => {},
      endDirectory: folder,
      stateDirectory: folder,
      clock,
      lastTaken: () => 0,
      onEvent: () => {},
      onSample: () => {},
      onChange: () => {},
    },
  });
}

const done = ({ id }: Said) => ({ id, ok: true, result: null });
const refusal = (code: string) => ({ id: null, ok: false, error: { code, message: 'no' } });

describe('a keeper that is asked on behalf of a request', () => {
  it('is told the trace', async () => {
    await keeperThat(done);
    using keepers = fleet();
    await keepers.promote('a', { trace: 'call-1' });
    await keepers.stop('a', { graceful: true, termination: null, trace: 'call-2' });
    expect(said.map(({ method, trace }) => [method, trace])).toEqual([
      ['promote', 'call-1'],
      ['stop', 'call-2'],
    ]);
  });

  it('is asked again without it when it is too old to know traces', async () => {
    await keeperThat((request) => ('trace' in request ? refusal('KEEPER_REQUEST_INVALID') : done(request)));
    using keepers = fleet();
    await keepers.promote('a', { trace: 'call-1' });
    expect(said.map(({ trace }) => trace)).toEqual(['call-1', undefined]);
  });

  it('is asked once when it refuses for another reason, or refuses what has no trace', async () => {
    await keeperThat(() => refusal('KEEPER_NOT_PROTECTED'));
    using keepers = fleet();
    const refused = { code: 'KEEPER_NOT_PROTECTED' };
    await expect(keepers.promote('a', { trace: 'call-1' })).rejects.toMatchObject(refused);
    expect(said).toHaveLength(1);
    await expect(keepers.promote('a')).rejects.toMatchObject(refused);
    expect(said).toHaveLength(2);
  });
});
