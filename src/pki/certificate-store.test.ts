import { execFileSync, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, createServer, type TLSSocket } from 'node:tls';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CertificateStore, type Made } from './certificate-store.ts';

const YEAR_MS = 365 * 24 * 3_600_000;
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-pki-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

const store = (name = 'pki', wallMs = Date.now()) =>
  new CertificateStore(join(folder, name), { wallMs: () => wallMs });
const pemOf = ({ certificate, key }: Made) => ({ cert: readFileSync(certificate), key: readFileSync(key) });
const caOf = (name = 'pki') => readFileSync(join(folder, name, 'ca.crt'));

/** What the server sees of a client that presents `client` and trusts `ca`; rejects where the client does not trust it. */
async function handshake(host: Made, { ca, client }: { ca: Buffer; client: Made }) {
  const server = createServer({ ...pemOf(host), ca: caOf(), requestCert: true, rejectUnauthorized: false });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  try {
    const seen = once(server, 'secureConnection') as Promise<[TLSSocket]>;
    const { port } = server.address() as AddressInfo;
    const socket = connect({ host: '127.0.0.1', port, servername: 'alpha', ca, ...pemOf(client) });
    await once(socket, 'secureConnect');
    const [connection] = await seen;
    const { authorized } = connection;
    const { subject } = connection.getPeerCertificate();
    const protocol = socket.getProtocol();
    connection.destroy();
    socket.destroy();
    return { authorized, subject: { ...subject }, protocol };
  } finally {
    server.close();
  }
}

const ACME = { name: 'acme', id: 'a1b2c3d4-0000-4000-8000-0123456789ab' };

