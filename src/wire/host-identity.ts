import { X509Certificate } from 'node:crypto';
import { isIP } from 'node:net';
import { createSecureContext, type SecureContext, type TLSSocket } from 'node:tls';
import { messageOf } from '../base/errors.ts';
import { WireError } from './wire-error.ts';

/** Who this host is, as `understudy pki host` makes it. All three PEM. */
export interface HostCredentials {
  /** This host's name: a DNS name of its certificate. */
  readonly name: string;
  readonly certificate: string;
  readonly key: string;
  /** The CA that signed the certificates of all hosts. No other is trusted. */
  readonly ca: string;
}

const CERTIFICATE = /^-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----/m;
const HOST_NAME = /^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$/;
/** The private CA puts it into every host's certificate, so that it says nothing of which host that is. */
const EVERY_HOST = 'localhost';
/** id-kp-serverAuth, RFC 5280 4.2.1.12. Certificates of people have clientAuth alone. */
const SERVER_AUTH = '1.3.6.1.5.5.7.3.1';
/** X509_V_ERR_…, as Node spells them. */
const EXPIRED = new Set(['CERT_HAS_EXPIRED', 'CERT_NOT_YET_VALID']);
const INVALID_PURPOSE = 'INVALID_PURPOSE';

/** @throws WireError WIRE_CERTIFICATE_UNUSABLE */
export function secureContextOf({ name, certificate, key, ca }: HostCredentials): SecureContext {
  const unusable = (reason: string, cause?: unknown) =>
    new WireError('WIRE_CERTIFICATE_UNUSABLE', `this host cannot show who it is: ${reason}`, {
      hint: 'Give certificate and key of this host and the CA of all hosts; `understudy pki host` makes them.',
      facts: { name },
      cause,
    });
  if (!isHostName(name)) throw unusable(`${JSON.stringify(name)} is no name that tells hosts apart`);
  try {
    const context = createSecureContext({ cert: certificate, key, ca, minVersion: 'TLSv1.3' });
    // OpenSSL takes any file in its place, and then nobody is trusted.
    if (!CERTIFICATE.test(ca)) throw new Error('the file of the CA has no certificate');
    if (carries(new X509Certificate(certificate), name)) return context;
  } catch (cause) {
    throw unusable(messageOf(cause), cause);
  }
  throw unusable(`its certificate is not for ${name}`);
}

/** @throws WireError WIRE_PEER_NAME for names that say nothing, or are this host's own */
export function assertPeerNames(names: readonly string[], { name }: HostCredentials): void {
  const wrong = names.find((peer) => !isHostName(peer) || isSameName(peer, name));
  if (wrong !== undefined)
    throw peerName(`${JSON.stringify(wrong)} is no name of another host`, { expected: names, ownName: name });
}

/**
 * Which of `expected` is at the other end of a TLS connection whose handshake is done.
 * @throws WireError WIRE_PEER_UNTRUSTED, WIRE_PEER_EXPIRED, WIRE_PEER_NOT_A_HOST, WIRE_PEER_NAME
 */
export function peerOf(
  socket: TLSSocket,
  { expected, ownName }: { expected: readonly string[]; ownName: string },
): string {
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) throw untrusted('it shows no certificate');
  if (!socket.authorized) throw distrust(String(socket.authorizationError), certificate);
  // What was checked at another time, and may have expired since. None is ever given out.
  if (socket.isSessionReused()) throw untrusted('it goes on with an old session');
  const unit = certificate.toLegacyObject().subject?.OU;
  if (unit !== undefined || certificate.keyUsage?.includes(SERVER_AUTH) !== true) throw notAHost(certificate);
  if (carries(certificate, ownName))
    throw peerName(`it shows a certificate for ${ownName}, which is this host`, { expected, ownName });
  const peer = expected.find((name) => carries(certificate, name));
  if (peer === undefined) {
    const names = certificate.subjectAltName ?? '';
    throw peerName(`its certificate is for ${names || 'nobody'}`, { expected, names });
  }
  return peer;
}

function isHostName(name: string): boolean {
  return HOST_NAME.test(name) && isIP(name) === 0 && !isSameName(name, EVERY_HOST);
}

function isSameName(a: string, b: string): boolean {
  return a.toLowerCase() === b.toLowerCase();
}

/** By one of its alternative names, letter by letter: RFC 9525 without wildcards, which would name several hosts. */
function carries(certificate: X509Certificate, name: string): boolean {
  return certificate.checkHost(name, { subject: 'never', wildcards: false }) !== undefined;
}

function distrust(reason: string, certificate: X509Certificate): WireError {
  if (reason === INVALID_PURPOSE) return notAHost(certificate);
  if (!EXPIRED.has(reason)) return untrusted(`its certificate fails the check: ${reason}`);
  const { validFrom, validTo } = certificate;
  return new WireError(
    'WIRE_PEER_EXPIRED',
    `the certificate of the other host, or of its CA, is not valid now: it is from ${validFrom} to ${validTo}`,
    {
      hint: 'Issue a new one with `understudy pki host`, or set the clock of this host.',
      facts: { validFrom, validTo },
    },
  );
}

function untrusted(reason: string): WireError {
  return new WireError('WIRE_PEER_UNTRUSTED', `the other side is not trusted: ${reason}`, {
    hint: 'Both hosts need certificates that the same CA has signed, and that CA.',
    facts: { reason },
  });
}

function notAHost({ subject }: X509Certificate): WireError {
  return new WireError('WIRE_PEER_NOT_A_HOST', `the other side shows a certificate that is no host's`, {
    hint: 'Certificates of `understudy pki client` are for people; give the host one of `understudy pki host`.',
    facts: { subject: subject?.replaceAll('\n', ', ') },
  });
}

function peerName(reason: string, facts: Readonly<Record<string, unknown>>): WireError {
  return new WireError('WIRE_PEER_NAME', `the other side is not the host that is expected: ${reason}`, {
    hint: 'Compare the names of both hosts with the DNS names of their certificates: `understudy pki ls`.',
    facts,
  });
}
