/** What one item counts against a limit: its bytes, and what the bookkeeping of a tiny item costs. */
export function itemCost(item: Uint8Array): number {
  return item.length + 128;
}

/**
 * Says when a queue has grown to its limit, and when it has shrunk to half of it again, so that whoever fills
 * it does not have to stop and go with every item.
 */
export class PressureGauge {
  readonly #limitBytes: number;
  readonly #onChange: (pressed: boolean) => void;
  #bytes = 0;
  #pressed = false;

  constructor(limitBytes: number, onChange: (pressed: boolean) => void) {
    this.#limitBytes = limitBytes;
    this.#onChange = onChange;
  }

  get pressed(): boolean {
    return this.#pressed;
  }

  add(bytes: number): void {
    this.#bytes += bytes;
    if (!this.#pressed && this.#bytes >= this.#limitBytes) this.#set(true);
  }

  subtract(bytes: number): void {
    this.#bytes -= bytes;
    if (this.#pressed && this.#bytes <= this.#limitBytes / 2) this.#set(false);
  }

  #set(pressed: boolean): void {
    this.#pressed = pressed;
    this.#onChange(pressed);
  }
}
