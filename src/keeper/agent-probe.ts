import type { Clock } from '../base/clock.ts';
import type { QemuPort } from '../net/qemu-port.ts';

/** Not one of those with which the guest's clock begins a conversation. */
const SYNC_ID = 1_900_000_001;
const QUESTION = Buffer.from(
  `\n{"execute":"guest-sync","arguments":{"id":${SYNC_ID}}}\n{"execute":"guest-get-time"}\n`,
);
const TEXT_CHARS_MAX = 4096;
const ANSWER = new RegExp(`"return"\\s*:\\s*${SYNC_ID}\\b[^]*?\\n[^]*?"return"\\s*:\\s*\\d{10,19}\\b`);

/** Asks the guest agent behind a port that nobody else uses whether it is there. */
export class AgentProbe implements Disposable {
  readonly #port: QemuPort | undefined;
  #text = '';
  #onText: () => void = () => {};

  constructor(port: QemuPort | undefined) {
    this.#port = port;
    port?.open({
      onItem: (bytes) => {
        // Half of a conversation with the keeper may come first.
        this.#text = (this.#text + Buffer.from(bytes).toString('latin1')).slice(-TEXT_CHARS_MAX);
        this.#onText();
      },
      onRoom: () => {},
      onClosed: () => {},
    });
  }

  /** Whether it tells the guest's time. */
  async answers({ clock, deadlineMs }: { clock: Clock; deadlineMs: number }): Promise<boolean> {
    if (this.#port?.canSend !== true) return false;
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const cancel = clock.after(deadlineMs, () => resolve(false));
    this.#onText = () => ANSWER.test(this.#text) && resolve(true);
    this.#port.send(QUESTION);
    return await promise.finally(cancel);
  }

  [Symbol.dispose](): void {
    this.#onText = () => {};
    this.#port?.disconnect();
  }
}
