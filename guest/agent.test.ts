import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const LINE_BYTES_MAX = 4096;
const folder = mkdtempSync(join(tmpdir(), 'agent-test-'));
let agent: ChildProcess;
let output: AsyncIterator<Buffer>;
let pending = '';
let syncs = 0;

beforeAll(() => {
  const program = join(folder, 'agent');
  const checks = ['-fsanitize=address,undefined', '-fno-sanitize-recover=all'];
  execFileSync('gcc', ['-g', ...checks, '-o', program, join(import.meta.dirname, 'agent.c')]);
  // Without capabilities: whatever it is told here, it must not set this machine's clock.
  agent = spawn('setpriv', ['--bounding-set=-all', '--inh-caps=-all', '--no-new-privs', program, '-'], {
    env: { ...process.env, ASAN_OPTIONS: 'detect_leaks=0' },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  output = (agent.stdout as Readable)[Symbol.asyncIterator]();
});
afterAll(async () => {
  const ended = agent.exitCode === null && agent.signalCode === null ? once(agent, 'exit') : undefined;
  agent.stdin?.end();
  await ended;
  rmSync(folder, { recursive: true });
});

/** Sends bytes, then a sync, and returns the answers that came before the sync's. */
async function answersTo(...chunks: (string | Uint8Array)[]): Promise<unknown[]> {
  syncs++;
  for (const chunk of chunks) agent.stdin?.write(chunk);
  agent.stdin?.write(`\xff{"execute": "guest-sync-delimited", "arguments": {"id": ${syncs}}}\n`, 'latin1');
  const end = `\xff{"return": ${syncs}}\n`;
  while (!pending.endsWith(end)) {
    const next = await output.next();
    if (next.done) throw new Error('the agent ended');
    pending += next.value.toString('latin1');
  }
  const lines = pending.slice(0, -end.length).split('\n').slice(0, -1);
  pending = '';
  return lines.map((line) => JSON.parse(line));
}

const failed = (desc: string, kind = 'GenericError') => ({ error: { class: kind, desc } });

describe('the agent', () => {
  it('answers each request on a line of its own', async () => {
    expect(
      await answersTo('{"execute": "guest-ping"}\n{"execute":"guest-sync","arguments":{"id":-7}}\n'),
    ).toEqual([{ return: {} }, { return: -7 }]);
  });

  it('tells the time and what it can do', async () => {
    const [time, info] = (await answersTo(
      '{"execute":"guest-get-time"}\n{"execute":"guest-info","arguments":{}}\n',
    )) as [{ return: number }, { return: { supported_commands: { name: string }[] } }];
    expect(Math.abs(time.return / 1e6 - Date.now())).toBeLessThan(60_000);
    expect(info.return.supported_commands.map(({ name }) => name).sort()).toEqual([
      'guest-get-time',
      'guest-info',
      'guest-ping',
      'guest-set-time',
      'guest-shutdown',
      'guest-sync',
      'guest-sync-delimited',
    ]);
  });

  it.each([
    [
      'a command it does not know',
      '{"execute":"guest-x"}',
      failed('The command guest-x has not been found', 'CommandNotFound'),
    ],
    [
      'an endless command name',
      `{"execute":"${'x'.repeat(999)}"}`,
      failed('The command ... has not been found', 'CommandNotFound'),
    ],
    ['a request without a command', '{"arguments":{}}', failed("QMP input lacks member 'execute'")],
    ['a missing argument', '{"execute":"guest-sync"}', failed('An integer argument is missing')],
    [
      'a number that does not fit',
      '{"execute":"guest-sync","arguments":{"id":9223372036854775808}}',
      failed('An integer argument is missing'),
    ],
    [
      'a time before 1970',
      '{"execute":"guest-set-time","arguments":{"time":-1}}',
      failed('The time cannot be set'),
    ],
    [
      'to power off a machine that is not its guest',
      '{"execute":"guest-shutdown"}',
      failed('The guest cannot be powered off'),
    ],
    ['two objects on a line', '{} {}', failed('Invalid JSON syntax')],
    ['a line that is too long', ' '.repeat(LINE_BYTES_MAX + 1), failed('The request is too long')],
    ['a tower of brackets', '['.repeat(LINE_BYTES_MAX), failed('Invalid JSON syntax')],
    ['a zero byte', '{"execute":"guest-ping"}\0', failed('Invalid JSON syntax')],
  ])('refuses %s', async (_, line, error) => {
    expect(await answersTo(`${line}\n`)).toEqual([error]);
  });

  it('says it cannot where it may not set the time', async () => {
    const request = '{"execute":"guest-set-time","arguments":{"time":1000000000000000000}}\n';
    expect(await answersTo(request)).toEqual([failed('The time cannot be set')]);
  });

  it('forgets half a request when the host begins anew', async () => {
    expect(await answersTo('{"execute": "guest-pi')).toEqual([]);
  });

  it('reads a request however it is cut into pieces', async () => {
    const request =
      '{ "id": [1.5e3, null, {"a": "\\u00e9\\n"}], "execute": "guest-sync", "arguments": {"x": {}, "id": 42} }\n';
    const cuts = fc.array(fc.nat({ max: request.length }), { maxLength: 6 });
    await fc.assert(
      fc.asyncProperty(cuts, async (places) => {
        const ends = [...places.sort((a, b) => a - b), request.length];
        const pieces = ends.map((end, index) => request.slice(ends[index - 1] ?? 0, end));
        expect(await answersTo(...pieces)).toEqual([{ return: 42 }]);
      }),
    );
  });

  it('lives through any JSON and any garbage', async () => {
    const valid = fc.jsonValue().map((value) => JSON.stringify({ execute: 'guest-ping', value }));
    const garbage = fc.oneof(
      fc.uint8Array({ maxLength: 300 }),
      valid.map((text) => Buffer.from(text)),
    );
    const broken = fc.tuple(valid, fc.nat(), fc.nat({ max: 255 })).map(([text, at, byte]) => {
      const bytes = Buffer.from(text);
      bytes[at % bytes.length] = byte;
      return bytes;
    });
    await fc.assert(
      fc.asyncProperty(fc.array(fc.oneof(garbage, broken), { maxLength: 5 }), async (lines) => {
        for (const answer of await answersTo(...lines.flatMap((line) => [line, '\n']))) {
          expect(Object.keys(answer as object)).toHaveLength(1);
        }
      }),
      { numRuns: 300 },
    );
  });

  it('accepts every JSON value that is not too deep', async () => {
    const shallow = fc.jsonValue({ maxDepth: 8 });
    await fc.assert(
      fc.asyncProperty(shallow, async (value) => {
        const request = JSON.stringify({ execute: 'guest-ping', value });
        fc.pre(Buffer.byteLength(request) <= LINE_BYTES_MAX);
        expect(await answersTo(`${request}\n`)).toEqual([{ return: {} }]);
      }),
    );
  });
});
