import { createCipheriv, createDecipheriv, hkdfSync } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import { messageOf } from '../base/errors.ts';
import { SnapshotError } from './snapshot-error.ts';

const CIPHER = 'aes-256-gcm';
const KEY_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;

/** What a piece of a snapshot is: its place goes into the nonce, so that none can stand in for another. */
type SealedPlace =
  | { readonly kind: 'chunk'; readonly number: number }
  | { readonly kind: 'index'; readonly prologueHash: Uint8Array };

/**
 * Seals the pieces of one file. Every file has a key of its own, derived from the key in the key file and from the
 * file's random id: so the nonce, which is the number of the piece, is never used twice with one key.
 */
export class SnapshotCipher {
  readonly #key: Uint8Array;

  constructor(key: Uint8Array, { fileId }: { fileId: Uint8Array }) {
    this.#key = new Uint8Array(hkdfSync('sha256', key, fileId, 'understudy snapshot 1', KEY_BYTES));
  }

  seal(plain: Uint8Array, place: SealedPlace): Buffer {
    const cipher = createCipheriv(CIPHER, this.#key, nonceOf(place)).setAAD(boundOf(place));
    return Buffer.concat([cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
  }

  /** Undefined when it was not sealed with this key, at this place, for this file. */
  open(sealed: Uint8Array, place: SealedPlace): Buffer | undefined {
    if (sealed.length < TAG_BYTES) return undefined;
    const decipher = createDecipheriv(CIPHER, this.#key, nonceOf(place)).setAAD(boundOf(place));
    decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES));
    try {
      return Buffer.concat([
        decipher.update(sealed.subarray(0, sealed.length - TAG_BYTES)),
        decipher.final(),
      ]);
    } catch {
      return undefined;
    }
  }
}

/** With another prologue the index does not open. */
function boundOf(place: SealedPlace): Uint8Array {
  return place.kind === 'index' ? place.prologueHash : new Uint8Array();
}

function nonceOf(place: SealedPlace): Buffer {
  const nonce = Buffer.alloc(NONCE_BYTES);
  nonce.writeUInt32LE(place.kind === 'index' ? 1 : 0, 0);
  nonce.writeUInt32LE(place.kind === 'index' ? 0 : place.number, 4);
  return nonce;
}

/**
 * Reads a key file: 32 bytes, or 64 hexadecimal digits, for its owner's eyes only.
 * @throws SnapshotError SNAPSHOT_KEY_REFUSED
 */
export function readKeyFile(path: string): Uint8Array {
  let fd: number | undefined;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const { mode, uid } = fstatSync(fd);
    if ((mode & constants.S_IFMT) !== constants.S_IFREG) throw new Error('it is no file');
    if ((mode & 0o077) !== 0) throw new Error('others than its owner may open it');
    if (uid !== process.geteuid?.() && uid !== 0) throw new Error('it belongs to somebody else');
    const content = readFileSync(fd);
    if (content.length === KEY_BYTES) return content;
    const digits = content.toString('latin1').trim();
    if (/^[0-9a-fA-F]{64}$/.test(digits)) return Buffer.from(digits, 'hex');
    throw new Error('it holds neither 32 bytes nor 64 hexadecimal digits');
  } catch (cause) {
    throw new SnapshotError('SNAPSHOT_KEY_REFUSED', `${path} is no key file: ${messageOf(cause)}`, {
      hint: 'Make one: (umask 077; head -c 32 /dev/urandom > FILE)',
      facts: { path },
      cause,
    });
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}
