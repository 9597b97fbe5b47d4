import { resolve } from 'node:path';
import type { Role } from '../api/principal.ts';
import { systemClock } from '../base/clock.ts';
import { CertificateStore, type Made } from '../pki/certificate-store.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { type Output, table } from './output.ts';

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

export async function issueForClient(
  directory: string,
  { name, role, tenant }: { name: string; role: Role; tenant?: string | undefined },
  out: Output,
): Promise<number> {
  const made = await storeIn(directory).client(name, { role, tenant });
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
