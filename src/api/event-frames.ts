import { MIB } from '../base/units.ts';
import type { HostEvent } from './resources.ts';

const FRAME_CHARACTERS_MAX = 4 * MIB;

/** A comment: keeps proxies and clients from taking silence for death. */
export const HEARTBEAT = ':\n\n';

/** One server-sent event, https://html.spec.whatwg.org/multipage/server-sent-events.html. */
export function encodeFrame(event: HostEvent): string {
  return `id: ${event.id}\nevent: ${event.kind}\ndata: ${JSON.stringify(event)}\n\n`;
}

/** Where a reader is that has seen no event yet: sets what it will give as `Last-Event-ID`, and dispatches nothing. */
export function encodePlace(id: number): string {
  return `id: ${id}\n\n`;
}

/** What one frame says. Either is undefined where the frame has no such line. */
export interface Frame {
  readonly id: number | undefined;
  readonly data: string | undefined;
}

/** Takes a stream apart, however it was split on the way. Reads what `encodeFrame` writes, and comments. */
export class FrameReader {
  #rest = '';

  /** The frames that are complete now, without comments; undefined when this is no stream of events. */
  push(text: string): Frame[] | undefined {
    const frames = (this.#rest + text).split('\n\n');
    this.#rest = frames.pop() ?? '';
    if (this.#rest.length > FRAME_CHARACTERS_MAX) return undefined;
    return frames.flatMap((frame) => {
      const lines = frame.split('\n');
      const [id, data] = [fieldOf(lines, 'id: '), fieldOf(lines, 'data: ')];
      if (id === undefined && data === undefined) return [];
      return [{ id: id !== undefined && /^\d{1,15}$/.test(id) ? Number(id) : undefined, data }];
    });
  }
}

function fieldOf(lines: readonly string[], field: string): string | undefined {
  return lines.find((line) => line.startsWith(field))?.slice(field.length);
}
