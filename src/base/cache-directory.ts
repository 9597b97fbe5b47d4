import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';

/**
 * Where Understudy keeps what it can make again: the demo guest, the preload library, probe answers.
 * `$UNDERSTUDY_CACHE`, else `$XDG_CACHE_HOME/understudy`, else `~/.cache/understudy`. Not created here.
 */
export function cacheDirectory(env: Readonly<Record<string, string | undefined>> = process.env): string {
  if (env.UNDERSTUDY_CACHE) return env.UNDERSTUDY_CACHE;
  // The XDG base directory specification: a path that is not absolute is to be ignored.
  const xdg = env.XDG_CACHE_HOME;
  const base = xdg !== undefined && isAbsolute(xdg) ? xdg : join(homedir(), '.cache');
  return join(base, 'understudy');
}
