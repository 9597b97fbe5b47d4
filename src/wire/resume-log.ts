import { assert } from '../base/assert.ts';
import { misused } from './link-messages.ts';
import type { Message } from './message-framing.ts';

export interface ResumeLogOptions {
  /**
   * Names this log among all that this sender ever had: random, or growing. Counting begins anew with each, and a receiver
   * that knows another one has nothing of this one.
   */
  readonly stream: bigint;
  readonly bytesMax: number;
  readonly messagesMax: number;
}

export type LoggedMessage = Message & { readonly sequence: bigint };

/** How far a receiver has come in which log. Sequences begin at 1; 0 is nothing. */
export interface ResumePoint {
  readonly stream: bigint;
  readonly sequence: bigint;
}

export type Resumption =
  | { readonly kind: 'replay'; readonly messages: readonly LoggedMessage[] }
  /** The log lacks something that the receiver lacks as well, or the receiver comes from another log. */
  | { readonly kind: 'resynchronise'; readonly reason: 'other-stream' | 'forgotten' | 'ahead' };

/**
 * What was sent and is not acknowledged, so that after a broken connection only that is sent again. Bounded: when it is
 * full the oldest is forgotten, and a receiver that lacks it needs everything anew. Keeps the bodies, which must not change.
 */
export class ResumeLog {
  readonly stream: bigint;
  readonly #bytesMax: number;
  readonly #messagesMax: number;
  /** In order and without a gap, up to `#last`. */
  readonly #messages: LoggedMessage[] = [];
  #bytes = 0;
  #last = 0n;
  #acknowledged = 0n;

  constructor({ stream, bytesMax, messagesMax }: ResumeLogOptions) {
    assert(bytesMax > 0 && messagesMax > 0, 'a log has room for something');
    this.stream = stream;
    this.#bytesMax = bytesMax;
    this.#messagesMax = messagesMax;
  }

  /** Of bodies that it keeps. */
  get bytes(): number {
    return this.#bytes;
  }

  get lastSequence(): bigint {
    return this.#last;
  }

  /** Notes a message before it is sent, and says which number it has. */
  append(message: Message): LoggedMessage {
    this.#last += 1n;
    const logged = { ...message, sequence: this.#last };
    this.#messages.push(logged);
    this.#bytes += bytesOf(logged);
    while (this.#bytes > this.#bytesMax || this.#messages.length > this.#messagesMax) this.#forgetOldest();
    return logged;
  }

  /**
   * The receiver has everything up to `sequence`, also after a loss of its own. An older acknowledgement that comes late
   * changes nothing. @throws WireError WIRE_GARBLED for what was never sent
   */
  acknowledge(sequence: bigint): void {
    if (sequence > this.#last) throw misused(`it acknowledges ${sequence} of ${this.#last}`);
    if (sequence > this.#acknowledged) this.#acknowledged = sequence;
    while ((this.#messages[0]?.sequence ?? this.#last + 1n) <= this.#acknowledged) this.#forgetOldest();
  }

  /** What a receiver that has come to `point` lacks, or that it cannot be had. */
  replayFrom({ stream, sequence }: ResumePoint): Resumption {
    if (stream !== this.stream) return { kind: 'resynchronise', reason: 'other-stream' };
    if (sequence > this.#last) return { kind: 'resynchronise', reason: 'ahead' };
    const firstKept = this.#messages[0]?.sequence ?? this.#last + 1n;
    if (sequence + 1n < firstKept) return { kind: 'resynchronise', reason: 'forgotten' };
    return { kind: 'replay', messages: this.#messages.filter((message) => message.sequence > sequence) };
  }

  #forgetOldest(): void {
    const oldest = this.#messages.shift();
    if (oldest !== undefined) this.#bytes -= bytesOf(oldest);
  }
}

/** The other side of a ResumeLog: each message once, in order, and never one after a gap. */
export class ResumeCursor {
  #point: ResumePoint;

  /** As it was kept; from nothing if nothing was. */
  constructor(point: ResumePoint) {
    this.#point = point;
  }

  get point(): ResumePoint {
    return this.#point;
  }

  /**
   * What to do with a message: use it, leave it because it was used before, or give the link up because something is
   * missing before it. After `use` it counts as used.
   */
  accept(sequence: bigint): 'use' | 'known' | 'gap' {
    const next = this.#point.sequence + 1n;
    if (sequence < next) return 'known';
    if (sequence > next) return 'gap';
    this.#point = { ...this.#point, sequence };
    return 'use';
  }

  /** Everything up to `point` was brought over in another way. */
  resynchronised(point: ResumePoint): void {
    this.#point = point;
  }
}

function bytesOf({ body }: Message): number {
  return body?.length ?? 0;
}
