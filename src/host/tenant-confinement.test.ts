import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Limits, limitsSchema } from '../api/access-resources.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import { confine } from './tenant-confinement.ts';

let folder: string;
beforeEach(() => {
  folder = realpathSync(mkdtempSync(join(tmpdir(), 'us-confine-')));
  for (const name of ['mine/deep', 'mine-too', 'outside']) mkdirSync(join(folder, name), { recursive: true });
  for (const name of ['mine/vmlinuz', 'mine/deep/disk.img', 'outside/secret', 'mine-too/vmlinuz'])
    writeFileSync(join(folder, name), name);
});
afterEach(() => rmSync(folder, { recursive: true }));

const limits = (more: Partial<Limits> = {}): Limits => ({
  ...limitsSchema.parse({}),
  directories: [join(folder, 'mine')],
  ...more,
});

/** What is refused of a specification; undefined when nothing is. */
function refusal(more: string, given: Limits = limits()): string[] | undefined {
  const boot = more.includes('boot:') ? '' : 'boot: {kernel: vmlinuz}\n';
  const text = `name: a\nmemory: 64MiB\n${boot}${more}\n`;
  const spec = parseVmSpec(text, { source: 'specification', directory: join(folder, 'mine') });
  try {
    confine(spec, given);
    return undefined;
  } catch (thrown) {
    expect(thrown).toMatchObject({ code: 'HOST_SPEC_REFUSED', hint: expect.stringMatching(/\S/) });
    return (thrown as { facts: { problems: string[] } }).facts.problems;
  }
}

const kernel = (path: string, given?: Limits) => refusal(`boot: {kernel: ${JSON.stringify(path)}}`, given);
const disk = (path: string, more = '') =>
  refusal(`disks: [{path: ${JSON.stringify(path)}, format: qcow2, readOnly: true${more}}]`);

