import { closeSync } from 'node:fs';
import koffi from 'koffi';
import { watchReadable } from '../../src/linux/event-watch.ts';
import { checked, libc } from '../../src/linux/libc.ts';
import { inNetns } from '../../src/linux/netns.ts';

const AF_PACKET = 17;
const SOCK_RAW_NONBLOCK_CLOEXEC = 3 | 0o4000 | 0o2000000;
const SOL_PACKET = 263;
const PACKET_IGNORE_OUTGOING = 23;
const SOL_SOCKET = 1;
const SO_RCVBUFFORCE = 33;
const ETH_P_ALL = 3;
/** Bytes of a frame that are looked at: where to, where from. */
const HEAD_BYTES = 12;
const SOCKADDR_LL_BYTES = 20;
const BUFFER_BYTES = 8 * 2 ** 20;

const recvfrom = koffi
  .load('libc.so.6')
  .func('recvfrom', 'intptr_t', ['int', 'void *', 'size_t', 'int', 'void *', 'void *']) as (
  fd: number,
  buffer: Uint8Array,
  lengthBytes: number,
  flags: number,
  address: Uint8Array,
  addressBytes: Uint8Array,
) => number;

/**
 * Sees by which ports of a network the frames of one machine come in, in the order in which they come. Whoever acts as the
 * machine is seen by its frames, whatever anybody says of itself.
 */
export class PortWatch implements Disposable {
  readonly #fd: number;
  readonly #watch: Disposable;
  readonly #mac: string;
  readonly #ports: ReadonlyMap<number, string>;
  readonly #head = Buffer.alloc(HEAD_BYTES);
  readonly #address = Buffer.alloc(SOCKADDR_LL_BYTES);
  readonly #addressBytes = Buffer.alloc(4);
  #runs: { port: string; frames: number }[] = [];
  #seen = 0;

  /** `ports`: by the number of the interface in `netns`. */
  constructor(netns: string, { mac, ports }: { mac: string; ports: ReadonlyMap<number, string> }) {
    this.#mac = mac.replaceAll(':', '');
    this.#ports = ports;
    const protocol = ((ETH_P_ALL & 0xff) << 8) | (ETH_P_ALL >> 8);
    this.#fd = inNetns(netns, () =>
      checked('socket', libc.socket(AF_PACKET, SOCK_RAW_NONBLOCK_CLOEXEC, protocol)),
    );
    const one = Buffer.from([1, 0, 0, 0]);
    checked('setsockopt', libc.setsockopt(this.#fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, one, 4));
    const buffer = Buffer.alloc(4);
    buffer.writeInt32LE(BUFFER_BYTES);
    checked('setsockopt', libc.setsockopt(this.#fd, SOL_SOCKET, SO_RCVBUFFORCE, buffer, 4));
    this.#watch = watchReadable(this.#fd, () => this.#drain(), { keepsRunning: false });
  }

  /** Frames seen so far; if there were none, it means nothing which ports they did not come by. */
  get seen(): number {
    return this.#seen;
  }

  /** By which ports it has sent since this was last asked, each change once. */
  take(): { port: string; frames: number }[] {
    this.#drain();
    const runs = this.#runs;
    this.#runs = [];
    return runs;
  }

  [Symbol.dispose](): void {
    this.#watch[Symbol.dispose]();
    closeSync(this.#fd);
  }

  #drain(): void {
    for (;;) {
      this.#addressBytes.writeInt32LE(SOCKADDR_LL_BYTES);
      const count = recvfrom(this.#fd, this.#head, HEAD_BYTES, 0, this.#address, this.#addressBytes);
      if (count < 0) return;
      const port = this.#ports.get(this.#address.readInt32LE(4));
      if (port === undefined || this.#head.toString('hex', 6, 12) !== this.#mac) continue;
      this.#seen += 1;
      const last = this.#runs.at(-1);
      if (last?.port === port) last.frames += 1;
      else this.#runs.push({ port, frames: 1 });
    }
  }
}
