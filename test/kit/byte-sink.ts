import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

const PROGRAM = `
let bytes = 0;
const server = require('node:net').createServer((socket) => {
  socket.on('data', (chunk) => { bytes += chunk.length; });
  socket.on('error', () => {});
});
server.listen(Number(process.argv[1]), () => console.log('ready'));
process.stdin.on('data', () => console.log(bytes)).on('end', () => process.exit());
`;

/** A server in a network namespace that takes whatever it is sent, and says how much that was. */
export class ByteSink implements AsyncDisposable {
  readonly #child;
  readonly #lines: AsyncIterator<string>;

  private constructor(netns: string, port: number) {
    const args = ['netns', 'exec', netns, process.execPath, '-e', PROGRAM, String(port)];
    this.#child = spawn('ip', args, { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
  }

  static async listen(netns: string, port: number): Promise<ByteSink> {
    const sink = new ByteSink(netns, port);
    await sink.#lines.next();
    return sink;
  }

  async receivedBytes(): Promise<number> {
    this.#child.stdin.write('\n');
    return Number((await this.#lines.next()).value);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    this.#child.stdin.end();
    await ended;
  }
}
