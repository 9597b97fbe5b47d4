import 'reflect-metadata';
import { createPrivateKey, type webcrypto } from 'node:crypto';
import { isIP, SocketAddress } from 'node:net';
import { isDeepStrictEqual } from 'node:util';
import {
  AuthorityKeyIdentifierExtension,
  BasicConstraintsExtension,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  type Extension,
  KeyUsageFlags,
  KeyUsagesExtension,
  SubjectAlternativeNameExtension,
  SubjectKeyIdentifierExtension,
  X509Certificate,
  X509CertificateGenerator,
} from '@peculiar/x509';

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
const HOUR_MS = 3_600_000;
const YEAR_MS = 365 * 24 * HOUR_MS;

/** A certificate and the key that belongs to it, both PEM. */
export interface Issued {
  readonly certificate: string;
  readonly key: string;
}

/** Who signs. */
export interface Authority {
  readonly certificate: X509Certificate;
  readonly key: webcrypto.CryptoKey;
}

/** What a certificate says of whom it is for. */
export interface Subject {
  /** Common name. */
  readonly name: string;
  /** Organisational unit: the role of a client. */
  readonly unit?: string;
  readonly organization?: string;
  /** Names and addresses by which it is reached. */
  readonly dns?: readonly string[];
  readonly ips?: readonly string[];
  readonly uris?: readonly string[];
  readonly isServer: boolean;
  readonly years: number;
}

/** A CA that may sign certificates and no further CAs; valid for ten years. */
export async function makeAuthority(name: string, { wallMs }: { wallMs: number }): Promise<Issued> {
  const keys = await newKeys();
  const certificate = await X509CertificateGenerator.createSelfSigned({
    ...validity(wallMs, 10),
    name: distinguished({ name }),
    keys,
    signingAlgorithm: ALGORITHM,
    extensions: [
      new BasicConstraintsExtension(true, 0, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
      await SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return { certificate: pem(certificate), key: await keyPem(keys.privateKey) };
}

/** Reads what `makeAuthority` made. @throws for what is no certificate or no key of it */
export async function readAuthority({ certificate, key }: Issued): Promise<Authority> {
  const parsed = new X509Certificate(certificate);
  const der = createPrivateKey(key).export({ format: 'der', type: 'pkcs8' });
  const privateKey = await crypto.subtle.importKey('pkcs8', der, ALGORITHM, false, ['sign']);
  const publicKey = await parsed.publicKey.export(ALGORITHM, ['verify']);
  const sample = new Uint8Array([1]);
  const signature = await crypto.subtle.sign(ALGORITHM, privateKey, sample);
  if (!(await crypto.subtle.verify(ALGORITHM, publicKey, signature, sample)))
    throw new Error('the key is not that of the certificate');
  return { certificate: parsed, key: privateKey };
}

export async function issue(
  subject: Subject,
  { ca, wallMs }: { ca: Authority; wallMs: number },
): Promise<Issued> {
  const { dns = [], ips = [], uris = [], isServer, years } = subject;
  const keys = await newKeys();
  const usages = isServer
    ? [ExtendedKeyUsage.serverAuth, ExtendedKeyUsage.clientAuth]
    : [ExtendedKeyUsage.clientAuth];
  const alternatives = [
    ...dns.map((value) => ({ type: 'dns' as const, value })),
    ...ips.map((value) => ({ type: 'ip' as const, value })),
    ...uris.map((value) => ({ type: 'url' as const, value })),
  ];
  const extensions: Extension[] = [
    new BasicConstraintsExtension(false, undefined, true),
    new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
    new ExtendedKeyUsageExtension(usages),
    await AuthorityKeyIdentifierExtension.create(ca.certificate.publicKey),
    await SubjectKeyIdentifierExtension.create(keys.publicKey),
    ...(alternatives.length === 0 ? [] : [new SubjectAlternativeNameExtension(alternatives)]),
  ];
  const certificate = await X509CertificateGenerator.create({
    ...validity(wallMs, years),
    subject: distinguished(subject),
    issuer: ca.certificate.subject,
    publicKey: keys.publicKey,
    signingKey: ca.key,
    signingAlgorithm: ALGORITHM,
    extensions,
  });
  return { certificate: pem(certificate), key: await keyPem(keys.privateKey) };
}

/** Whether a certificate says this of whom it is for; how long it is valid does not count. */
export function isOf(certificate: string, { dns = [], ips = [], uris = [], ...subject }: Subject): boolean {
  const { subjectName, extensions } = new X509Certificate(certificate);
  const wanted = distinguished(subject).flatMap((part) => Object.entries(part));
  const said = subjectName.toJSON().flatMap((part) => Object.entries(part));
  const alternatives = extensions.find((each) => each instanceof SubjectAlternativeNameExtension);
  const named =
    alternatives?.names.toJSON().map(({ type, value }) => `${type} ${canonical(type, value)}`) ?? [];
  const wantedNames = [
    ...dns.map((value) => `dns ${value}`),
    ...ips.map((value) => `ip ${canonical('ip', value)}`),
    ...uris.map((value) => `url ${value}`),
  ];
  return (
    isDeepStrictEqual(new Map(said), new Map(wanted)) &&
    isDeepStrictEqual(new Set(named), new Set(wantedNames))
  );
}

/** Of an address, which can be written in several ways. */
function canonical(type: string, value: string): string {
  if (type !== 'ip') return value;
  const family = isIP(value) === 6 ? 'ipv6' : 'ipv4';
  return new SocketAddress({ address: value, family }).address;
}

/** Begins an hour ago: clocks of other machines may be behind. */
function validity(wallMs: number, years: number): { notBefore: Date; notAfter: Date } {
  return { notBefore: new Date(wallMs - HOUR_MS), notAfter: new Date(wallMs + years * YEAR_MS) };
}

function distinguished({ name, unit, organization }: Pick<Subject, 'name' | 'unit' | 'organization'>) {
  return [
    { CN: [name] },
    ...(unit === undefined ? [] : [{ OU: [unit] }]),
    ...(organization === undefined ? [] : [{ O: [organization] }]),
  ];
}

async function newKeys(): Promise<webcrypto.CryptoKeyPair> {
  return await crypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify']);
}

function pem(certificate: X509Certificate): string {
  return `${certificate.toString('pem')}\n`;
}

async function keyPem(key: webcrypto.CryptoKey): Promise<string> {
  const der = Buffer.from(await crypto.subtle.exportKey('pkcs8', key));
  return createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
    .export({ format: 'pem', type: 'pkcs8' })
    .toString();
}
