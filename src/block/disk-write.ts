/** What a disk receives: bytes, or a stretch of zeros that may become a hole. */
export type DiskWrite =
  | { readonly kind: 'data'; readonly offset: number; readonly bytes: Uint8Array }
  | {
      readonly kind: 'zero';
      readonly offset: number;
      readonly lengthBytes: number;
      readonly mayPunch: boolean;
    };

export function endOf(write: DiskWrite): number {
  return write.offset + (write.kind === 'data' ? write.bytes.length : write.lengthBytes);
}
