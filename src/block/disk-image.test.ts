import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { SmallTmpfs } from '../../test/kit/small-tmpfs.ts';
import { MIB } from '../base/units.ts';
import type { DiskSpec } from '../config/vm-spec-schema.ts';
import { prepareDisks } from './image-creation.ts';
import { qcow2Bytes } from './image-fixture.ts';
import { readQcow2Header } from './qcow2-header.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-block-'));
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true });
});

const path = (name: string) => join(folder, name);

function disk(name: string, more: Partial<DiskSpec> = {}): DiskSpec {
  const defaults = { readOnly: false, create: false, cache: 'writeback', unprotectedDisk: false } as const;
  return { path: path(name), format: name.endsWith('raw') ? 'raw' : 'qcow2', ...defaults, ...more };
}

function prepare(...disks: DiskSpec[]): Promise<string[]> {
  return prepareDisks(disks, { mayCreate: true });
}

function put(name: string, bytes: Uint8Array | string): void {
  writeFileSync(path(name), bytes);
}

function withCode(code: string, name: string, message: RegExp = /./) {
  return expect.objectContaining({
    code,
    message: expect.stringMatching(new RegExp(`^${path(name)}: .*${message.source}`)),
    hint: expect.stringMatching(/\S/),
  });
}

/** Everything in the folder: names, sizes and bytes. */
function content(): unknown {
  return readdirSync(folder).map((name) => [
    name,
    statSync(path(name)).mtimeMs,
    readFileSync(path(name), 'hex'),
  ]);
}

describe('an image that is missing', () => {
  const wanted = { create: true, size: 3 * MIB };

  it('is made where the specification says so, of the size and format that it says, for its owner alone', async () => {
    const made = await prepare(disk('a.raw', wanted), disk('b.qcow2', wanted));
    expect(made).toEqual([path('a.raw'), path('b.qcow2')]);
    expect(readdirSync(folder).sort()).toEqual(['a.raw', 'b.qcow2']);
    expect(statSync(path('a.raw'))).toMatchObject({ size: 3 * MIB, blocks: 0 });
    expect(readQcow2Header(readFileSync(path('b.qcow2')))).toMatchObject({
      sizeBytes: 3 * MIB,
      backingFile: undefined,
    });
    for (const name of ['a.raw', 'b.qcow2']) expect(statSync(path(name)).mode & 0o777).toBe(0o600);
    execFileSync('qemu-img', ['check', '-q', '-f', 'qcow2', path('b.qcow2')]);
    expect(await prepare(disk('a.raw', wanted), disk('b.qcow2', wanted))).toEqual([]);
  });

  it('belongs to the user that QEMU runs as', async () => {
    const owner = { uid: 65534, gid: 65534 };
    await prepareDisks([disk('a.raw', wanted), disk('b.qcow2', wanted)], { mayCreate: true, owner });
    for (const name of ['a.raw', 'b.qcow2']) expect(statSync(path(name))).toMatchObject(owner);
  });

  it('stands on another one where the specification says so, and is found to be right at the next start', async () => {
    put('base.raw', Buffer.alloc(MIB, 7));
    const top = disk('top.qcow2', { ...wanted, backing: { path: path('base.raw'), format: 'raw' } });
    await prepare(top);
    expect(readQcow2Header(readFileSync(top.path))).toMatchObject({ backingFile: path('base.raw') });
    expect(await prepare(top)).toEqual([]);
  });

  it('is not made where nobody asked for it, or the VM has used it already: and then no other one is either', async () => {
    const missing = withCode('BLOCK_IMAGE_MISSING', 'b.raw');
    await expect(prepare(disk('a.raw', wanted), disk('b.raw'))).rejects.toEqual(missing);
    await expect(prepareDisks([disk('b.raw', wanted)], { mayCreate: false })).rejects.toEqual(missing);
    expect(readdirSync(folder)).toEqual([]);
  });

  it('leaves nothing behind when it cannot be made', async () => {
    await expect(prepare(disk('none/a.raw', wanted))).rejects.toEqual(
      withCode('BLOCK_CREATE_FAILED', 'none/a.raw'),
    );
    using tmpfs = new SmallTmpfs(MIB);
    const large = {
      ...disk('a.qcow2', { create: true, size: 64 * 1024 * 1024 * MIB }),
      path: join(tmpfs.path, 'a.qcow2'),
    };
    await expect(prepare(large)).rejects.toMatchObject({ code: 'BLOCK_CREATE_FAILED' });
    expect(readdirSync(tmpfs.path)).toEqual([]);
  });

  it('of format qcow2 needs qemu-img, and a raw one does not', async () => {
    vi.stubEnv('PATH', folder);
    await expect(prepare(disk('a.qcow2', wanted))).rejects.toMatchObject({ code: 'BLOCK_TOOL_MISSING' });
    expect(readdirSync(folder)).toEqual([]);
    expect(await prepare(disk('a.raw', wanted))).toEqual([path('a.raw')]);
  });

  it('does not take the place of one that somebody else makes meanwhile', async () => {
    // The other one comes while qemu-img runs.
    put(
      'qemu-img',
      `#!/bin/sh\nPATH=${process.env.PATH}\necho precious > ${path('a.qcow2')}\nexec qemu-img "$@"\n`,
    );
    chmodSync(path('qemu-img'), 0o755);
    vi.stubEnv('PATH', folder);
    await expect(prepare(disk('a.qcow2', wanted))).rejects.toEqual(
      withCode('BLOCK_CREATE_FAILED', 'a.qcow2', /EEXIST/),
    );
    expect(readFileSync(path('a.qcow2'), 'utf8')).toBe('precious\n');
    expect(readdirSync(folder).sort()).toEqual(['a.qcow2', 'qemu-img']);
  });

  it('is given up with its start', async () => {
    put('qemu-img', '#!/bin/sh\nexec sleep 1000\n');
    chmodSync(path('qemu-img'), 0o755);
    vi.stubEnv('PATH', `${folder}:${process.env.PATH}`);
    const abort = new AbortController();
    const making = prepareDisks([disk('a.qcow2', wanted)], { mayCreate: true, signal: abort.signal });
    abort.abort(new Error('given up'));
    await expect(making).rejects.toThrow('given up');
    expect(readdirSync(folder)).toEqual(['qemu-img']);
  });
});

