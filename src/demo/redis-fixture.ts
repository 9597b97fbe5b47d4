import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { freePort } from '../net/free-port.ts';

export interface RedisServer extends AsyncDisposable {
  readonly host: string;
  readonly port: number;
}

/** For tests: the real Redis on this machine. Debian's redis-tools brings the server under another name. */
export async function startRedis(): Promise<RedisServer> {
  const port = await freePort();
  const words = ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'];
  const child = spawn('/usr/bin/redis-check-rdb', words, {
    argv0: 'redis-server',
    stdio: 'ignore',
    cwd: '/',
  });
  await once(child, 'spawn');
  return {
    host: '127.0.0.1',
    port,
    async [Symbol.asyncDispose]() {
      const exited = once(child, 'exit');
      if (child.exitCode === null && child.kill('SIGKILL')) await exited;
    },
  };
}
