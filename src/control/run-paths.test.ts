import { describe, expect, it } from 'vitest';
import { hostSocketToAsk } from './run-paths.ts';

const MACHINE = '/run/understudy/host.sock';
const OWN = '/run/user/7/understudy/host.sock';

describe('a host is asked for', () => {
  const env = { XDG_RUNTIME_DIR: '/run/user/7' };
  it.each<[string, Record<string, string>, readonly string[], boolean, string]>([
    [
      'where the environment says',
      { ...env, UNDERSTUDY_HOST_SOCKET: '/a.sock' },
      [MACHINE],
      false,
      '/a.sock',
    ],
    ['at that of the user', env, [OWN, MACHINE], false, OWN],
    ['at that of the machine when the user has none', env, [MACHINE], false, MACHINE],
    ['at that of the user when there is none at all', env, [], false, OWN],
    ['at that of the machine by who has no place for one', {}, [], false, MACHINE],
    [
      'at that of root by root, whatever there is',
      { UNDERSTUDY_RUN_DIR: '/b' },
      [MACHINE],
      true,
      '/b/host.sock',
    ],
  ])('%s', (_, environment, there, isRoot, expected) => {
    expect(hostSocketToAsk(environment, { isRoot, exists: (path) => there.includes(path) })).toBe(expected);
  });
});
