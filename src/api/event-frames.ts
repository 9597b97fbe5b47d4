import { MIB } from '../base/units.ts';
import type { HostEvent } from './resources.ts';

const FRAME_CHARACTERS_MAX = 4 * MIB;

/** A comment: keeps proxies and clients from taking silence for death. */
export const HEARTBEAT = ':\n\n';

/** One server-sent event, https://html.spec.whatwg.org/multipage/server-sent-events.html. */
export function encodeFrame(event: HostEvent): string {
  return `id: ${event.id}\nevent: ${event.kind}\ndata: ${JSON.stringify(event)}\n\n`;
}

/** Takes a stream apart, however it was split on the way. Reads what `encodeFrame` writes, and comments. */
export class FrameReader {
  #rest = '';

  /** `data` of each event that is complete now; undefined when this is no stream of events. */
  push(text: string): string[] | undefined {
    const frames = (this.#rest + text).split('\n\n');
    this.#rest = frames.pop() ?? '';
    if (this.#rest.length > FRAME_CHARACTERS_MAX) return undefined;
    return frames.flatMap((frame) => {
      const line = frame.split('\n').find((candidate) => candidate.startsWith('data: '));
      return line === undefined ? [] : [line.slice('data: '.length)];
    });
  }
}
