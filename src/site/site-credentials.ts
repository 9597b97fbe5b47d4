import { readFileSync } from 'node:fs';
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
