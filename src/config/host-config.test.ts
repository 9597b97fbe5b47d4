import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import type { z } from 'zod';
import type { ConfigError } from './config-error.ts';
import {
  changedKeys,
  environmentOf,
  hostConfigPlace,
  loadHostConfig,
  parseHostConfig,
} from './host-config.ts';
import { commentedHostConfig, HOST_CONFIG_EXAMPLE } from './host-config-example.ts';
import { hostConfigSchema } from './host-config-schema.ts';

const DOCUMENT = readFileSync(new URL('../../docs/host-configuration.md', import.meta.url), 'utf8');

const read = (text: string) => parseHostConfig(text, { source: 'host.yaml' });

function problems(text: string): string[] {
  try {
    read(text);
  } catch (thrown) {
    expect((thrown as ConfigError).code).toBe('CONFIG_INVALID');
    return (thrown as ConfigError).message.split('\n');
  }
  throw new Error('the configuration was accepted');
}

/** `socket.mode` and the like: what has no keys below it. */
function keysOf(value: unknown, path = ''): string[] {
  if (typeof value !== 'object' || value === null) return [path];
  return Object.entries(value).flatMap(([key, below]) => keysOf(below, path === '' ? key : `${path}.${key}`));
}

function keysOfSchema(schema: z.core.$ZodType, path = ''): string[] {
  const def = (schema as z.core.$ZodTypes)._zod.def;
  if (def.type === 'optional' || def.type === 'default' || def.type === 'prefault')
    return keysOfSchema(def.innerType, path);
  if (def.type !== 'object') return [path];
  return Object.entries(def.shape).flatMap(([key, below]) =>
    keysOfSchema(below as z.core.$ZodType, path === '' ? key : `${path}.${key}`),
  );
}

function documentedKeys(markdown: string): string[] {
  return [...markdown.matchAll(/^\| `([\w.]+)` \| (.+) \|$/gm)].map(([, key = '', cells = '']) => {
    expect(cells.split(' | '), key).toHaveLength(4);
    return key;
  });
}

