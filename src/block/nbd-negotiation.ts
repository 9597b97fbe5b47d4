import type { BlockDevice } from './block-device.ts';
import {
  ALLOCATION,
  EXPORT_FLAG,
  exportNameReply,
  INFO,
  infoBlockSize,
  infoExport,
  infoText,
  lengthAndText,
  NBD_NAME_BYTES_MAX,
  NBD_PAYLOAD_BYTES_MAX,
  OPTION,
  OPTION_REPLY,
  type OptionRequest,
  optionReply,
} from './nbd-wire.ts';

const PREFERRED_BLOCK_BYTES = 4096;
const NAMESPACE = 'base:';

export interface NbdExport {
  readonly name: string;
  readonly description?: string;
  readonly device: BlockDevice;
  readonly readOnly: boolean;
}

/** What a connection is for, once client and server have agreed. */
export interface Agreement {
  readonly export: NbdExport;
  readonly structured: boolean;
  /** Block status may be asked for. */
  readonly allocation: boolean;
}

export interface NegotiationAnswer {
  readonly send: readonly Buffer[];
  readonly next: 'go-on' | 'close' | Agreement;
}

/** The server's half of fixed newstyle negotiation, one option after the other. Sends nothing itself. */
export class Negotiation {
  readonly #exports: ReadonlyMap<string, NbdExport>;
  readonly #zeroes: boolean;
  #structured = false;
  /** The export for which block status was agreed on. */
  #allocationOf: string | undefined;

  constructor(exports: ReadonlyMap<string, NbdExport>, options: { readonly noZeroes: boolean }) {
    this.#exports = exports;
    this.#zeroes = !options.noZeroes;
  }

  answer({ option, data }: OptionRequest): NegotiationAnswer {
    const refuse = (type: number) => goOn(optionReply(option, type));
    switch (option) {
      case OPTION.exportName:
        return this.#exportName(data);
      case OPTION.abort:
        return { send: [optionReply(option, OPTION_REPLY.ack)], next: 'close' };
      case OPTION.list:
        return data.length === 0 ? this.#list() : refuse(OPTION_REPLY.invalid);
      // Who may open the socket may read the disk; there is nothing to be hidden from the kernel between them.
      case OPTION.startTls:
        return refuse(data.length === 0 ? OPTION_REPLY.policy : OPTION_REPLY.invalid);
      case OPTION.structuredReply:
        if (data.length > 0) return refuse(OPTION_REPLY.invalid);
        this.#structured = true;
        return refuse(OPTION_REPLY.ack);
      case OPTION.info:
      case OPTION.go:
        return this.#infoOrGo(option, data);
      case OPTION.listMetaContext:
      case OPTION.setMetaContext:
        return this.#metaContext(option, data);
      default:
        return refuse(OPTION_REPLY.unsupported);
    }
  }

