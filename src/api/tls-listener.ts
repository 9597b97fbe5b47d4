import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, type Server, type ServerOptions } from 'node:https';
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

/**
 * A server that speaks TLS 1.2 or newer and nothing else. A client certificate is asked for where there is a CA for it,
 * and not needed: whether somebody may come in is decided for each request.
 * @throws ApiError API_TLS_UNUSABLE
 */
export function tlsServer(listen: TlsListen, limits: ServerOptions): Server {
  const { certificate, key, clientCa } = listen;
  try {
    return createServer({
      ...limits,
      minVersion: 'TLSv1.2',
      cert: readFileSync(certificate),
      key: readFileSync(key),
      ...(clientCa !== undefined && { ca: readFileSync(clientCa), requestCert: true }),
      rejectUnauthorized: false,
    });
  } catch (cause) {
    throw new ApiError('API_TLS_UNUSABLE', `certificate and key cannot be used: ${messageOf(cause)}`, {
      hint: 'Name PEM files that belong together; `understudy pki init` makes such for those who have none.',
      facts: { certificate, key, clientCa },
      cause,
    });
  }
}

/** @throws ApiError API_LISTEN_FAILED */
export async function listenOnTls(server: Server, { address }: TlsListen): Promise<void> {
  const [, host = '', port = ''] = /^\[?([^\]]*?)\]?:(\d{1,5})$/.exec(address) ?? [];
  try {
    const listening = once(server, 'listening');
    server.listen({ host, port: Number(port) });
    await listening;
  } catch (cause) {
    throw new ApiError('API_LISTEN_FAILED', `cannot listen on ${address}: ${messageOf(cause)}`, {
      hint: 'Give an address of this machine and a port that is free, as ADDRESS:PORT.',
      cause,
    });
  }
}
