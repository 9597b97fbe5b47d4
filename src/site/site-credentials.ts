import { X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import { isDeepStrictEqual } from 'node:util';
import { messageOf } from '../base/errors.ts';
import { KeeperError } from '../control/keeper-error.ts';

/** Files with what a host shows of itself, and with the CA that it believes. */
export interface CredentialFiles {
  readonly ca: string;
  readonly certificate: string;
  readonly key: string;
}

/** The files' contents, PEM. @throws KeeperError KEEPER_SITE_REFUSED */
export function readCredentials({ ca, certificate, key }: CredentialFiles): CredentialFiles {
  try {
    return {
      ca: readFileSync(ca, 'utf8'),
      certificate: readFileSync(certificate, 'utf8'),
      key: readFileSync(key, 'utf8'),
    };
  } catch (cause) {
    throw new KeeperError('KEEPER_SITE_REFUSED', `a file of the site cannot be read: ${messageOf(cause)}`, {
      hint: 'Make it with `understudy pki host`, or correct site.yaml.',
      cause,
    });
  }
}

/**
 * What is wrong with who may read a private key, for people; undefined where only its owner may. Whoever can read it is
 * this host to all others.
 * @throws what `stat` throws
 */
export function exposureOf(key: string): string | undefined {
  const mode = statSync(key).mode & 0o777;
  if ((mode & 0o077) === 0) return undefined;
  return `${key} has mode 0${mode.toString(8)}: others than its owner can be this host. Type: chmod 600 ${key}`;
}

/**
 * Credentials that are renewed while they are used. One file is replaced after the other: what does not belong together, or
 * cannot be read, is passed over until it can be used, and what there was before is shown as long.
 */
export class RenewedCredentials {
  /** As they were read first. */
  readonly initial: CredentialFiles;
  readonly #files: CredentialFiles;
  readonly #onUnusable: (reason: string) => void;
  #seen: CredentialFiles;
  /** Why they were of no use at the last look. */
  #trouble: string | undefined;

  /** `onUnusable` is told once of what keeps them from being used. @throws KeeperError KEEPER_SITE_REFUSED */
  constructor(files: CredentialFiles, onUnusable: (reason: string) => void) {
    this.#files = files;
    this.#onUnusable = onUnusable;
    this.initial = readCredentials(files);
    this.#seen = this.initial;
  }

  /** What is in the files by now; undefined where that is what it was at the last look, or is of no use. */
  renewed(): CredentialFiles | undefined {
    try {
      const found = readCredentials(this.#files);
      if (isDeepStrictEqual(found, this.#seen)) return this.#unchanged();
      createSecureContext({ cert: found.certificate, key: found.key, ca: found.ca });
      // OpenSSL takes a CA file without a certificate for one that trusts nobody.
      new X509Certificate(found.ca);
      this.#seen = found;
      this.#trouble = undefined;
      return found;
    } catch (cause) {
      const reason = messageOf(cause);
      if (reason !== this.#trouble) this.#onUnusable(reason);
      this.#trouble = reason;
      return undefined;
    }
  }

  #unchanged(): undefined {
    this.#trouble = undefined;
  }
}
