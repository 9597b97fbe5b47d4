import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { SiteConfig } from '../config/site-config.ts';
import { CertificateStore } from '../pki/certificate-store.ts';

export interface TwoHosts {
  readonly a: SiteConfig;
  /** The other one, which finds the first at these addresses. */
  readonly b: (...addresses: string[]) => SiteConfig;
  readonly pki: CertificateStore;
}

/** What is in site.yaml of two hosts on loopback, with certificates of one CA. `onEnd` is given what removes them. */
export async function twoHosts(onEnd: (remove: () => void) => void): Promise<TwoHosts> {
  const folder = mkdtempSync(join(tmpdir(), 'us-door-'));
  onEnd(() => rmSync(folder, { recursive: true }));
  const pki = new CertificateStore(folder, { wallMs: Date.now });
  await pki.init();
  for (const name of ['a', 'b']) await pki.host(name, []);
  const siteOf = (host: string, hosts: Record<string, string[]>): SiteConfig => {
    const files = {
      certificate: join(folder, `${host}.crt`),
      key: join(folder, `${host}.key`),
      ca: join(folder, 'ca.crt'),
    };
    return {
      ...{ host, hosts, listen: ['127.0.0.1:1'], peerTimeoutMs: 5000, peerTimeoutMinMs: 1000, ...files },
      lease: { holdSeconds: 10, etcd: { endpoints: [], ...files } },
    };
  };
  return { a: siteOf('a', { b: ['127.0.0.1:1'] }), b: (...a) => siteOf('b', { a }), pki };
}