describe('the specification of a tenant', () => {
  it('may name files below its directories, also such as are to be made', () => {
    expect(kernel('vmlinuz')).toBeUndefined();
    expect(kernel(join(folder, 'mine/deep/../vmlinuz'))).toBeUndefined();
    expect(disk('deep/disk.img')).toBeUndefined();
    expect(
      refusal('disks: [{path: new.img, format: raw, create: true, size: 1MiB, unprotectedDisk: true}]'),
    ).toBeUndefined();
    expect(disk('not/there/yet.img')).toBeUndefined();
  });

  it('may name no file at all where it has no directory', () => {
    expect(kernel('vmlinuz', limits({ directories: [] }))).toHaveLength(1);
    expect(kernel('vmlinuz', limits({ directories: [join(folder, 'gone')] }))).toHaveLength(1);
  });

  it.each<[string, (folder: string) => string]>([
    ['an absolute path', (at) => `${at}/outside/secret`],
    ['a path that climbs', () => '../outside/secret'],
    ['a path that climbs from below', () => 'deep/../../outside/secret'],
    ['a directory whose name begins alike', () => '../mine-too/vmlinuz'],
    ['the directory itself', (at) => `${at}/mine`],
    ['a directory below it', () => 'deep'],
    ['a link to a file outside', (at) => link(at, 'outside/secret', 'mine/link')],
    [
      'a link to a link',
      (at) => {
        link(at, 'outside/secret', 'mine/first');
        return link(at, 'mine/first', 'mine/second');
      },
    ],
    ['a link to a folder outside', (at) => `${link(at, 'outside', 'mine/folder')}/secret`],
    ['a link to what does not exist', (at) => link(at, 'outside/new', 'mine/dangling')],
    ['a file to be made behind a link', (at) => `${link(at, 'outside', 'mine/folder')}/new`],
    [
      'a file to be made behind a link to what does not exist',
      (at) => `${link(at, 'nowhere', 'mine/folder')}/new`,
    ],
    ['a link that goes round', (at) => link(at, 'mine/round', 'mine/round')],
    ['a device', () => '/dev/null'],
    ['a process of the host', () => '/proc/self/environ'],
    ['a file below a file', () => 'vmlinuz/below'],
    ['a name that is too long', () => 'a'.repeat(300)],
  ])('is refused with %s, as kernel, initrd, disk, backing and boot disk alike', (_, pathIn) => {
    const path = pathIn(folder);
    const quoted = JSON.stringify(path);
    const found = [
      kernel(path),
      refusal(`boot: {kernel: vmlinuz, initrd: ${quoted}}`),
      disk(path),
      disk('deep/disk.img', `, backing: {path: ${quoted}, format: raw}`),
      refusal(`boot: {disk: {path: ${quoted}, format: raw, readOnly: true}}`),
    ];
    expect(found.map((problems) => problems?.length)).toEqual([1, 1, 1, 1, 1]);
  });

  it('learns nothing from a refusal of what there is outside', () => {
    const shapeOf = (path: string) => kernel(path)?.map((problem) => problem.replaceAll(path, 'PATH'));
    const there = shapeOf(`${folder}/outside/secret`);
    expect(shapeOf(`${folder}/outside/not-there`)).toEqual(there);
    expect(shapeOf(`${folder}/not/there`)).toEqual(there);
    expect(shapeOf('/etc/shadow')).toEqual(there);
    link(folder, 'outside/secret', 'mine/link');
    expect(kernel('link')?.join()).not.toContain('outside');
  });

  it('is refused with a pipe in its own directory', () => {
    const path = join(folder, 'mine/pipe');
    execFileSync('mkfifo', [path]);
    expect(kernel(path)).toHaveLength(1);
  });

  it('never gets out, whatever its path is put together from', () => {
    link(folder, 'outside', 'mine/out');
    link(folder, 'mine', 'mine/in');
    const step = fc.constantFrom(
      '..',
      '.',
      'deep',
      'out',
      'in',
      'secret',
      'vmlinuz',
      'disk.img',
      'outside',
      'mine',
      '',
      'new',
    );
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 8 }), fc.boolean(), (steps, absolute) => {
        const path = `${absolute ? `${folder}/mine/` : ''}${steps.join('/')}`;
        if (path === '') return;
        if (kernel(path) !== undefined) return;
        const spec = parseVmSpec(`name: a\nmemory: 64MiB\nboot: {kernel: ${JSON.stringify(path)}}`, {
          ...{ source: 's', directory: join(folder, 'mine') },
        });
        const named = spec.boot.kind === 'kernel' ? spec.boot.kernel : '';
        const real = resolvedByTheKernel(named);
        // It is below the directory, or it does not exist.
        expect(real === undefined || real.startsWith(`${folder}/mine/`)).toBe(true);
      }),
      { numRuns: 2000 },
    );
  });

  it.each([
    ['another binary', 'qemu: {binary: /bin/sh}', 'qemu.binary'],
    ['another binary by a path', 'qemu: {binary: ./qemu-system-x86_64}', 'qemu.binary'],
    ['arguments of its own', "qemu: {extraArgs: ['-virtfs', 'local,path=/']}", 'qemu.extraArgs'],
    ['another user', 'qemu: {user: root}', 'qemu.user'],
    ['TAP', 'nics: [{uplink: {kind: tap, device: us-x}}]', 'nics[0].uplink.kind'],
    [
      'a privileged port',
      'nics: [{uplink: {kind: passt, forward: [{hostPort: 22, guestPort: 22}]}}]',
      'hostPort 22',
    ],
    [
      'the last privileged port',
      'nics: [{uplink: {kind: passt, forward: [{hostPort: 1023, guestPort: 22}]}}]',
      '1023',
    ],
  ])('is refused with %s', (_, said, named) => {
    expect(refusal(said)).toEqual([expect.stringContaining(named)]);
  });

  it('may have what its policy allows', () => {
    expect(
      refusal('nics: [{uplink: {kind: passt, forward: [{hostPort: 1024, guestPort: 22}]}}]'),
    ).toBeUndefined();
    expect(refusal('nics: [{uplink: {kind: none}}]')).toBeUndefined();
    const tap = 'nics: [{uplink: {kind: tap, device: us-x}}]';
    expect(refusal(tap, limits({ uplinks: ['tap'] }))).toBeUndefined();
    expect(refusal('nics: [{uplink: {kind: none}}]', limits({ uplinks: [] }))).toHaveLength(1);
  });

  it('is told all that is wrong at once', () => {
    expect(
      refusal(
        "boot: {kernel: /etc/passwd}\nqemu: {binary: sh, extraArgs: ['-x']}\nnics: [{uplink: {kind: tap, device: x}}]",
      ),
    ).toHaveLength(4);
  });
});

/** Where opening it would end; undefined where there is nothing to open. */
function resolvedByTheKernel(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch {
    return undefined;
  }
}

/** `to` and `name` begin at `at`. Returns the path of the link. */
function link(at: string, ...[to, name]: [to: string, name: string]): string {
  symlinkSync(join(at, to), join(at, name));
  return join(at, name);
}
