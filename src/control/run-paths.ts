import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { refusedDirectory } from './own-directory.ts';

type Env = Readonly<Record<string, string | undefined>>;

/** `$UNDERSTUDY_RUN_DIR`, else `/run/understudy` for root and `$XDG_RUNTIME_DIR/understudy` for other users. */
export function runRoot(env: Env = process.env, isRoot = runsAsRoot()): string {
  if (env.UNDERSTUDY_RUN_DIR) return resolve(env.UNDERSTUDY_RUN_DIR);
  if (isRoot) return '/run/understudy';
  if (env.XDG_RUNTIME_DIR) return join(env.XDG_RUNTIME_DIR, 'understudy');
  throw refusedDirectory('there is no directory for run-time files: XDG_RUNTIME_DIR is not set', {
    hint: 'Set UNDERSTUDY_RUN_DIR to a directory of yours, with a short path.',
  });
}

/** Where guest memory lies, a file system in memory: `$UNDERSTUDY_MEMORY_DIR`, else `/dev/shm`. */
export function memoryRoot(env: Env = process.env): string {
  return resolve(env.UNDERSTUDY_MEMORY_DIR || '/dev/shm');
}

/** Where the files of one VM lie. */
export interface RunPaths {
  /** Sockets, logs, `keeper.json`. */
  readonly directory: string;
  /** Guest memory and staged epochs. */
  readonly memory: string;
  readonly lock: string;
  readonly record: string;
}

/** In a VM's directory: the specification that its keeper was given, as it was given. */
export const SPEC_FILE = 'spec.json';

export function runPaths(name: string): RunPaths {
  const directory = join(runRoot(), name);
  return {
    directory,
    memory: join(memoryRoot(), `understudy-${name}`),
    lock: join(directory, 'lock'),
    record: join(directory, 'keeper.json'),
  };
}

/** Snapshot files, a directory for each VM. Not where a host keeps the states of its VMs, which go with those. */
export function snapshotFilesRoot(): string {
  return join(stateDirectory(), 'snapshot-files');
}

/** Where the answer of the accelerator probe is remembered. */
export function acceleratorCacheFile(cacheDir: string): string {
  return join(cacheDir, 'accelerator.json');
}

/**
 * Where a host keeps what must survive a reboot: `$UNDERSTUDY_STATE_DIR`, else `/var/lib/understudy` for root and
 * `$XDG_STATE_HOME/understudy` or `~/.local/state/understudy` for other users.
 */
export function stateDirectory(env: Env = process.env): string {
  if (env.UNDERSTUDY_STATE_DIR) return resolve(env.UNDERSTUDY_STATE_DIR);
  if (runsAsRoot()) return '/var/lib/understudy';
  return join(env.XDG_STATE_HOME || join(homedir(), '.local/state'), 'understudy');
}

/** Where a host keeps the state of a VM that does not run, below its own directory for what survives a reboot. */
export function savedStatePaths(
  stateDirectory: string,
  vm: string,
): { readonly suspended: string; readonly snapshot: string } {
  return {
    suspended: join(stateDirectory, 'suspended', vm),
    snapshot: join(stateDirectory, 'snapshots', vm),
  };
}

/** Where the host of this user listens. */
export function hostSocket(env: Env = process.env, isRoot = runsAsRoot()): string {
  return env.UNDERSTUDY_HOST_SOCKET
    ? resolve(env.UNDERSTUDY_HOST_SOCKET)
    : join(runRoot(env, isRoot), 'host.sock');
}

/**
 * Where to ask for a host: that of this user, else that of the machine, whose socket is open to its group. `exists` is
 * for tests.
 */
export function hostSocketToAsk(
  env: Env = process.env,
  { isRoot = runsAsRoot(), exists = existsSync }: SocketSearch = {},
): string {
  const ofMachine = '/run/understudy/host.sock';
  if (env.UNDERSTUDY_HOST_SOCKET || isRoot) return hostSocket(env, isRoot);
  if (env.UNDERSTUDY_RUN_DIR === undefined && env.XDG_RUNTIME_DIR === undefined) return ofMachine;
  const own = hostSocket(env, isRoot);
  return exists(own) || !exists(ofMachine) ? own : ofMachine;
}

interface SocketSearch {
  readonly isRoot?: boolean;
  readonly exists?: (path: string) => boolean;
}

function runsAsRoot(): boolean {
  return process.geteuid?.() === 0;
}
