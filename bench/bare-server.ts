import { once } from 'node:events';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { parentPort, Worker, workerData } from 'node:worker_threads';

/** What a request costs without anything behind it: node:http in a thread of its own, with one answer for all. */
export class BareServer implements AsyncDisposable {
  readonly socketPath: string;
  readonly #worker: Worker;

  private constructor(worker: Worker, socketPath: string) {
    this.#worker = worker;
    this.socketPath = socketPath;
  }

  static async start({ folder, answer }: { folder: string; answer: string }): Promise<BareServer> {
    const socketPath = join(folder, 'bare.sock');
    const worker = new Worker(new URL(import.meta.url), { workerData: { socketPath, answer } });
    await once(worker, 'message');
    return new BareServer(worker, socketPath);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker.terminate();
  }
}

if (parentPort !== null && workerData?.socketPath !== undefined) {
  const { socketPath, answer } = workerData as { socketPath: string; answer: string };
  const server = createServer((_, response) => {
    response.setHeader('content-type', 'application/json').end(answer);
  });
  server.listen(socketPath, () => parentPort?.postMessage('listens'));
}
