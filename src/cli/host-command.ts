import { fileURLToPath } from 'node:url';
import { becomeProgram } from './process-change.ts';

const DAEMON = fileURLToPath(new URL('../host/main.ts', import.meta.url));

interface HostFlags {
  readonly config?: string;
  readonly state?: string;
  readonly socket?: string;
  readonly listen?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly clientCa?: string;
}

const WORDS: Readonly<Record<keyof HostFlags, string>> = {
  config: '--config',
  state: '--state',
  socket: '--socket',
  listen: '--listen',
  tlsCert: '--tls-cert',
  tlsKey: '--tls-key',
  clientCa: '--client-ca',
};

/** Becomes the daemon: the process that was started, by a person or by systemd, is the one that runs. */
export function becomeHost(flags: HostFlags): never {
  const given = Object.entries(WORDS).flatMap(([name, word]) => {
    const value = flags[name as keyof HostFlags];
    return value === undefined ? [] : [word, value];
  });
  const words = ['--disable-warning=ExperimentalWarning', DAEMON, ...given];
  return becomeProgram(words, { command: 'host' });
}
