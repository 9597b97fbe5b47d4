import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { jsonLogger, type LogLevel, logLevelFrom, processLogger } from './logger.ts';

function logInto(lines: string[], level: LogLevel = 'debug') {
  return jsonLogger(
    (line) => lines.push(line),
    () => 1_767_225_600_000,
    { level },
  );
}

function written(facts: Record<string, unknown>): string {
  const lines: string[] = [];
  logInto(lines).info('x', facts);
  expect(lines).toHaveLength(1);
  return lines[0] ?? '';
}

describe('a line of the log', () => {
  it('says when, how bad, what, and the facts', () => {
    const lines: string[] = [];
    const log = logInto(lines);
    log.info('promoted', { epoch: 7, trace: 'call-1' });
    log.error('a fault');
    expect(lines.every((line) => line.endsWith('}\n'))).toBe(true);
    expect(lines.map((line) => JSON.parse(line))).toEqual([
      { time: '2026-01-01T00:00:00.000Z', level: 'info', message: 'promoted', epoch: 7, trace: 'call-1' },
      { time: '2026-01-01T00:00:00.000Z', level: 'error', message: 'a fault' },
    ]);
  });

  it('keeps its own fields when a fact has the name of one', () => {
    const line = written({ message: 'other', time: 0, level: 'fatal' });
    expect(JSON.parse(line)).toMatchObject({
      message: 'x',
      level: 'info',
      message_: 'other',
      level_: 'fatal',
    });
    expect(line.match(/"message":/g)).toHaveLength(1);
  });

  it('is left out below the level', () => {
    const lines: string[] = [];
    const log = logInto(lines, 'warn');
    log.debug('a');
    log.info('b');
    log.warn('c');
    log.error('d');
    expect(lines.map((line) => JSON.parse(line).message)).toEqual(['c', 'd']);
  });

  it.each([
    [{}, 'info'],
    [{ UNDERSTUDY_LOG_LEVEL: '' }, 'info'],
    [{ UNDERSTUDY_LOG_LEVEL: 'debug' }, 'debug'],
    [{ UNDERSTUDY_LOG_LEVEL: 'error' }, 'error'],
    [{ UNDERSTUDY_LOG_LEVEL: 'loud' }, undefined],
    [{ UNDERSTUDY_LOG_LEVEL: 'toString' }, undefined],
  ])('has by %j the level %s', (env, level) => {
    expect(logLevelFrom(env)).toBe(level);
  });

  it('tells of a level that is none, and is written all the same', () => {
    const lines: string[] = [];
    const log = processLogger((line) => lines.push(line), Date.now, { UNDERSTUDY_LOG_LEVEL: 'loud' });
    log.info('a');
    expect(lines.map((line) => JSON.parse(line))).toMatchObject([
      { level: 'warn', given: 'loud' },
      { message: 'a' },
    ]);
  });

  it('is written whatever the facts are', () => {
    const circle: Record<string, unknown> = { name: 'a' };
    circle.self = circle;
    fc.assert(
      fc.property(fc.dictionary(fc.string(), fc.anything({ withBigInt: true, withDate: true })), (facts) => {
        expect(JSON.parse(written(facts))).toMatchObject({ message: 'x' });
      }),
    );
    expect(JSON.parse(written({ circle, size: 1n })).size).toBe('1');
  });
});

describe('a secret among the facts', () => {
  const secret = 'hunter2-7f3a9c';

  it.each<[string, Record<string, unknown>]>([
    ['a header', { headers: { authorization: `Bearer ${secret}`, accept: '*/*' } }],
    ['a header in capitals', { headers: { AUTHORIZATION: secret } }],
    ['a token', { token: secret }],
    ['the token of somebody', { user: { apiToken: secret, name: 'eve' } }],
    ['a password in a list', { accounts: [{ password: secret }, { password: secret }] }],
    ['a secret that is no text', { client_secret: { part: secret } }],
    ['a cookie', { 'set-cookie': [secret] }],
    ['a key', { tls: { private_key: secret, 'private-key': secret, privateKey: secret } }],
    ['what is quoted in a message', { error: `401 for "Authorization: Bearer ${secret}"` }],
    ['an object that tells itself', { error: { toJSON: () => ({ passphrase: secret }) } }],
    ['an error', { error: new Error(`Basic ${secret}`) }],
  ])('is not written: %s', (_, facts) => {
    expect(written(facts)).not.toContain(secret);
    expect(written(facts)).toContain('[redacted]');
  });

  it('is not written at any depth', () => {
    const nested = fc.integer({ min: 0, max: 20 }).map((depth) => {
      let facts: Record<string, unknown> = { password: secret };
      for (let level = 0; level < depth; level++) facts = level % 2 ? { inner: facts } : { list: [facts] };
      return facts;
    });
    fc.assert(fc.property(nested, (facts) => !written(facts).includes(secret)));
  });

  it('would be written under a name that says nothing: it is the name that is gone by', () => {
    expect(written({ note: secret })).toContain(secret);
    expect(JSON.parse(written({ tokens: 3, secretary: 'eve' }))).toMatchObject({
      tokens: 3,
      secretary: 'eve',
    });
  });
});
