import { describe, expect, it } from 'vitest';
import { parseVmSpec } from './vm-spec.ts';

describe('the specification', () => {
  it('of a VM of several hosts names no disk that only one of them has', () => {
    const text = `name: redis
memory: 64MiB
boot: {kernel: vmlinuz}
disks:
  - {path: data.img, format: raw, unprotectedDisk: true}
shadow: {hosts: [a, b]}
`;
    expect(() => parseVmSpec(text, { source: '/vms/redis.yaml' })).toThrow(
      /redis\.yaml:5: .*data\.img is writable, and stays on this host/,
    );
    const copied = text.replace(', unprotectedDisk: true', '');
    expect(parseVmSpec(copied, { source: '/vms/redis.yaml' }).disks).toHaveLength(1);
    const qcow2 = copied.replace('raw', 'qcow2');
    expect(parseVmSpec(qcow2, { source: '/vms/redis.yaml' }).disks).toHaveLength(1);
    const standing = qcow2.replace('qcow2}', 'qcow2, backing: {path: base.img, format: raw}}');
    expect(() => parseVmSpec(standing, { source: '/vms/redis.yaml' })).toThrow(
      /data\.img is writable, and what it stands on stays on this host/,
    );
    const readOnly = text.replace('unprotectedDisk', 'readOnly');
    expect(parseVmSpec(readOnly, { source: '/vms/redis.yaml' }).shadow.hosts).toEqual(['a', 'b']);
  });

  it.each([
    ['[a]', /expected 2 or more/],
    ['[a, a]', /names a host twice/],
    ["[a, 'b c']", /redis.yaml:4: shadow.hosts\[1\]: no name of a host/],
    ['all', /expected auto, or a list of hosts/],
    ['{a: b}', /expected auto, or a list of hosts/],
  ])('names at least two hosts, each once: not %s', (hosts, problem) => {
    const text = `name: redis\nmemory: 64MiB\nboot: {kernel: vmlinuz}\nshadow: {hosts: ${hosts}}\n`;
    expect(() => parseVmSpec(text, { source: 'redis.yaml' })).toThrow(problem);
  });

  it('lets nobody ask for a restart elsewhere where there is no elsewhere', () => {
    const text = 'name: redis\nmemory: 64MiB\nboot: {kernel: vmlinuz}\nshadow: {restartElsewhere: true}\n';
    expect(() => parseVmSpec(text, { source: 'redis.yaml' })).toThrow(
      /:4: shadow.restartElsewhere: is about/,
    );
  });

  it('lets nobody ask for a restart elsewhere from disks that may be older there', () => {
    const text =
      'name: redis\nmemory: 64MiB\nboot: {kernel: vmlinuz}\ndisks: [{path: /d.raw, format: raw}]\n' +
      'shadow: {hosts: [a, b], restartElsewhere: true}\n';
    expect(() => parseVmSpec(text, { source: 'redis.yaml' })).toThrow(
      /:5: shadow.restartElsewhere: contradicts disks/,
    );
    const readOnly = text.replace('raw}', 'raw, readOnly: true}');
    expect(parseVmSpec(readOnly, { source: 'redis.yaml' }).shadow.restartElsewhere).toBe(true);
  });

  it('may leave the choice among all hosts open, and say what to avoid', () => {
    const text =
      'name: redis\nmemory: 64MiB\nboot: {kernel: vmlinuz}\nshadow: {hosts: auto, antiAffinity: [web, db]}\n';
    expect(parseVmSpec(text, { source: 'redis.yaml' }).shadow).toMatchObject({
      hosts: 'auto',
      antiAffinity: ['web', 'db'],
    });
    const bad = text.replace('db', "'D B'");
    expect(() => parseVmSpec(bad, { source: 'redis.yaml' })).toThrow(
      /antiAffinity\[1\]: expected the name of/,
    );
  });
});
