import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { HostCertificates } from '../../test/kit/host-certificates.ts';
import { type CredentialFiles, exposureOf, RenewedCredentials } from './site-credentials.ts';

async function world() {
  const folder = mkdtempSync(join(tmpdir(), 'us-credentials-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const certificates = await HostCertificates.make();
  const [old, next] = [await certificates.host('a'), await certificates.host('a')];
  const files = { ca: join(folder, 'ca'), certificate: join(folder, 'crt'), key: join(folder, 'key') };
  const put = (change: Partial<CredentialFiles>) => {
    for (const name of ['ca', 'certificate', 'key'] as const)
      if (change[name] !== undefined) writeFileSync(files[name], change[name]);
  };
  put(old);
  const troubles: string[] = [];
  const credentials = new RenewedCredentials(files, (reason) => troubles.push(reason));
  return { credentials, put, old, next, files, troubles };
}

describe('credentials that are renewed while they are used', () => {
  it('are those of before until certificate and key belong together, and then the new ones, once', async () => {
    const { credentials, put, old, next, troubles } = await world();
    expect(credentials.initial).toMatchObject({ certificate: old.certificate, key: old.key });
    expect(credentials.renewed()).toBeUndefined();
    put({ certificate: next.certificate });
    expect([credentials.renewed(), credentials.renewed()]).toEqual([undefined, undefined]);
    put({ key: next.key });
    const { name: _, ...expected } = next;
    expect(credentials.renewed()).toEqual(expected);
    expect(credentials.renewed()).toBeUndefined();
    // Somebody has put the key there after the certificate: told once, and over.
    expect(troubles).toHaveLength(1);
  });

  it.each([
    ['is nothing of the kind', { certificate: 'nonsense' }],
    ['is a CA of nobody', { ca: '' }],
  ])('are those of before where what is there %s', async (_, change) => {
    const { credentials, put, old, troubles } = await world();
    put(change);
    expect(credentials.renewed()).toBeUndefined();
    put(old);
    expect(credentials.renewed()).toBeUndefined();
    expect(troubles).toHaveLength(1);
  });

  it('are those of before while a file is away', async () => {
    const { credentials, files, put, next } = await world();
    rmSync(files.key);
    expect(credentials.renewed()).toBeUndefined();
    put(next);
    expect(credentials.renewed()).toMatchObject({ key: next.key });
  });
});

describe('the private key of a host', () => {
  it('that others can read is named, with what to type', async () => {
    const { files } = await world();
    const exposed = [0o644, 0o640, 0o604].map((mode) => {
      chmodSync(files.key, mode);
      return exposureOf(files.key);
    });
    const command = `chmod 600 ${files.key}`;
    expect(exposed).toEqual(
      ['0644', '0640', '0604'].map((mode) =>
        expect.stringMatching(new RegExp(`mode ${mode}: .*${command}$`)),
      ),
    );
  });

  it('that its owner alone can read is not', async () => {
    const { files } = await world();
    chmodSync(files.key, 0o600);
    expect(exposureOf(files.key)).toBeUndefined();
  });
});
