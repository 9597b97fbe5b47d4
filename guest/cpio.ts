import { assert } from '../src/base/assert.ts';

export type CpioEntry =
  | { readonly kind: 'directory'; readonly path: string }
  | { readonly kind: 'file'; readonly path: string; readonly mode: number; readonly data: Buffer }
  | { readonly kind: 'symlink'; readonly path: string; readonly target: string };

const TYPE_DIRECTORY = 0o040000;
const TYPE_FILE = 0o100000;
const TYPE_SYMLINK = 0o120000;
const TRAILER = 'TRAILER!!!';

/**
 * An archive in the "newc" format, the one the kernel unpacks as initramfs (kernel documentation,
 * driver-api/early-userspace/buffer-format). Paths are relative; missing parent directories are added.
 * Equal entries in any order give equal bytes: owner is root, time is 0, order is by path.
 */
export function writeCpio(entries: readonly CpioEntry[]): Buffer {
  const byPath = new Map<string, CpioEntry>();
  for (const entry of entries) {
    assert(/^[^/]/.test(entry.path) && !entry.path.endsWith('/'), `relative cpio path: ${entry.path}`);
    assert(!byPath.has(entry.path), `cpio path given once: ${entry.path}`);
    byPath.set(entry.path, entry);
  }
  for (const { path } of entries) {
    for (let end = path.indexOf('/'); end !== -1; end = path.indexOf('/', end + 1)) {
      const parent = path.slice(0, end);
      const known = byPath.get(parent);
      assert(known === undefined || known.kind === 'directory', `cpio parent is a directory: ${parent}`);
      if (known === undefined) byPath.set(parent, { kind: 'directory', path: parent });
    }
  }
  // A parent is a prefix of its children, so the plain order puts it first, as the kernel needs it.
  const sorted = [...byPath.values()].sort((a, b) => (a.path < b.path ? -1 : 1));
  const parts = sorted.flatMap((entry, index) => writeEntry(entry, index + 1));
  parts.push(...writeRecord({ path: TRAILER, inode: 0, mode: 0, data: Buffer.alloc(0) }));
  return Buffer.concat(parts);
}

function writeEntry(entry: CpioEntry, inode: number): Buffer[] {
  const { path } = entry;
  switch (entry.kind) {
    case 'directory':
      return writeRecord({ path, inode, mode: TYPE_DIRECTORY | 0o755, data: Buffer.alloc(0) });
    case 'file':
      return writeRecord({ path, inode, mode: TYPE_FILE | entry.mode, data: entry.data });
    case 'symlink':
      return writeRecord({ path, inode, mode: TYPE_SYMLINK | 0o777, data: Buffer.from(entry.target) });
  }
}

function writeRecord(record: { path: string; inode: number; mode: number; data: Buffer }): Buffer[] {
  const name = Buffer.from(`${record.path}\0`);
  const links = 1;
  const [owner, group, time, device, checksum] = [0, 0, 0, 0, 0];
  const fields = [
    ...[record.inode, record.mode, owner, group, links, time, record.data.length],
    ...[device, device, device, device, name.length, checksum],
  ];
  const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`;
  return [...padded(Buffer.concat([Buffer.from(header), name])), ...padded(record.data)];
}

/** Header with name, and data, each end on a multiple of 4 bytes. */
function padded(bytes: Buffer): Buffer[] {
  return [bytes, Buffer.alloc(-bytes.length & 3)];
}
