import { homedir } from 'node:os';
import { expect, it } from 'vitest';
import { cacheDirectory } from './cache-directory.ts';

it.each<[string, Record<string, string>, string]>([
  ['the named folder comes first', { UNDERSTUDY_CACHE: '/a', XDG_CACHE_HOME: '/b' }, '/a'],
  ['the desktop standard comes second', { UNDERSTUDY_CACHE: '', XDG_CACHE_HOME: '/b' }, '/b/understudy'],
  ['a relative path of the standard is ignored', { XDG_CACHE_HOME: 'b' }, `${homedir()}/.cache/understudy`],
  ['the home folder is the rest', {}, `${homedir()}/.cache/understudy`],
])('%s', (_, env, expected) => {
  expect(cacheDirectory(env)).toBe(expected);
});
