import { once } from 'node:events';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, type TLSSocket } from 'node:tls';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../base/clock.ts';
import { silentLogger as log } from '../base/logger.ts';
import { CertificateStore } from '../pki/certificate-store.ts';
import { socketDirectory } from './api-fixture.ts';
import { ApiServer } from './api-server.ts';
import { requestTo, type TlsCredentials } from './host-address.ts';
import { MemoryService } from './memory-service.ts';
import { TlsFiles } from './tls-files.ts';

let open: AsyncDisposableStack;
let folder: string;
let files: TlsFiles;
let server: ApiServer;
beforeEach(async () => {
  open = new AsyncDisposableStack();
  folder = mkdtempSync(join(tmpdir(), 'us-tls-'));
  open.defer(() => rmSync(folder, { recursive: true }));
  for (const ca of ['one', 'two']) {
    await storeOf(ca).init();
    await storeOf(ca).host('alpha', []);
  }
  use('one');
  const [certificate, key, clientCa] = ['host.crt', 'host.key', 'ca.crt'].map((name) => join(folder, name));
  files = new TlsFiles({
    ...{ address: '127.0.0.1:0', certificate: certificate ?? '', key: key ?? '', clientCa },
  });
  const { path } = open.use(socketDirectory());
  const options = {
    service: new MemoryService(),
    clock,
    log,
    socketPath: join(path, 'api.sock'),
    tls: files,
  };
  server = open.use(await ApiServer.listen(options));
});
afterEach(() => open[Symbol.asyncDispose]());

const storeOf = (ca: string) => new CertificateStore(join(folder, ca), { wallMs: clock.wallMs });

/** Puts the files of this CA where those of the host are. */
function use(ca: string): void {
  copyFileSync(join(folder, ca, 'alpha.crt'), join(folder, 'host.crt'));
  copyFileSync(join(folder, ca, 'alpha.key'), join(folder, 'host.key'));
  copyFileSync(join(folder, ca, 'ca.crt'), join(folder, 'ca.crt'));
}

/** Of this CA, for an admin, who trusts hosts of `trusts`. */
async function adminOf(ca: string, { trusts = ca } = {}): Promise<TlsCredentials> {
  const { certificate, key } = await storeOf(ca).client('ada', { role: 'admin' });
  return {
    ca: readFileSync(join(folder, trusts, 'ca.crt')),
    certificate: readFileSync(certificate),
    key: readFileSync(key),
  };
}

async function statusFor(credentials: TlsCredentials): Promise<number> {
  const request = requestTo({ url: `https://${server.tlsAddress}`, credentials }, { path: '/v1/vms' });
  request.end();
  const [response] = await once(request, 'response');
  response.resume();
  return response.statusCode;
}

/** A connection that lasts, and the ticket to resume its session. */
async function lasting({ ca, certificate, key }: TlsCredentials, session?: Buffer) {
  const [host = '', port] = server.tlsAddress?.split(':') ?? [];
  const socket: TLSSocket = connect({
    ...{ host, port: Number(port), maxVersion: 'TLSv1.2' as const },
    ...(ca !== undefined && { ca }),
    ...(certificate !== undefined && { cert: certificate }),
    ...(key !== undefined && { key }),
    ...(session !== undefined && { session }),
  });
  socket.on('error', () => {});
  await once(socket, 'secureConnect');
  return socket;
}

describe('the TLS files of a host', () => {
  it('are taken over when they are read again: another certificate and another client CA', async () => {
    const [first, second] = [await adminOf('one'), await adminOf('two')];
    expect(await statusFor(first)).toBe(200);
    await expect(statusFor(second)).rejects.toMatchObject({
      code: expect.stringMatching(/VERIFY|SIGNATURE|SELF_SIGNED/),
    });
    use('two');
    // Control: as long as nobody reads them, nothing changes.
    expect(await statusFor(first)).toBe(200);
    expect(files.renew()).toBe('renewed');
    expect(await statusFor(second)).toBe(200);
    expect(await statusFor(await adminOf('one', { trusts: 'two' }))).toBe(401);
    expect(files.renew()).toBe('unchanged');
  });

  it('end what came in by a certificate of a CA that is no longer taken, and resume nothing of it', async () => {
    const socket = await lasting(await adminOf('one'));
    const session = socket.getSession();
    // Control: it could be resumed, with its answer to who somebody is.
    const again = await lasting(await adminOf('one'), session);
    expect(again.isSessionReused()).toBe(true);
    const ended = [socket, again].map((each) => once(each, 'close'));
    const stranger = await lasting({ ca: readFileSync(join(folder, 'one', 'ca.crt')) });
    use('two');
    copyFileSync(join(folder, 'one', 'alpha.crt'), join(folder, 'host.crt'));
    copyFileSync(join(folder, 'one', 'alpha.key'), join(folder, 'host.key'));
    files.renew();
    await Promise.all(ended);
    const resumed = await lasting(await adminOf('one'), session);
    expect(resumed.isSessionReused()).toBe(false);
    expect(await statusFor(await adminOf('one'))).toBe(401);
    expect(stranger.destroyed).toBe(false);
    for (const each of [resumed, stranger]) each.destroy();
  });

  it.each([
    ['a certificate that is none', () => writeFileSync(join(folder, 'host.crt'), 'none')],
    ['a key of another', () => copyFileSync(join(folder, 'two', 'alpha.key'), join(folder, 'host.key'))],
    ['a client CA that is none', () => writeFileSync(join(folder, 'ca.crt'), '')],
    ['a file that is gone', () => rmSync(join(folder, 'host.key'))],
  ])('stay as they were where there is %s', async (_, spoil) => {
    spoil();
    expect(() => files.renew()).toThrow(
      expect.objectContaining({ code: 'API_TLS_UNUSABLE', hint: expect.stringMatching(/\S/) }),
    );
    expect(await statusFor(await adminOf('one'))).toBe(200);
    use('two');
    expect(files.renew()).toBe('renewed');
  });
});
