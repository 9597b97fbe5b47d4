import type { DiskExtent } from './block-device.ts';
import type { Agreement } from './nbd-negotiation.ts';
import type { RequestWithPayload } from './nbd-reader.ts';
import { doneReply, NbdRefusal, putReadHeader, readHeaderBytes, statusReply } from './nbd-reply.ts';
import { COMMAND, COMMAND_FLAG, NBD_PAYLOAD_BYTES_MAX } from './nbd-wire.ts';

/** Of one answer. A client asks again from where it ended. */
const EXTENTS_MAX = 4096;
const EXTENT_BYTES_MAX = 2 ** 32 - 4096;

const { fua, noHole, doNotFragment, requestOne, fastZero } = COMMAND_FLAG;
const FLAGS_ALLOWED: Readonly<Record<number, number>> = {
  [COMMAND.read]: fua | doNotFragment,
  [COMMAND.write]: fua,
  [COMMAND.flush]: fua,
  [COMMAND.trim]: fua,
  [COMMAND.cache]: fua,
  [COMMAND.writeZeroes]: fua | noHole | fastZero,
  [COMMAND.blockStatus]: fua | requestOne,
};
const CHANGING: ReadonlySet<number> = new Set([COMMAND.write, COMMAND.trim, COMMAND.writeZeroes]);

/** Carries one request out, and returns its reply. @throws NbdRefusal; what the device throws */
export async function carryOut(request: RequestWithPayload, agreement: Agreement): Promise<Buffer> {
  refuseUnfit(request, agreement);
  const { device } = agreement.export;
  const { command, offset, lengthBytes, flags } = request;
  const options = { fua: (flags & COMMAND_FLAG.fua) !== 0 };
  switch (command) {
    case COMMAND.read:
      return await readReply(request, agreement);
    case COMMAND.write:
      if (lengthBytes > 0) {
        await device.write(offset, request.payload, { ...options, onFree: request.onPayloadFree });
      }
      break;
    case COMMAND.flush:
      await device.flush();
      break;
    case COMMAND.trim:
      if (lengthBytes > 0) await device.trim(offset, lengthBytes, options);
      break;
    case COMMAND.writeZeroes: {
      const mayPunch = (flags & COMMAND_FLAG.noHole) === 0;
      if (lengthBytes > 0) await device.zero(offset, lengthBytes, { ...options, mayPunch });
      break;
    }
    case COMMAND.blockStatus:
      return statusReply(request, await boundedExtents(request, agreement));
    default: // CACHE: what is read often is in the kernel's cache already, and anything else is not worth its reading.
      break;
  }
  return doneReply(request, agreement.structured);
}

function refuseUnfit(request: RequestWithPayload, agreement: Agreement): void {
  const { command, offset, lengthBytes, flags } = request;
  const { device, readOnly } = agreement.export;
  const allowed = FLAGS_ALLOWED[command];
  if (allowed === undefined || (flags & ~allowed) !== 0) throw new NbdRefusal('EINVAL');
  if (CHANGING.has(command) && readOnly) throw new NbdRefusal('EPERM');
  if ((flags & COMMAND_FLAG.doNotFragment) !== 0 && !agreement.structured) throw new NbdRefusal('EINVAL');
  if ((flags & COMMAND_FLAG.fastZero) !== 0 && !device.fastZero) throw new NbdRefusal('EINVAL');
  if (command === COMMAND.flush) {
    if (offset !== 0 || lengthBytes !== 0) throw new NbdRefusal('EINVAL');
    return;
  }
  if (command === COMMAND.read && lengthBytes > NBD_PAYLOAD_BYTES_MAX) throw new NbdRefusal('EINVAL');
  if (command === COMMAND.blockStatus && (!agreement.allocation || lengthBytes === 0)) {
    throw new NbdRefusal('EINVAL');
  }
  if (offset + lengthBytes > device.sizeBytes) {
    const writes = command === COMMAND.write || command === COMMAND.writeZeroes;
    throw new NbdRefusal(writes ? 'ENOSPC' : 'EINVAL');
  }
}

async function readReply(request: RequestWithPayload, agreement: Agreement): Promise<Buffer> {
  const { offset, lengthBytes } = request;
  const { structured } = agreement;
  // A chunk of data must not be empty.
  if (lengthBytes === 0) return doneReply(request, structured);
  const headerBytes = readHeaderBytes(structured);
  const reply = Buffer.allocUnsafeSlow(headerBytes + lengthBytes);
  await agreement.export.device.read(offset, reply.subarray(headerBytes));
  putReadHeader(reply, request, { structured, offset });
  return reply;
}

async function boundedExtents(
  { offset, lengthBytes, flags }: RequestWithPayload,
  { export: { device } }: Agreement,
): Promise<DiskExtent[]> {
  const all = await device.extents(offset, lengthBytes);
  const found = all.slice(0, (flags & COMMAND_FLAG.requestOne) === 0 ? EXTENTS_MAX : 1);
  // A device may tell more than it was asked for; the number on the wire has 32 bits.
  return found.map((extent) => ({ ...extent, lengthBytes: Math.min(extent.lengthBytes, EXTENT_BYTES_MAX) }));
}