  #exportName(data: Buffer): NegotiationAnswer {
    const found = this.#exports.get(data.toString());
    // This option has no way to say no.
    if (found === undefined) return { send: [], next: 'close' };
    const flags = exportFlags(found, this.#structured);
    const reply = exportNameReply(found.device.sizeBytes, { flags, zeroes: this.#zeroes });
    return { send: [reply], next: this.#agreement(found) };
  }

  #list(): NegotiationAnswer {
    const names = [...this.#exports.keys()].map((name) =>
      optionReply(OPTION.list, OPTION_REPLY.server, lengthAndText(name)),
    );
    return goOn(...names, optionReply(OPTION.list, OPTION_REPLY.ack));
  }

  #infoOrGo(option: number, data: Buffer): NegotiationAnswer {
    const fields = new Fields(data);
    const name = fields.text();
    const count = fields.uint16();
    const wanted = Array.from({ length: Math.min(count ?? 0, data.length) }, () => fields.uint16());
    if (name === undefined || count === undefined || !fields.isDone) {
      return goOn(optionReply(option, OPTION_REPLY.invalid));
    }
    const found = this.#exports.get(name);
    if (found === undefined) return goOn(optionReply(option, OPTION_REPLY.unknown));
    const infos = [
      infoExport(found.device.sizeBytes, exportFlags(found, this.#structured)),
      infoBlockSize({ minimum: 1, preferred: PREFERRED_BLOCK_BYTES, maximum: NBD_PAYLOAD_BYTES_MAX }),
    ];
    if (wanted.includes(INFO.name)) infos.push(infoText(INFO.name, found.name));
    if (wanted.includes(INFO.description) && found.description !== undefined) {
      infos.push(infoText(INFO.description, found.description));
    }
    return {
      send: [
        ...infos.map((info) => optionReply(option, OPTION_REPLY.info, info)),
        optionReply(option, OPTION_REPLY.ack),
      ],
      next: option === OPTION.go ? this.#agreement(found) : 'go-on',
    };
  }

  #metaContext(option: number, data: Buffer): NegotiationAnswer {
    if (option === OPTION.setMetaContext) this.#allocationOf = undefined;
    const fields = new Fields(data);
    const name = fields.text();
    const count = fields.uint32();
    // Each takes four bytes at least, so that a large number is found out before it is gone through.
    const countIsPossible = count !== undefined && count <= data.length / 4;
    const queries = Array.from({ length: countIsPossible ? count : 0 }, () => fields.text());
    if (name === undefined || !countIsPossible || !fields.isDone) {
      return goOn(optionReply(option, OPTION_REPLY.invalid));
    }
    // Without structured replies there is no form in which a status could be told.
    if (!this.#structured) return goOn(optionReply(option, OPTION_REPLY.invalid));
    if (!this.#exports.has(name)) return goOn(optionReply(option, OPTION_REPLY.unknown));
    const listing = option === OPTION.listMetaContext;
    const matches =
      queries.includes(ALLOCATION.name) || (listing && (queries.length === 0 || queries.includes(NAMESPACE)));
    if (!matches) return goOn(optionReply(option, OPTION_REPLY.ack));
    if (!listing) this.#allocationOf = name;
    const context = Buffer.alloc(4 + ALLOCATION.name.length);
    context.writeUInt32BE(listing ? 0 : ALLOCATION.id, 0);
    context.write(ALLOCATION.name, 4);
    return goOn(
      optionReply(option, OPTION_REPLY.metaContext, context),
      optionReply(option, OPTION_REPLY.ack),
    );
  }

  #agreement(found: NbdExport): Agreement {
    return {
      export: found,
      structured: this.#structured,
      allocation: this.#structured && this.#allocationOf === found.name,
    };
  }
}

function goOn(...send: readonly Buffer[]): NegotiationAnswer {
  return { send, next: 'go-on' };
}

function exportFlags({ device, readOnly }: NbdExport, structured: boolean): number {
  // All connections share one device, whose flush covers whatever anybody has been answered.
  const shared = EXPORT_FLAG.hasFlags | EXPORT_FLAG.flush | EXPORT_FLAG.cache | EXPORT_FLAG.multiConnection;
  const always = shared | (structured ? EXPORT_FLAG.doNotFragment : 0);
  if (readOnly) return always | EXPORT_FLAG.readOnly;
  const writing = EXPORT_FLAG.fua | EXPORT_FLAG.trim | EXPORT_FLAG.writeZeroes;
  return always | writing | (device.fastZero ? EXPORT_FLAG.fastZero : 0);
}

/** Reads the parts of an option. What is not there is undefined, and then nothing after it is. */
class Fields {
  readonly #data: Buffer;
  #at = 0;
  #failed = false;

  constructor(data: Buffer) {
    this.#data = data;
  }

  /** Everything was there, and nothing is left. */
  get isDone(): boolean {
    return !this.#failed && this.#at === this.#data.length;
  }

  uint16(): number | undefined {
    return this.#take(2)?.readUInt16BE(0);
  }

  uint32(): number | undefined {
    return this.#take(4)?.readUInt32BE(0);
  }

  text(): string | undefined {
    const lengthBytes = this.uint32();
    if (lengthBytes === undefined || lengthBytes > NBD_NAME_BYTES_MAX) {
      this.#failed = true;
      return undefined;
    }
    return this.#take(lengthBytes)?.toString();
  }

  #take(lengthBytes: number): Buffer | undefined {
    if (this.#failed || this.#at + lengthBytes > this.#data.length) {
      this.#failed = true;
      return undefined;
    }
    this.#at += lengthBytes;
    return this.#data.subarray(this.#at - lengthBytes, this.#at);
  }
}
