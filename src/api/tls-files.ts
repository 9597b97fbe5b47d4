import { randomBytes, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer, type Server, type ServerOptions } from 'node:https';
import { createSecureContext, type TLSSocket } from 'node:tls';
import { messageOf } from '../base/errors.ts';
import { ApiError } from './api-error.ts';

/** Where a host listens for those who are not on its machine. */
export interface TlsListen {
  /** `10.0.0.1:7443`, `[::1]:7443`; port 0 for any. */
  readonly address: string;
  /** Paths of PEM files. */
  readonly certificate: string;
  readonly key: string;
  /** Whose client certificates are taken; without it there are tokens only. */
  readonly clientCa?: string | undefined;
}

interface Contents {
  readonly cert: Buffer;
  readonly key: Buffer;
  readonly ca: Buffer | undefined;
}

const MIN_VERSION = 'TLSv1.2';
const TICKET_KEYS_BYTES = 48;

/** The files that a host shows who it is with, and knows others by. They can be read again while it serves. */
export class TlsFiles implements TlsListen {
  readonly address: string;
  readonly certificate: string;
  readonly key: string;
  readonly clientCa: string | undefined;
  readonly #certified = new Set<TLSSocket>();
  #inUse: Contents | undefined;
  #server: Server | undefined;

  constructor({ address, certificate, key, clientCa }: TlsListen) {
    this.address = address;
    this.certificate = certificate;
    this.key = key;
    this.clientCa = clientCa;
  }

  /** When the certificate that is shown expires. */
  get validTo(): string {
    return new X509Certificate(this.#inUse?.cert ?? '').validToDate.toISOString();
  }

  /**
   * A server that speaks TLS 1.2 or newer and nothing else. A client certificate is asked for where there is a CA for it,
   * and not needed: whether somebody may come in is decided for each request.
   * @throws ApiError API_TLS_UNUSABLE
   */
  serve(limits: ServerOptions): Server {
    const { cert, key, ca } = this.#read();
    this.#inUse = { cert, key, ca };
    const known = ca !== undefined && { ca, requestCert: true };
    const server = createServer({
      ...limits,
      ...known,
      ...{ minVersion: MIN_VERSION, cert, key, rejectUnauthorized: false },
    });
    server.on('secureConnection', (socket) => {
      if (!socket.authorized) return;
      this.#certified.add(socket);
      socket.once('close', () => this.#certified.delete(socket));
    });
    this.#server = server;
    return server;
  }

  /**
   * Reads the files again: whoever connects from now on meets what is in them. Where there is another client CA, those
   * who came in by a certificate have to come in anew. @throws ApiError API_TLS_UNUSABLE; nothing has changed then
   */
  renew(): 'renewed' | 'unchanged' {
    const next = this.#read();
    const { cert, key, ca } = next;
    const before = this.#inUse;
    const isSame = (one?: Buffer, other?: Buffer) => (one ?? Buffer.of()).equals(other ?? Buffer.of());
    const hasSameCa = isSame(ca, before?.ca);
    if (hasSameCa && isSame(cert, before?.cert) && isSame(key, before?.key)) return 'unchanged';
    // With other ticket keys: a session that is resumed would bring the old answer to who somebody is.
    const ticketKeys = randomBytes(TICKET_KEYS_BYTES);
    this.#server?.setSecureContext({
      ...{ cert, key, minVersion: MIN_VERSION, ticketKeys },
      ...(ca !== undefined && { ca }),
    });
    this.#inUse = next;
    if (!hasSameCa) for (const socket of this.#certified) socket.destroy();
    return 'renewed';
  }

  /** Whole: what belongs together, and can be used. */
  #read(): Contents {
    const { certificate, key: keyPath, clientCa } = this;
    try {
      const cert = readFileSync(certificate);
      const key = readFileSync(keyPath);
      const ca = clientCa === undefined ? undefined : readFileSync(clientCa);
      createSecureContext({ cert, key });
      // OpenSSL takes a CA file without a certificate for one that trusts nobody.
      if (ca !== undefined) new X509Certificate(ca);
      return { cert, key, ca };
    } catch (cause) {
      throw new ApiError('API_TLS_UNUSABLE', `certificate and key cannot be used: ${messageOf(cause)}`, {
        hint: 'Name PEM files that belong together; `understudy pki init` makes such for those who have none.',
        facts: { certificate, key: keyPath, clientCa },
        cause,
      });
    }
  }
}
