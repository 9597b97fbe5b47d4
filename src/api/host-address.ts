import { type ClientRequest, request as httpRequest, type RequestOptions } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { connect as connectTcp } from 'node:net';
import type { Duplex } from 'node:stream';
import { connect as connectTls } from 'node:tls';

/** What a client shows and trusts over TLS; all PEM but the token. */
export interface TlsCredentials {
  /** Who may have signed the host's certificate; by default those that the system trusts. */
  readonly ca?: string | Buffer;
  readonly token?: string;
  readonly certificate?: string | Buffer;
  readonly key?: string | Buffer;
}

/** Where a host is: its unix socket on this machine, or `https://HOST:PORT`. */
export type HostAddress =
  | { readonly socketPath: string }
  | { readonly url: string; readonly credentials: TlsCredentials };

/** For messages. */
export function whereIs(address: HostAddress): string {
  return 'url' in address ? address.url : address.socketPath;
}

/** A request over a connection of its own. */
export function requestTo(address: HostAddress, options: RequestOptions): ClientRequest {
  if (!('url' in address)) return httpRequest({ ...options, ...address, agent: false });
  const { url, credentials } = address;
  const { hostname, port } = new URL(url);
  return httpsRequest({
    ...options,
    ...tlsOptions(credentials),
    agent: false,
    // URL keeps the brackets of an IPv6 address.
    host: hostname.replace(/^\[|\]$/g, ''),
    port: port || 443,
    headers: { ...(options.headers as Record<string, string>), ...authorizationOf(credentials) },
  });
}

/** A connection to it, encrypted where that is not the machine's own. */
export function connectTo(address: HostAddress): Duplex {
  if (!('url' in address)) return connectTcp(address.socketPath);
  const { hostname, port } = new URL(address.url);
  const host = hostname.replace(/^\[|\]$/g, '');
  return connectTls({ host, port: Number(port || 443), ...tlsOptions(address.credentials) });
}

export function authorizationOf({ token }: TlsCredentials): Record<string, string> {
  return token === undefined ? {} : { authorization: `Bearer ${token}` };
}

function tlsOptions({ ca, certificate, key }: TlsCredentials) {
  return {
    minVersion: 'TLSv1.2' as const,
    ...(ca !== undefined && { ca }),
    ...(certificate !== undefined && { cert: certificate }),
    ...(key !== undefined && { key }),
  };
}
