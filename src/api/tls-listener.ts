import { once } from 'node:events';
import type { Server, ServerOptions } from 'node:https';
import { messageOf } from '../base/errors.ts';
import { ApiError } from './api-error.ts';
import { TlsFiles, type TlsListen } from './tls-files.ts';

export type { TlsListen };

/** @throws ApiError API_TLS_UNUSABLE */
export function tlsServer(listen: TlsListen, limits: ServerOptions): Server {
  // Whoever wants to have them read again keeps them.
  const files = listen instanceof TlsFiles ? listen : new TlsFiles(listen);
  return files.serve(limits);
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