describe('a private CA', () => {
  it('makes hosts and clients know each other', async () => {
    const pki = store();
    await pki.init();
    const host = await pki.host('alpha', ['10.0.0.1']);
    const client = await pki.client('ci', { role: 'operator', tenant: ACME });
    expect(await handshake(host, { ca: caOf(), client })).toEqual({
      authorized: true,
      subject: { CN: 'ci', OU: 'operator', O: 'acme' },
      protocol: 'TLSv1.3',
    });
  });

  it('is no help to those of another CA, nor to what has expired (controls of the test above)', async () => {
    const pki = store();
    const other = store('other');
    const past = store('pki', Date.now() - 3 * YEAR_MS);
    await Promise.all([pki.init(), other.init()]);
    const host = await pki.host('alpha', []);
    const stranger = await other.client('ci', { role: 'admin' });
    expect((await handshake(host, { ca: caOf(), client: stranger })).authorized).toBe(false);
    await expect(handshake(host, { ca: caOf('other'), client: stranger })).rejects.toMatchObject({
      code: expect.stringMatching(/SELF_SIGNED|UNABLE_TO_VERIFY|SIGNATURE/),
    });
    const expired = await past.client('old', { role: 'admin' });
    expect((await handshake(host, { ca: caOf(), client: expired })).authorized).toBe(false);
    const oldHost = await past.host('alpha-old', []);
    await expect(handshake(oldHost, { ca: caOf(), client: expired })).rejects.toMatchObject({
      code: 'CERT_HAS_EXPIRED',
    });
  });

  it.runIf(spawnSync('openssl', ['version']).status === 0)('satisfies openssl', async () => {
    const pki = store();
    await pki.init();
    const { certificate } = await pki.host('alpha', ['10.0.0.1', '::1']);
    const ca = join(folder, 'pki', 'ca.crt');
    const verify = ['verify', '-x509_strict', '-purpose', 'sslserver', '-CAfile', ca];
    expect(execFileSync('openssl', [...verify, certificate], { encoding: 'utf8' })).toContain('OK');
    const text = execFileSync('openssl', ['x509', '-in', certificate, '-noout', '-ext', 'subjectAltName'], {
      encoding: 'utf8',
    });
    for (const name of ['DNS:alpha', 'DNS:localhost', 'IP Address:127.0.0.1', 'IP Address:10.0.0.1'])
      expect(text).toContain(name);
  });

  it('leaves alone what is there, and closes keys to others', async () => {
    const pki = store();
    const made = [await pki.init(), await pki.host('alpha', [])];
    expect(made.map(({ outcome }) => outcome)).toEqual(['created', 'created']);
    const before = made.map(({ certificate, key }) => [readFileSync(certificate), readFileSync(key)]);
    const again = [await pki.init(), await pki.host('alpha', [])];
    expect(again.map(({ outcome }) => outcome)).toEqual(['unchanged', 'unchanged']);
    expect(again.map(({ certificate, key }) => [readFileSync(certificate), readFileSync(key)])).toEqual(
      before,
    );
    expect(made.map(({ key }) => statSync(key).mode & 0o777)).toEqual([0o600, 0o600]);
    expect(statSync(join(folder, 'pki')).mode & 0o777).toBe(0o700);
    expect(pki.list().map(({ name }) => name)).toEqual(['alpha', 'ca']);
  });

  it('says so where a name has a certificate that says something else, and leaves that alone', async () => {
    const pki = store();
    await pki.init();
    const given = { role: 'viewer', tenant: ACME };
    const made = [
      await pki.host('alpha', ['::1']),
      await pki.client('ci', { role: 'viewer' }),
      await pki.client('ci', given),
    ];
    const before = made.map(({ certificate }) => readFileSync(certificate));
    const taken = expect.objectContaining({ code: 'PKI_NAME_TAKEN', hint: expect.stringMatching(/\S/) });
    const later = { ...ACME, id: ACME.id.replace('a1', 'b2') };
    await expect(pki.client('ci', { role: 'admin' })).rejects.toEqual(taken);
    await expect(pki.client('ci', { ...given, role: 'admin' })).rejects.toEqual(taken);
    await expect(pki.client('ci', { ...given, tenant: later })).rejects.toEqual(taken);
    await expect(pki.host('alpha', ['10.9.9.9'])).rejects.toEqual(taken);
    await expect(pki.client('alpha', { role: 'admin' })).rejects.toEqual(taken);
    // Control: what says the same is there already, however an address is written.
    const again = [
      await pki.host('alpha', ['0:0:0:0:0:0:0:1']),
      await pki.client('ci', { role: 'viewer' }),
      await pki.client('ci', given),
    ];
    expect(again.map(({ outcome }) => outcome)).toEqual(['unchanged', 'unchanged', 'unchanged']);
    expect(made.map(({ certificate }) => readFileSync(certificate))).toEqual(before);
  });

  it('refuses names that are none, without making anything', async () => {
    const pki = store();
    await pki.init();
    const before = readdirSync(join(folder, 'pki'));
    for (const name of ['', 'ca', '../up', 'a/b', '-a', 'x'.repeat(64), 'a b', 'a\n', 'ä'])
      await expect(pki.host(name, []), name).rejects.toMatchObject({ code: 'PKI_NAME_REFUSED' });
    await expect(pki.host('alpha', ['10.0.0.256'])).rejects.toMatchObject({ code: 'PKI_NAME_REFUSED' });
    await expect(pki.client('a/../b', { role: 'admin' })).rejects.toMatchObject({ code: 'PKI_NAME_REFUSED' });
    expect(readdirSync(join(folder, 'pki'))).toEqual(before);
  });

  it('does not sign with a key of another, with one that has expired, or with half of a CA', async () => {
    const pki = store();
    const other = store('other');
    await Promise.all([pki.init(), other.init()]);
    await expect(store('none').host('alpha', [])).rejects.toMatchObject({ code: 'PKI_NO_CA' });
    await expect(store('pki', Date.now() + 11 * YEAR_MS).host('alpha', [])).rejects.toMatchObject({
      code: 'PKI_NO_CA',
    });
    writeFileSync(join(folder, 'pki', 'ca.key'), readFileSync(join(folder, 'other', 'ca.key')));
    await expect(pki.host('alpha', [])).rejects.toMatchObject({ code: 'PKI_NO_CA' });
    rmSync(join(folder, 'pki', 'ca.key'));
    await expect(pki.init()).rejects.toMatchObject({ code: 'PKI_INCOMPLETE' });
  });

  it.runIf(process.geteuid?.() !== 0)('says which folder cannot be used', async () => {
    chmodSync(folder, 0o500);
    await expect(store().init()).rejects.toMatchObject({ code: 'PKI_FAILED' });
    chmodSync(folder, 0o700);
  });
});