describe('an image that is there', () => {
  it('is taken as it is, with create: true and without', async () => {
    put('a.raw', Buffer.alloc(2 * MIB, 7));
    const before = content();
    for (const create of [true, false])
      expect(await prepare(disk('a.raw', { create, size: 2 * MIB }))).toEqual([]);
    expect(content()).toEqual(before);
  });

  it('that is raw is raw, whatever its guest has written to its beginning', async () => {
    put('a.raw', qcow2Bytes({ backingFile: '/etc/shadow' }));
    truncateSync(path('a.raw'), MIB);
    expect(await prepare(disk('a.raw', { size: MIB }))).toEqual([]);
  });

  it.each<[string, Buffer, Partial<DiskSpec>, string, RegExp]>([
    ['of another size', qcow2Bytes({ sizeBytes: 2 * MIB }), { size: MIB }, 'UNFIT', /2 MiB .*says 1 MiB/],
    ['of another format', Buffer.alloc(MIB), {}, 'UNFIT', /no qcow2 image/],
    ['that is encrypted', qcow2Bytes({ encryption: 1 }), {}, 'UNFIT', /encrypted/],
    ['that is marked as corrupt', qcow2Bytes({ incompatible: 2n }), {}, 'UNFIT', /corrupt/],
    [
      'that names a file of the host',
      qcow2Bytes({ backingFile: '/etc/shadow' }),
      {},
      'FOREIGN',
      /"\/etc\/shadow"/,
    ],
    ['that names a protocol', qcow2Bytes({ backingFile: 'nbd://a/b' }), {}, 'FOREIGN', /nbd:/],
    ['with its data elsewhere', qcow2Bytes({ incompatible: 4n }), {}, 'FOREIGN', /another file/],
  ])('%s is refused and not changed', async (_, bytes, more, code, message) => {
    put('a.qcow2', bytes);
    const before = content();
    const refused = withCode(`BLOCK_IMAGE_${code}`, 'a.qcow2', message);
    await expect(prepare(disk('a.qcow2', more))).rejects.toEqual(refused);
    expect(content()).toEqual(before);
  });

  it('may stand on what the specification names, and on nothing else', async () => {
    put('base.qcow2', qcow2Bytes({}));
    put('top.qcow2', qcow2Bytes({ backingFile: 'base.qcow2' }));
    const on = (name: string) => disk('top.qcow2', { backing: { path: path(name), format: 'qcow2' } });
    expect(await prepare(on('base.qcow2'))).toEqual([]);
    put('other.qcow2', qcow2Bytes({}));
    await expect(prepare(on('other.qcow2'))).rejects.toEqual(withCode('BLOCK_IMAGE_FOREIGN', 'top.qcow2'));
    await expect(prepare(on('none.qcow2'))).rejects.toEqual(withCode('BLOCK_IMAGE_MISSING', 'none.qcow2'));
    put('base.qcow2', qcow2Bytes({ backingFile: '/etc/shadow' }));
    await expect(prepare(on('base.qcow2'))).rejects.toEqual(withCode('BLOCK_IMAGE_FOREIGN', 'base.qcow2'));
    put('top.qcow2', qcow2Bytes({}));
    put('base.qcow2', qcow2Bytes({}));
    await expect(prepare(on('base.qcow2'))).rejects.toEqual(withCode('BLOCK_IMAGE_UNFIT', 'top.qcow2'));
  });

  it('has to be a plain file', async () => {
    execFileSync('mkfifo', [path('fifo.raw')]);
    for (const other of [
      disk('fifo.raw'),
      { ...disk('a.raw'), path: folder },
      { ...disk('a.raw'), path: '/dev/null' },
    ])
      await expect(prepare(other)).rejects.toMatchObject({ code: 'BLOCK_IMAGE_UNFIT' });
  });
});
