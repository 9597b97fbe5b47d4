import { resolve } from 'node:path';
import type { Role } from '../api/principal.ts';
import { systemClock } from '../base/clock.ts';
import { CertificateStore, type Made } from '../pki/certificate-store.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { type Output, table } from './output.ts';
import { tenantIdOf } from './tenant-commands.ts';

const storeIn = (directory: string) => new CertificateStore(resolve(directory), systemClock);

/** `host`: `NAME[,IP…]`, for a host that gets its certificate at once. */
export async function initPki(directory: string, { host }: { host?: string }, out: Output): Promise<number> {
  const store = storeIn(directory);
  const ca = await store.init();
  const [name, ...addresses] = host?.split(',') ?? [];
  const made = name === undefined ? undefined : await store.host(name, addresses);
  out.result({ ca, ...(made && { host: made }) }, () => [ca, made].flatMap(linesOf).join('\n'));
  return EXIT_CODES.ok.code;
}

export async function issueForHost(
  directory: string,
  { name, addresses }: { name: string; addresses: readonly string[] },
  out: Output,
): Promise<number> {
  const made = await storeIn(directory).host(name, addresses);
  out.result(made, () => linesOf(made).join('\n'));
  return EXIT_CODES.ok.code;
}

export interface IssueForClient {
  readonly name: string;
  readonly role: Role;
  readonly tenant?: string | undefined;
  /** Where the CA knows no host that could be asked. */
  readonly tenantId?: string | undefined;
}

export async function issueForClient(
  directory: string,
  { name, role, tenant, tenantId }: IssueForClient,
  out: Output,
): Promise<number> {
  const id = tenant === undefined ? undefined : (tenantId ?? (await tenantIdOf(tenant)));
  const ofTenant = tenant === undefined || id === undefined ? undefined : { name: tenant, id };
  const made = await storeIn(directory).client(name, { role, tenant: ofTenant });
  out.result(made, () => linesOf(made).join('\n'));
  return EXIT_CODES.ok.code;
}

export async function listPki(directory: string, out: Output): Promise<number> {
  const certificates = storeIn(directory).list();
  out.result({ certificates }, () => {
    const rows = certificates.map(({ name, subject, alternatives, validTo }) => [
      name,
      subject,
      alternatives,
      validTo,
    ]);
    return table([['NAME', 'SUBJECT', 'ALSO', 'VALID TO'], ...rows]);
  });
  return EXIT_CODES.ok.code;
}

function linesOf(made: Made | undefined): string[] {
  return made === undefined
    ? []
    : [made.certificate, made.key].map((path) => `${made.outcome.padEnd(9)}  ${path}`);
}
