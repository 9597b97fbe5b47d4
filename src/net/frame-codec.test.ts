import fc from 'fast-check';
import { expect, test } from 'vitest';
import { encodeFrame, FRAME_BYTES_MAX, FrameDecoder } from './frame-codec.ts';
import { NetError } from './net-error.ts';

const frame = fc.uint8Array({ minLength: 1, maxLength: 200 });

function decode(chunks: readonly Uint8Array[]): number[][] {
  const decoder = new FrameDecoder();
  const frames: number[][] = [];
  for (const chunk of chunks) decoder.push(chunk, (found) => frames.push([...found]));
  return frames;
}

/** Cuts `bytes` at the given places, in any order, twice the same place allowed. */
function split(bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const places = [0, ...cuts.map((cut) => cut % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  return places.slice(1).map((end, index) => bytes.subarray(places[index], end));
}

test('frames come out as they went in, however the stream is split', () => {
  fc.assert(
    fc.property(fc.array(frame), fc.array(fc.nat()), (frames, cuts) => {
      const stream = Buffer.concat(frames.map(encodeFrame));
      expect(decode(split(stream, cuts))).toEqual(frames.map((bytes) => [...bytes]));
    }),
  );
});

test('the largest frame that QEMU sends passes, byte by byte at its edges', () => {
  const largest = new Uint8Array(FRAME_BYTES_MAX).fill(7);
  const stream = encodeFrame(largest);
  const chunks = split(stream, [1, 2, 3, 4, 5, stream.length - 1]);
  expect(decode(chunks).map((bytes) => bytes.length)).toEqual([FRAME_BYTES_MAX]);
});

test('an empty frame, which a guest can make QEMU send, is left out', () => {
  const stream = Buffer.concat([Buffer.alloc(4), encodeFrame(Buffer.from('a')), Buffer.alloc(4)]);
  expect(decode([stream])).toEqual([[97]]);
});

test.each([FRAME_BYTES_MAX + 1, 0xffff_ffff])(
  'a length of %i is refused before anything is stored',
  (length) => {
    const header = Buffer.alloc(4);
    header.writeUInt32BE(length);
    const thrown = catching(() => decode(split(header, [2])));
    expect(thrown).toBeInstanceOf(NetError);
    expect(thrown).toMatchObject({ code: 'NET_FRAME_INVALID', facts: { frameBytes: length } });
  },
);

test('garbage is either refused or waited on, but never makes a frame larger than the limit', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 4000 })), (chunks) => {
      const decoder = new FrameDecoder();
      const thrown = catching(() => {
        for (const chunk of chunks) {
          decoder.push(chunk, (found) => expect(found.length).toBeLessThanOrEqual(FRAME_BYTES_MAX));
        }
      });
      if (thrown !== undefined) expect(thrown).toBeInstanceOf(NetError);
    }),
  );
});

function catching(task: () => void): unknown {
  try {
    task();
    return undefined;
  } catch (thrown) {
    return thrown;
  }
}
