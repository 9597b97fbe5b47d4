import { PAGE_BYTES } from '../base/units.ts';
import { checked, lastErrno, libc } from './libc.ts';
import { callFailed } from './linux-error.ts';
import { readInto } from './poll.ts';

/** linux/userfaultfd.h: ioctls, and modes of a registration. */
const UFFDIO_REGISTER = 0xc020aa00;
const UFFDIO_UNREGISTER = 0x8010aa01;
const UFFDIO_WAKE = 0x8010aa02;
const UFFDIO_COPY = 0xc028aa03;
const UFFDIO_ZEROPAGE = 0xc020aa04;
const UFFDIO_WRITEPROTECT = 0xc018aa06;
const MODE_MISSING = 1n;
const MODE_WP = 2n;
const WRITEPROTECT_WP = 1n;

/** struct uffd_msg. */
const MESSAGE_BYTES = 32;
const EVENT_PAGEFAULT = 0x12;
const MESSAGES_AT_ONCE = 16;

/** A range in the address space of the process that made the userfaultfd. */
export interface FaultRange {
  readonly address: number;
  readonly lengthBytes: number;
}

type Placed = 'placed' | 'present' | 'process-gone';

/**
 * Answers to faults on memory that is not there yet, through the userfaultfd of another process. The fd does not block.
 * See userfaultfd(2) and ioctl_userfaultfd(2).
 */
export class UserfaultAnswers {
  readonly #fd: number;
  readonly #messages = new Uint8Array(MESSAGES_AT_ONCE * MESSAGE_BYTES);

  constructor(fd: number) {
    this.#fd = fd;
  }

  /** Whoever touches what is not there waits from now on. Write protection stays as it is. */
  watchMissing({ address, lengthBytes }: FaultRange): void {
    const argument = numbers(address, lengthBytes, MODE_MISSING | MODE_WP, 0);
    checked('ioctl UFFDIO_REGISTER', libc.ioctl(this.#fd, UFFDIO_REGISTER, argument));
  }

  /**
   * What is not there reads as zeros from now on, nobody waits any more, and everything is write-protected anew: for a
   * dirty log all before is written.
   */
  watchWritesOnly({ address, lengthBytes }: FaultRange): void {
    const range = numbers(address, lengthBytes);
    // A registration for less than there is would change nothing.
    checked('ioctl UFFDIO_UNREGISTER', libc.ioctl(this.#fd, UFFDIO_UNREGISTER, range));
    const registration = numbers(address, lengthBytes, MODE_WP, 0);
    checked('ioctl UFFDIO_REGISTER', libc.ioctl(this.#fd, UFFDIO_REGISTER, registration));
    const protection = numbers(address, lengthBytes, WRITEPROTECT_WP);
    checked('ioctl UFFDIO_WRITEPROTECT', libc.ioctl(this.#fd, UFFDIO_WRITEPROTECT, protection));
  }

  /** Addresses that somebody waits for; never waits itself. */
  takeFaults(): number[] {
    const count = readInto(this.#fd, this.#messages);
    const view = new DataView(this.#messages.buffer);
    const addresses: number[] = [];
    for (let at = 0; at + MESSAGE_BYTES <= (count ?? 0); at += MESSAGE_BYTES)
      if (view.getUint8(at) === EVENT_PAGEFAULT) addresses.push(Number(view.getBigUint64(at + 16, true)));
    return addresses;
  }

  /**
   * Puts whole pages in place and wakes who waits for them. What is there already stays as it is, and its waiters are
   * woken too. Returns false when the process has ended.
   */
  place(address: number, source: { readonly address: number; readonly lengthBytes: number }): boolean {
    return this.#placeAll({ address, lengthBytes: source.lengthBytes }, (at, lengthBytes) => {
      const argument = numbers(at, source.address + (at - address), lengthBytes, 0n, 0);
      return this.#placed(UFFDIO_COPY, argument, { result: 32 });
    });
  }

  /** The same with zeros. */
  placeZeros(range: FaultRange): boolean {
    return this.#placeAll(range, (at, lengthBytes) =>
      this.#placed(UFFDIO_ZEROPAGE, numbers(at, lengthBytes, 0n, 0), { result: 24 }),
    );
  }

  #placeAll(
    { address, lengthBytes }: FaultRange,
    place: (at: number, lengthBytes: number) => { readonly kind: Placed; readonly bytes: number },
  ): boolean {
    const end = address + lengthBytes;
    for (let at = address; at < end; ) {
      const { kind, bytes } = place(at, end - at);
      if (kind === 'process-gone') return false;
      // EEXIST wakes nobody.
      if (kind === 'present') this.#wake({ address: at, lengthBytes: PAGE_BYTES });
      at += kind === 'present' ? PAGE_BYTES : bytes;
    }
    return true;
  }

  #placed(
    request: number,
    argument: Uint8Array,
    { result }: { result: number },
  ): { readonly kind: Placed; readonly bytes: number } {
    const outcome = libc.ioctl(this.#fd, request, argument);
    const errno = outcome === -1 ? lastErrno() : undefined;
    const bytes = Number(new DataView(argument.buffer).getBigInt64(result, true));
    // EAGAIN: a part of it, or none because the mappings were changing.
    if (errno === undefined || errno === 'EAGAIN') return { kind: 'placed', bytes: Math.max(0, bytes) };
    if (errno === 'EEXIST') return { kind: 'present', bytes: 0 };
    if (errno === 'ESRCH') return { kind: 'process-gone', bytes: 0 };
    throw callFailed('ioctl UFFDIO_COPY', errno);
  }

  #wake({ address, lengthBytes }: FaultRange): void {
    const woken = libc.ioctl(this.#fd, UFFDIO_WAKE, numbers(address, lengthBytes));
    if (woken === -1 && lastErrno() !== 'ESRCH') throw callFailed('ioctl UFFDIO_WAKE', lastErrno());
  }
}

/** Fields of 64 bits, one after the other. */
function numbers(...fields: readonly (number | bigint)[]): Uint8Array {
  return new Uint8Array(new BigUint64Array(fields.map(BigInt)).buffer);
}
