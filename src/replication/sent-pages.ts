import { PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';

/**
 * What the shadow on another host has of the pages that were sent to it last: a page of which only a few bytes changed
 * since then travels as those. Bounded: the page that was not sent for longest makes room.
 */
export class SentPages implements Disposable {
  readonly #store: Mapping;
  readonly #capacity: number;
  /** Page to its place in the store, the page that was sent longest ago first. */
  readonly #places = new Map<number, number>();

  constructor({ capacityPages }: { capacityPages: number }) {
    this.#capacity = capacityPages;
    this.#store = Mapping.anonymous(capacityPages * PAGE_BYTES);
  }

  /** Copies the page's last version to `into` at `offset`; false if it is not known. */
  read(page: number, into: Uint8Array, offset: number): boolean {
    const place = this.#places.get(page);
    if (place === undefined) return false;
    into.set(this.#store.bytes.subarray(place, place + PAGE_BYTES), offset);
    return true;
  }

  /** This version of the page is on its way. */
  note(page: number, content: Uint8Array): void {
    const place = this.#places.get(page) ?? this.#freePlace();
    this.#places.delete(page);
    this.#places.set(page, place);
    this.#store.bytes.set(content, place);
  }

  [Symbol.dispose](): void {
    this.#store[Symbol.dispose]();
  }

  #freePlace(): number {
    if (this.#places.size < this.#capacity) return this.#places.size * PAGE_BYTES;
    const [[oldest, place]] = this.#places as unknown as [[number, number]];
    this.#places.delete(oldest);
    return place;
  }
}
