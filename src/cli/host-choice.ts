import { readFileSync, statSync } from 'node:fs';
import type { HostAddress } from '../api/host-address.ts';
import { messageOf } from '../base/errors.ts';
import { hostSocketToAsk } from '../control/run-paths.ts';
import { CliError } from './cli-error.ts';

type Env = Readonly<Record<string, string | undefined>>;

/**
 * The host that commands speak with: `$UNDERSTUDY_HOST`, an `https://HOST:PORT`, else that of this machine. Secrets come
 * from files: arguments and variables can be read by others.
 * @throws CliError CLI_HOST_ADDRESS
 */
export function chosenHost(env: Env = process.env): HostAddress {
  const { UNDERSTUDY_HOST: url } = env;
  if (!url) return { socketPath: hostSocketToAsk() };
  if (!URL.canParse(url) || new URL(url).protocol !== 'https:' || new URL(url).pathname !== '/')
    throw refused(`UNDERSTUDY_HOST is no https://HOST:PORT: ${url}`);
  const ca = fileOf('UNDERSTUDY_CA', env);
  const token = secretOf('UNDERSTUDY_TOKEN_FILE', env)?.toString('utf8').trim();
  const certificate = fileOf('UNDERSTUDY_CLIENT_CERT', env);
  const key = secretOf('UNDERSTUDY_CLIENT_KEY', env);
  if (token !== undefined && !/^\S{1,200}$/.test(token))
    throw refused('UNDERSTUDY_TOKEN_FILE holds no token');
  return {
    url,
    credentials: {
      ...(ca && { ca }),
      ...(token !== undefined && { token }),
      ...(certificate && { certificate }),
      ...(key && { key }),
    },
  };
}

/** Whether that is the host of this machine, which sees the files that are here. */
export function isOwnHost({ UNDERSTUDY_HOST: url }: Env = process.env): boolean {
  return !url;
}

function fileOf(name: string, env: Env): Buffer | undefined {
  const path = env[name];
  if (!path) return undefined;
  try {
    return readFileSync(path);
  } catch (cause) {
    throw refused(`${name} cannot be read: ${messageOf(cause)}`, cause);
  }
}

function secretOf(name: string, env: Env): Buffer | undefined {
  const content = fileOf(name, env);
  if (content === undefined) return undefined;
  const path = env[name] ?? '';
  if ((statSync(path).mode & 0o077) !== 0)
    throw refused(`${path} can be read by others than its owner: chmod 600 ${path}`);
  return content;
}

function refused(message: string, cause?: unknown): CliError {
  return new CliError('CLI_HOST_ADDRESS', message, {
    hint: 'docs/cli.md, "Hosts elsewhere", says which variables name a host, its CA, and a token or certificate.',
    cause,
  });
}
