import { X509Certificate } from 'node:crypto';
import {
  chmodSync,
  closeSync,
  existsSync,
  fsyncSync,
  linkSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { isIP } from 'node:net';
import { join } from 'node:path';
import { messageOf } from '../base/errors.ts';
import { makeDirectory } from '../base/make-directory.ts';
import {
  type Authority,
  type Issued,
  isOf,
  issue,
  makeAuthority,
  readAuthority,
  type Subject,
} from './certificate.ts';
import { PkiError } from './pki-error.ts';

const NAME = /^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$/;
const CLIENT_NAME = /^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$/;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const CA = 'ca';
const HOST_YEARS = 2;
const CLIENT_YEARS = 1;

/** What became of a pair of files. */
export interface Made {
  readonly outcome: 'created' | 'unchanged';
  readonly certificate: string;
  readonly key: string;
}

export interface Listed {
  readonly name: string;
  readonly subject: string;
  readonly alternatives: string;
  readonly validTo: string;
}

/** What a client may do, and where. */
export interface ClientRights {
  readonly role: string;
  /** As `understudy tenant ls` shows it: the id is of this tenant, and of no later one of the same name. */
  readonly tenant?: { readonly name: string; readonly id: string } | undefined;
}

/** A folder with a CA and what it has signed. What is there is never written over. */
export class CertificateStore {
  readonly #directory: string;
  readonly #wallMs: () => number;

  constructor(directory: string, { wallMs }: { wallMs: () => number }) {
    this.#directory = directory;
    this.#wallMs = wallMs;
  }

  /** @throws PkiError PKI_INCOMPLETE, PKI_FAILED */
  async init(): Promise<Made> {
    const made = () => makeAuthority('Understudy private CA', { wallMs: this.#wallMs() });
    this.#attempt(() => makeDirectory(this.#directory, { mode: 0o700 }));
    return await this.#unlessThere(CA, made);
  }

  /** For a host, by its name and the addresses at which others reach it. */
  async host(name: string, addresses: readonly string[]): Promise<Made> {
    if (!NAME.test(name) || name === CA) throw refusedName(name, 'a host');
    const wrong = addresses.find((address) => isIP(address) === 0);
    if (wrong !== undefined) throw refusedName(wrong, 'an IP address');
    const dns = [...new Set([name, 'localhost'])];
    const ips = [...new Set(['127.0.0.1', ...addresses])];
    return await this.#sign(name, { name, dns, ips, isServer: true, years: HOST_YEARS });
  }

  /** For somebody who uses hosts, with a role, and of a tenant if one is given. @throws PkiError PKI_NAME_TAKEN, … */
  async client(name: string, { role, tenant }: ClientRights): Promise<Made> {
    if (!CLIENT_NAME.test(name) || name === CA) throw refusedName(name, 'a client');
    if (tenant !== undefined && !CLIENT_NAME.test(tenant.name)) throw refusedName(tenant.name, 'a tenant');
    if (tenant !== undefined && !UUID.test(tenant.id)) throw refusedName(tenant.id, 'a tenant (its id)');
    // No name has a plus: nobody gets the certificate of a namesake.
    const file = tenant === undefined ? name : `${tenant.name}+${name}`;
    const ofTenant = tenant && { organization: tenant.name, uris: [`urn:uuid:${tenant.id.toLowerCase()}`] };
    const subject = { name, unit: role, ...ofTenant };
    return await this.#sign(file, { ...subject, isServer: false, years: CLIENT_YEARS });
  }

  list(): Listed[] {
    const files = this.#attempt(() =>
      readdirSync(this.#directory)
        .filter((file) => file.endsWith('.crt'))
        .sort(),
    );
    return files.map((file) => {
      const { subject, subjectAltName, validTo } = this.#attempt(
        () => new X509Certificate(readFileSync(join(this.#directory, file))),
      );
      return {
        name: file.slice(0, -'.crt'.length),
        subject: subject.replaceAll('\n', ', '),
        alternatives: subjectAltName ?? '',
        validTo: new Date(validTo).toISOString(),
      };
    });
  }

  async #sign(name: string, subject: Subject): Promise<Made> {
    const ca = await this.#authority();
    const made = await this.#unlessThere(name, () => issue(subject, { ca, wallMs: this.#wallMs() }));
    if (made.outcome === 'created') return made;
    const isSame = this.#attempt(() => isOf(readFileSync(made.certificate, 'utf8'), subject));
    if (isSame) return made;
    throw new PkiError(
      'PKI_NAME_TAKEN',
      `${made.certificate} is a certificate of this name that says something else`,
      {
        hint: `\`understudy pki ls ${this.#directory}\` shows what. Choose another name, or move the certificate and its key away.`,
        facts: { directory: this.#directory, name },
      },
    );
  }

  async #authority(): Promise<Authority> {
    const { certificate, key } = this.#paths(CA);
    try {
      const authority = await readAuthority({
        certificate: readFileSync(certificate, 'utf8'),
        key: readFileSync(key, 'utf8'),
      });
      if (authority.certificate.notAfter.getTime() < this.#wallMs()) throw new Error('it has expired');
      return authority;
    } catch (cause) {
      throw new PkiError(
        'PKI_NO_CA',
        `there is no CA in ${this.#directory} that can sign: ${messageOf(cause)}`,
        {
          hint: `\`understudy pki init ${this.#directory}\` makes one.`,
          facts: { directory: this.#directory },
          cause,
        },
      );
    }
  }

  async #unlessThere(name: string, make: () => Promise<Issued>): Promise<Made> {
    const paths = this.#paths(name);
    const there = [paths.certificate, paths.key].filter((path) => existsSync(path));
    if (there.length === 2) return { outcome: 'unchanged', ...paths };
    if (there.length === 1) {
      throw new PkiError('PKI_INCOMPLETE', `only one of certificate and key is there: ${there[0]}`, {
        hint: 'Bring the other one back, or move this one away; it is not written over.',
        facts: { directory: this.#directory, name },
      });
    }
    const issued = await make();
    this.#attempt(() => {
      // The key first: a certificate without it is what others would trust in vain.
      this.#write(paths.key, issued.key, 0o600);
      this.#write(paths.certificate, issued.certificate, 0o644);
    });
    return { outcome: 'created', ...paths };
  }

  /** Whole or not at all, and never in the place of another: `link` refuses where there is one. */
  #write(path: string, text: string, mode: number): void {
    const draft = `${path}.new-${process.pid}`;
    try {
      writeFileSync(draft, text, { mode, flag: 'wx', flush: true });
      chmodSync(draft, mode);
      linkSync(draft, path);
    } finally {
      rmSync(draft, { force: true });
    }
    const directory = openSync(this.#directory, 'r');
    fsyncSync(directory);
    closeSync(directory);
  }

  #paths(name: string): Pick<Made, 'certificate' | 'key'> {
    const path = join(this.#directory, name);
    return { certificate: `${path}.crt`, key: `${path}.key` };
  }

  #attempt<Result>(work: () => Result): Result {
    try {
      return work();
    } catch (cause) {
      throw new PkiError('PKI_FAILED', `cannot use ${this.#directory}: ${messageOf(cause)}`, {
        hint: 'Give a folder that this user may write to.',
        facts: { directory: this.#directory },
        cause,
      });
    }
  }
}

function refusedName(name: string, what: string): PkiError {
  return new PkiError('PKI_NAME_REFUSED', `${JSON.stringify(name)} is no name of ${what}`, {
    hint: 'Names have letters, digits, dots and dashes, and begin with a letter or digit; addresses are IPv4 or IPv6.',
    facts: { name },
  });
}
