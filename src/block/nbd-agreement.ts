import type { Socket } from 'node:net';
import { BlockError } from './block-error.ts';
import type { ByteQueue } from './byte-queue.ts';
import { violation } from './nbd-reader.ts';
import {
  ALLOCATION,
  EXPORT_FLAG,
  HANDSHAKE,
  INFO,
  lengthAndText,
  NBD_MAGIC,
  NBD_OPTION_BYTES_MAX,
  NBD_OPTION_MAGIC,
  NBD_OPTION_REPLY_MAGIC,
  OPTION,
  OPTION_REPLY,
  optionRequest,
  readUint64,
} from './nbd-wire.ts';

/** What a client and a server have agreed on. */
export interface ClientAgreement {
  readonly sizeBytes: number;
  readonly flags: number;
  /** Block status may be asked for. */
  readonly allocation: boolean;
}

const NEEDED = EXPORT_FLAG.flush | EXPORT_FLAG.fua | EXPORT_FLAG.writeZeroes;
const REPLIES_MAX = 64;

/** The client's half of the negotiation. Afterwards the socket has no reader, and what came early is in the queue. */
export async function agree(
  socket: Socket,
  queue: ByteQueue,
  { exportName }: { readonly exportName: string },
): Promise<ClientAgreement> {
  const take = (lengthBytes: number) => arrival(socket, queue, { lengthBytes });
  const greeting = await take(18);
  if (greeting.readBigUInt64BE(0) !== NBD_MAGIC || greeting.readBigUInt64BE(8) !== NBD_OPTION_MAGIC) {
    throw violation('no greeting');
  }
  if ((greeting.readUInt16BE(16) & HANDSHAKE.fixedNewstyle) === 0) throw violation('an old greeting');
  const noZeroes = greeting.readUInt16BE(16) & HANDSHAKE.noZeroes;
  socket.write(Buffer.of(0, 0, 0, HANDSHAKE.fixedNewstyle | noZeroes));

  const isStructured = (await ask(OPTION.structuredReply, Buffer.alloc(0))).accepted;
  const query = Buffer.concat([
    lengthAndText(exportName),
    Buffer.of(0, 0, 0, 1),
    lengthAndText(ALLOCATION.name),
  ]);
  const context = isStructured ? await ask(OPTION.setMetaContext, query) : undefined;
  const allocation = context?.replies.some(({ type }) => type === OPTION_REPLY.metaContext) ?? false;
  const go = await ask(OPTION.go, Buffer.concat([lengthAndText(exportName), Buffer.of(0, 0)]));
  const info = go.replies.find(
    ({ type, data }) =>
      type === OPTION_REPLY.info && data.length === 12 && data.readUInt16BE(0) === INFO.export,
  );
  if (!go.accepted || info === undefined) throw refused(exportName, 'it is not served');
  const flags = info.data.readUInt16BE(10);
  if ((flags & NEEDED) !== NEEDED) throw refused(exportName, `its flags are 0x${flags.toString(16)}`);
  return { sizeBytes: readUint64(info.data, 2), flags, allocation };

  async function ask(option: number, data: Buffer) {
    socket.write(optionRequest(option, data));
    const replies: { type: number; data: Buffer }[] = [];
    for (;;) {
      const header = await take(20);
      if (header.readBigUInt64BE(0) !== NBD_OPTION_REPLY_MAGIC || header.readUInt32BE(8) !== option) {
        throw violation('a reply to something else');
      }
      const lengthBytes = header.readUInt32BE(16);
      if (lengthBytes > NBD_OPTION_BYTES_MAX || replies.length > REPLIES_MAX) throw violation('too much');
      const type = header.readUInt32BE(12);
      replies.push({ type, data: await take(lengthBytes) });
      if (type === OPTION_REPLY.ack || type >= OPTION_REPLY.unsupported) {
        return { accepted: type === OPTION_REPLY.ack, replies };
      }
    }
  }
}

/** The next bytes, read only while somebody waits for them. */
async function arrival(
  socket: Socket,
  queue: ByteQueue,
  { lengthBytes }: { readonly lengthBytes: number },
): Promise<Buffer> {
  const whole = queue.take(lengthBytes);
  if (whole !== undefined) return whole;
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const onData = (chunk: Buffer) => {
    queue.push(chunk);
    const found = queue.take(lengthBytes);
    if (found !== undefined) resolve(found);
  };
  const onEnd = () =>
    reject(new BlockError('BLOCK_NBD_LOST', 'the server of an image hung up', { hint: 'See its log.' }));
  socket.on('data', onData).once('end', onEnd).once('close', onEnd);
  socket.resume();
  try {
    return await promise;
  } finally {
    socket.pause();
    socket.off('data', onData).off('end', onEnd).off('close', onEnd);
  }
}

function refused(exportName: string, why: string): BlockError {
  return new BlockError(
    'BLOCK_NBD_REFUSED',
    `the export '${exportName}' of an image cannot be used: ${why}`,
    {
      hint: 'Look at what the program that serves it says in its log.',
      facts: { exportName },
    },
  );
}
