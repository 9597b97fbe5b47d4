import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { messageOf } from '../base/errors.ts';
import { ConfigError } from './config-error.ts';
import { type HostConfig, hostConfigSchema } from './host-config-schema.ts';
import { parseYamlText } from './yaml-text.ts';

type Env = Readonly<Record<string, string | undefined>>;

const DEFAULT_PATH = '/etc/understudy/host.yaml';

/** Where the configuration of a host lies, and whether it has to be there. */
export interface HostConfigPlace {
  readonly path: string;
  /** Somebody named it: then it is an error when it is missing. */
  readonly named: boolean;
}

/**
 * `given` (an option), else `$UNDERSTUDY_CONFIG`, else /etc/understudy/host.yaml for root. Undefined for other users
 * who name none: what root's daemon is told does not concern what they run.
 */
export function hostConfigPlace(
  given: string | undefined,
  { env = process.env, isRoot = process.geteuid?.() === 0 }: { env?: Env; isRoot?: boolean } = {},
): HostConfigPlace | undefined {
  const named = given || env.UNDERSTUDY_CONFIG;
  if (named) return { path: resolve(named), named: true };
  return isRoot ? { path: DEFAULT_PATH, named: false } : undefined;
}

/**
 * The configuration that applies; defaults where there is no file.
 * @throws {ConfigError} CONFIG_NOT_FOUND, CONFIG_INVALID
 */
export function loadHostConfig(place: HostConfigPlace | undefined): HostConfig {
  if (place === undefined) return hostConfigSchema.parse({});
  let text: string;
  try {
    text = readFileSync(place.path, 'utf8');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT' && !place.named) return hostConfigSchema.parse({});
    throw new ConfigError(
      'CONFIG_NOT_FOUND',
      `cannot read the configuration ${place.path}: ${messageOf(cause)}`,
      {
        hint: 'Give the path of a YAML file with --config or UNDERSTUDY_CONFIG; `understudy host --help` shows one.',
        facts: { path: place.path },
        cause,
      },
    );
  }
  return parseHostConfig(text, { source: place.path });
}

/** @throws {ConfigError} CONFIG_INVALID, with all problems and their lines */
export function parseHostConfig(text: string, { source }: { source: string }): HostConfig {
  return parseYamlText(text, hostConfigSchema, { source, whole: 'configuration', nothing: {} }).value;
}

const DIRECTORIES = {
  state: 'UNDERSTUDY_STATE_DIR',
  runDirectory: 'UNDERSTUDY_RUN_DIR',
  memoryDirectory: 'UNDERSTUDY_MEMORY_DIR',
  cacheDirectory: 'UNDERSTUDY_CACHE',
} as const;

/**
 * Variables that say what the configuration says, for those that are not set: the environment wins over the file.
 * Keepers inherit them.
 */
export function environmentOf(config: HostConfig, env: Env): Record<string, string> {
  const wanted = [
    ...Object.entries(DIRECTORIES).map(([key, name]) => [name, config[key as keyof typeof DIRECTORIES]]),
    ['UNDERSTUDY_HOST_SOCKET', config.socket.path],
  ] as const;
  return Object.fromEntries(
    wanted.flatMap(([name, value]) =>
      name === undefined || value === undefined || env[name] ? [] : [[name, value]],
    ),
  );
}

/** What a running daemon takes over when it is told to read its configuration again. */
const CHANGEABLE: readonly (keyof HostConfig)[] = ['log', 'events', 'reconcile'];

/** Keys that differ, by whether they apply at once. */
export function changedKeys(
  before: HostConfig,
  after: HostConfig,
): { readonly applied: readonly string[]; readonly needRestart: readonly string[] } {
  const keys = Object.keys(hostConfigSchema.shape) as (keyof HostConfig)[];
  const changed = keys.filter((key) => !isDeepStrictEqual(before[key], after[key]));
  return {
    applied: changed.filter((key) => CHANGEABLE.includes(key)),
    needRestart: changed.filter((key) => !CHANGEABLE.includes(key)),
  };
}
