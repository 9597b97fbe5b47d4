/**
 * The process behind `RedisLoad`: it stands where the clients stand, for example inside a network namespace, and does
 * what it is told over IPC. It ends when its parent does.
 */
import { systemClock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import { DemoError } from './demo-error.ts';
import { LoadGenerator } from './load-generator.ts';
import type { LoadAnswer, LoadRequest } from './redis-load.ts';
import { RedisErrorReply } from './resp.ts';

const [host = '127.0.0.1', port = '6379'] = process.argv.slice(2);
const generator = new LoadGenerator({ host, port: Number(port) }, systemClock);

process.on('message', (request: LoadRequest) => void answer(request));
process.on('disconnect', () => process.exit());

async function answer({ id, method, args }: LoadRequest): Promise<void> {
  try {
    const call = generator[method] as (...words: unknown[]) => unknown;
    const result = await call.apply(generator, [...args]);
    if (result instanceof RedisErrorReply) throw new Error(`Redis answered ${result.message}`);
    send({ id, ok: true, result });
  } catch (thrown) {
    const known = thrown instanceof DemoError ? { code: thrown.code, hint: thrown.hint } : {};
    send({ id, ok: false, error: { message: messageOf(thrown), ...known } });
  }
}

function send(message: LoadAnswer): void {
  process.send?.(message, undefined, {}, () => {
    // Whoever asked is gone; 'disconnect' follows.
  });
}
