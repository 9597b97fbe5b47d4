import {
  type Authority,
  type Issued,
  issue,
  makeAuthority,
  readAuthority,
} from '../../src/pki/certificate.ts';
import type { HostCredentials } from '../../src/wire/host-identity.ts';

const YEAR_MS = 365 * 24 * 3_600_000;

export interface CertificateWish {
  /** Alternative names; those of `pki host` if left out. */
  readonly dns?: readonly string[];
  /** The role of a client. */
  readonly unit?: string;
  readonly isServer?: boolean;
  readonly issuedYearsAgo?: number;
}

/** A CA for tests, and certificates of hosts as `understudy pki host` makes them, or as it never would. */
export class HostCertificates {
  readonly ca: string;
  readonly #authority: Authority;

  private constructor(issued: Issued, authority: Authority) {
    this.ca = issued.certificate;
    this.#authority = authority;
  }

  static async make(): Promise<HostCertificates> {
    // Older than whatever it signs.
    const issued = await makeAuthority('tests', { wallMs: Date.now() - 5 * YEAR_MS });
    return new HostCertificates(issued, await readAuthority(issued));
  }

  /** Of two hosts of one CA, `alpha` and `beta`. */
  static async ofTwo(): Promise<readonly [HostCredentials, HostCredentials]> {
    const certificates = await HostCertificates.make();
    return [await certificates.host('alpha'), await certificates.host('beta')];
  }

  async host(name: string, wish: CertificateWish = {}): Promise<HostCredentials> {
    const { dns = [name, 'localhost'], unit, isServer = true, issuedYearsAgo = 0 } = wish;
    const subject = {
      name,
      dns,
      ips: ['127.0.0.1'],
      ...(unit !== undefined && { unit }),
      isServer,
      years: 2,
    };
    const wallMs = Date.now() - issuedYearsAgo * YEAR_MS;
    return { name, ca: this.ca, ...(await issue(subject, { ca: this.#authority, wallMs })) };
  }
}
