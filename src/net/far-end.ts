/**
 * The world's side of a link: where a guest's output goes and its input comes from. Whoever opens one closes
 * it; a link only uses it.
 */
export interface FarEnd extends AsyncDisposable {
  /** Takes an item of output. Never blocks, never throws: what the world cannot take is dropped and counted, as a nic does. */
  send(item: Uint8Array): void;
  /** Who gets what arrives; undefined: nobody. Nothing is read before the first call. */
  receive(receiver: ((item: Uint8Array) => void) | undefined): void;
  /** Stops reading from the world, which has to wait. A few items more may still arrive. */
  pause(): void;
  resume(): void;
  close(): Promise<void>;
  stats(): FarEndStats;
}

export interface FarEndStats {
  readonly sentItems: number;
  /** Output that the world did not take. */
  readonly refusedItems: number;
}
