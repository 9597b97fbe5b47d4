/** One message between the keepers of two hosts: what it is, and its bytes, which may come in parts. */
export interface PeerMessage {
  readonly type: number;
  readonly body: Uint8Array;
}

/**
 * A connection between the keeper of a VM and that of its shadow on another host. Whoever stands behind it has proven
 * who they are; what they say may still be wrong.
 */
export interface PeerLink {
  /**
   * Sends a message whose body is `parts` one after the other; the bytes are copied or sent before this resolves. Resolves
   * when there is room for the next one. @throws when the link is closed
   */
  send(type: number, parts: readonly Uint8Array[]): Promise<void>;
  /** Of messages that were sent and that the other side has not said to have dealt with, as far as that is known. */
  readonly unacknowledgedBytes: number;
  /**
   * Messages in their order. The next one is read when this one was dealt with: who does not read makes the other side
   * wait. Ends when the link closes.
   */
  messages(): AsyncIterable<PeerMessage>;
  /** Resolves when the link is of no more use, with the reason unless this side closed it. */
  readonly closed: Promise<Error | undefined>;
  /**
   * Where the link outlasts its connections: what there is may be used while it lasts, and nothing is taken up again. For who
   * is about to act without the other side.
   */
  forgo(): void;
  /** Where it is this side that dials: the present connection leads over a path that is dead, and another one is made. */
  renew(): void;
  close(): void;
}