describe('the keys of a host configuration', () => {
  const known = keysOfSchema(hostConfigSchema).sort();

  it('are those that docs/host-configuration.md explains', () => {
    expect(known.length).toBeGreaterThan(10);
    expect(documentedKeys(DOCUMENT).sort()).toEqual(known);
  });

  it('would be found undocumented, and documented ones found missing', () => {
    expect(documentedKeys(DOCUMENT.replace(/^\| `log\.level`.*\n/m, '')).sort()).not.toEqual(known);
    expect(documentedKeys(DOCUMENT.replace('`log.level`', '`log.depth`')).sort()).not.toEqual(known);
  });

  it('are all in the example, whose values are the defaults', () => {
    expect(keysOf(parse(HOST_CONFIG_EXAMPLE)).sort()).toEqual(known);
    const { listen, state, runDirectory, memoryDirectory, cacheDirectory, socket, telemetry, ...rest } =
      read(HOST_CONFIG_EXAMPLE);
    const { socket: defaultSocket, telemetry: defaultTelemetry, ...defaults } = read('');
    expect(rest).toEqual(defaults);
    expect(socket.mode).toBe(defaultSocket.mode);
    const { url, ca, credentials, store, ...keeping } = telemetry;
    expect({ ...keeping, store: 'sqlite' }).toEqual(defaultTelemetry);
    for (const value of [listen, state, runDirectory, memoryDirectory, cacheDirectory, url, ca, credentials])
      expect(value).toBeDefined();
    expect(store).toBe('victoriametrics');
  });

  it('say nothing in the file that is installed, which is the example without its signs', () => {
    const file = commentedHostConfig();
    expect(read(file)).toEqual(read(''));
    const [, ...paragraphs] = file.split('\n\n');
    expect(paragraphs.join('\n\n').replaceAll(/^#/gm, '')).toBe(HOST_CONFIG_EXAMPLE);
  });

  it('have the documented defaults', () => {
    const { events, reconcile } = read('');
    const defaultOf = (key: string) =>
      new RegExp(`^\\| \`${key}\` \\| .+? \\| (\\d+) \\|`, 'm').exec(DOCUMENT)?.[1];
    expect(defaultOf('events.retentionDays')).toBe(String(events.retentionDays));
    expect(defaultOf('events.retentionMax')).toBe(String(events.retentionMax));
    expect(defaultOf('reconcile.intervalMs')).toBe(String(reconcile.intervalMs));
  });
});

describe('a host configuration', () => {
  it('takes a mode with and without quotes for the same', () => {
    expect(read('socket: {mode: "0600"}').socket.mode).toBe(0o600);
    expect(read('socket: {mode: 0600}').socket.mode).toBe(0o600);
  });

  it('that is wrong is refused with every problem, its line and what was probably meant', () => {
    const text = [
      'state: var/lib',
      'sockets: {}',
      'socket: {mode: 0666, group: "a b"}',
      'log: {level: loud}',
      'events:',
      '  retentiondays: 3',
      '  retentionMax: 1',
      'listen: {address: here, certificate: /c}',
      '',
    ].join('\n');
    expect(problems(text)).toEqual([
      'host.yaml:1: state: expected an absolute path: a daemon has no folder that others could begin at',
      'host.yaml:2: sockets: unknown field (did you mean socket?)',
      'host.yaml:3: socket.group: no name of a group',
      'host.yaml:3: socket.mode: expected "0600" or "0660": who may open the socket may do everything',
      'host.yaml:4: log.level: expected one of debug, info, warn, error',
      'host.yaml:6: events.retentiondays: unknown field (did you mean retentionDays?)',
      'host.yaml:7: events.retentionMax: expected 1000 or more',
      'host.yaml:8: listen.address: expected address and port, e.g. 10.0.0.1:7443',
      'host.yaml:8: listen.key: is missing',
    ]);
  });

  it.each([
    '- a',
    'a: [',
    'log:',
    'state: /a\nstate: /b',
    'socket: {mode: 7}',
    'listen: {address: "a:99999"}',
  ])('is refused when it says %j', (text) => {
    expect(problems(text).join()).toMatch(/^host\.yaml:\d+: /);
  });

  it('is called so in messages', () => {
    expect(problems('7')).toEqual(['host.yaml:1: configuration: expected object, not 7']);
  });

  it('says only what the environment leaves open', () => {
    const config = read('runDirectory: /srv/run\nstate: /srv/state\nsocket: {path: /srv/s}');
    expect(environmentOf(config, { UNDERSTUDY_RUN_DIR: '/elsewhere' })).toEqual({
      UNDERSTUDY_STATE_DIR: '/srv/state',
      UNDERSTUDY_HOST_SOCKET: '/srv/s',
    });
    expect(environmentOf(read(''), {})).toEqual({});
  });

  it('that changes is told apart by what applies at once', () => {
    const before = read('');
    const after = read('log: {level: warn}\nevents: {retentionDays: 3}\nstate: /b\nkeepers: {start: direct}');
    expect(changedKeys(before, after)).toEqual({
      applied: ['log', 'events'],
      needRestart: ['state', 'keepers'],
    });
    expect(changedKeys(before, before)).toEqual({ applied: [], needRestart: [] });
  });
});

describe('where a host keeps series', () => {
  it('is a file of its own unless somebody says otherwise', () => {
    const [hour, day] = [3_600_000, 86_400_000];
    expect(read('').telemetry).toEqual({
      store: 'sqlite',
      retention: { '1s': day, '1m': 14 * day, '1h': 400 * day },
      maxBytes: 2 ** 31,
    });
    const text = 'telemetry: {retention: {1s: 2h, 1m: 2h}, maxBytes: 64MiB}';
    expect(read(text).telemetry).toMatchObject({
      retention: { '1s': 2 * hour, '1m': 2 * hour },
      maxBytes: 2 ** 26,
    });
  });

  it.each(['http://127.0.0.1:8428', 'http://[::1]:8428', 'https://metrics.example/under/a/path'])(
    'may be VictoriaMetrics at %s',
    (url) => {
      expect(read(`telemetry: {store: victoriametrics, url: "${url}"}`).telemetry.url).toBe(url);
    },
  );

  it.each<[string, string]>([
    ['store: influx', 'telemetry.store: expected one of sqlite, victoriametrics'],
    ['store: victoriametrics', 'telemetry.url: is missing'],
    ['url: "http://127.0.0.1:1"', 'telemetry.url: is for store: victoriametrics'],
    ['ca: /ca.crt', 'telemetry.ca: is for store: victoriametrics'],
    ['credentials: {kind: basic, file: /f}', 'telemetry.credentials: is for store: victoriametrics'],
    ['credentials: {kind: digest, file: /f}', 'telemetry.credentials.kind: expected one of bearer, basic'],
    ['retention: {1s: 1h}', 'telemetry.retention.1s: expected 2 hours to 20 years'],
    ['retention: {1s: 1 day}', 'telemetry.retention.1s: expected a time such as 36h or 14d'],
    ['retention: {1m: 3h}', 'telemetry.retention.1m: is shorter than that of 1s'],
    ['retention: {1h: 3d}', 'telemetry.retention.1h: is shorter than that of 1m'],
    ['retention: {2s: 1h}', 'telemetry.retention.2s: unknown field'],
    ['maxBytes: 1MiB', 'telemetry.maxBytes: expected 64 MiB to 1 TiB'],
    ['maxBytes: much', 'telemetry.maxBytes: "much" is no size such as 2GiB'],
  ])('is refused with its name when it says %s', (text, problem) => {
    expect(problems(`telemetry: {${text}}`)).toEqual([expect.stringContaining(`host.yaml:1: ${problem}`)]);
  });

  it.each([
    ['http://metrics.example:8428', 'expected https://'],
    ['http://localhost:8428', 'expected https://'],
    ['http://127.0.0.1.example', 'expected https://'],
    ['ftp://127.0.0.1', 'expected a URL such as'],
    ['metrics:8428', 'expected a URL such as'],
    ['https://user:secret@metrics.example', 'has credentials in it'],
    ['https://metrics.example/?a=b', 'expected an address and at most a path'],
  ])('is not asked for in the clear, or oddly, at %s', (url, problem) => {
    expect(problems(`telemetry: {store: victoriametrics, url: "${url}"}`)).toEqual([
      expect.stringContaining(`host.yaml:1: telemetry.url: ${problem}`),
    ]);
  });
});

describe('the file of a host configuration', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'us-hostconf-'));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it('is the one that is named, else that of the system for root, else none', () => {
    const env = { UNDERSTUDY_CONFIG: '/b.yaml' };
    expect(hostConfigPlace('/a.yaml', { env, isRoot: false })).toEqual({ path: '/a.yaml', named: true });
    expect(hostConfigPlace(undefined, { env, isRoot: false })).toEqual({ path: '/b.yaml', named: true });
    expect(hostConfigPlace(undefined, { env: {}, isRoot: true })).toEqual({
      path: '/etc/understudy/host.yaml',
      named: false,
    });
    expect(hostConfigPlace(undefined, { env: {}, isRoot: false })).toBeUndefined();
  });

  it('may be missing unless somebody named it', () => {
    const path = join(folder, 'none.yaml');
    expect(loadHostConfig({ path, named: false })).toEqual(read(''));
    expect(loadHostConfig(undefined)).toEqual(read(''));
    expect(() => loadHostConfig({ path, named: true })).toThrow(
      expect.objectContaining({ code: 'CONFIG_NOT_FOUND', message: expect.stringContaining(path) }),
    );
    expect(() => loadHostConfig({ path: folder, named: false })).toThrow(
      expect.objectContaining({ code: 'CONFIG_NOT_FOUND' }),
    );
  });

  it('is read', () => {
    const path = join(folder, 'host.yaml');
    writeFileSync(path, 'log: {level: debug}\n');
    expect(loadHostConfig({ path, named: true }).log.level).toBe('debug');
  });
});
