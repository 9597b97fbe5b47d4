import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ConfigError } from './config-error.ts';
import { loadVmSpec, parseVmSpec } from './vm-spec.ts';
import { VM_SPEC_EXAMPLE } from './vm-spec-example.ts';

const SMALL = 'name: redis-demo\nmemory: 256MiB\nboot:\n  kernel: vmlinuz\n';

const DISK_DEFAULTS = { readOnly: false, create: false, cache: 'writeback', unprotectedDisk: false };

function parse(text: string) {
  return parseVmSpec(text, { source: 'demo.yaml', directory: '/specs' });
}

function refusal(text: string): ConfigError {
  try {
    parse(text);
  } catch (error) {
    if (error instanceof ConfigError) return error;
    throw error;
  }
  throw new Error('the specification was accepted');
}

/** Problems without the name of the source. */
function problems(text: string): string[] {
  const error = refusal(text);
  expect(error.code).toBe('CONFIG_INVALID');
  return error.message.split('\n').map((line) => line.replace('demo.yaml:', ''));
}

describe('a specification that is right', () => {
  test('needs a name, memory and something to boot; the rest has defaults', () => {
    expect(parse(SMALL)).toEqual({
      name: 'redis-demo',
      vcpus: 1,
      memoryBytes: 256 * 1024 * 1024,
      accel: 'auto',
      machine: 'q35',
      boot: { kind: 'kernel', kernel: '/specs/vmlinuz', initrd: undefined, cmdline: '' },
      disks: [],
      nics: [],
      console: true,
      agent: true,
      qemu: { binary: 'qemu-system-x86_64', extraArgs: [] },
      shadow: {
        enabled: true,
        maxIntervalMs: 100,
        pauseShare: 0.3,
        pauseBurstMs: 20,
        dirtyPagesMax: 8192,
        epochsInFlightMax: 4,
        hangTimeoutMs: 2000,
        dirtyLog: 'auto',
        standbyCpuShare: 0.01,
        restartElsewhere: false,
      },
      clock: { syncIntervalMs: 1000, errorMaxMs: 40 },
      termination: 'remove',
      shutdownTimeoutMs: 10_000,
    });
  });

  test('is shown in full by the example, whose values are the defaults', () => {
    const example = parse(VM_SPEC_EXAMPLE);
    const { shadow, clock, qemu } = parse(SMALL);
    expect(example).toMatchObject({ shadow, clock, qemu });
    expect(example.nics.map(({ uplink }) => uplink.kind)).toEqual(['tap', 'passt']);
  });

  test('gives a nic the same address at every start and another one to its neighbour', () => {
    const text = `${SMALL}nics: [{uplink: {kind: none}}, {uplink: {kind: none}}]\n`;
    const [first, second] = parse(text).nics.map(({ mac }) => mac);
    expect(first).toMatch(/^52:54:00(:[0-9a-f]{2}){3}$/);
    expect(first).not.toBe(second);
    expect(parse(text).nics[0]?.mac).toBe(first);
  });

  test('takes a disk when there is no shadow', () => {
    const spec = parse(
      'name: a\nmemory: 1G\nboot: {disk: {path: a.qcow2, format: qcow2}}\nshadow: {enabled: false}\n',
    );
    expect(spec.boot).toEqual({
      kind: 'disk',
      disk: { path: '/specs/a.qcow2', format: 'qcow2', ...DISK_DEFAULTS },
    });
  });

  test('may have disks beside its shadow that are only read, or whose content may be ahead of memory', () => {
    const lines =
      '  - {path: a.raw, format: raw, readOnly: true}\n' +
      '  - {path: b.qcow2, format: qcow2, backing: {path: c.raw, format: raw}, unprotectedDisk: true, size: 1GiB}\n';
    expect(parse(`${SMALL}disks:\n${lines}`).disks).toEqual([
      { path: '/specs/a.raw', format: 'raw', ...DISK_DEFAULTS, readOnly: true },
      {
        path: '/specs/b.qcow2',
        format: 'qcow2',
        ...DISK_DEFAULTS,
        unprotectedDisk: true,
        size: 1024 * 1024 * 1024,
        backing: { path: '/specs/c.raw', format: 'raw' },
      },
    ]);
  });
});

describe('how a VM is measured', () => {
  test.each([
    ['interval: 1s', 1000],
    ['interval: 100ms', 100],
    ['interval: 60s', 60_000],
    ['interval: 1m', 60_000],
    ['{}', 1000],
  ])('may be %s', (text, intervalMs) => {
    const telemetry = text === '{}' ? '{}' : `{${text}}`;
    expect(parse(`${SMALL}telemetry: ${telemetry}\n`).telemetry).toEqual({ intervalMs });
  });

  test.each([
    ['{interval: 99ms}', 'telemetry.interval: expected 100ms to 60s'],
    ['{interval: 61s}', 'telemetry.interval: expected 100ms to 60s'],
    ['{interval: 1}', 'telemetry.interval: expected string, not 1'],
    ['{interval: fast}', 'telemetry.interval: "fast" is no time such as 1s or 250ms'],
    ['{interval: -1s}', 'telemetry.interval: "-1s" is no time such as 1s or 250ms'],
    ['{intervall: 1s}', 'telemetry.intervall: unknown'],
    ['7', 'telemetry: expected'],
  ])('cannot be %s', (telemetry, problem) => {
    expect(problems(`${SMALL}telemetry: ${telemetry}\n`)[0]).toContain(problem);
  });
});

describe('what is kept ready for a VM', () => {
  test('follows the forecast by a policy that has a name, or by one of its own', () => {
    expect(parse(`${SMALL}forecast: {}\nallocation: {}\n`)).toMatchObject({
      forecast: { horizonMs: 3_600_000 },
      allocation: {
        mode: 'recommend',
        preAllocationThreshold: 0.1,
        scalingPolicy: { quantile: 0.95, margin: 0.2, lowerAfterMs: 600_000 },
      },
    });
    const own =
      'allocation: {mode: auto, scalingPolicy: {quantile: 0.9, lowerAfter: 2m}, cpu: {min: 0.25, max: 2}, net: {max: 10MiB}}';
    expect(parse(`${SMALL}${own}\n`).allocation).toEqual({
      mode: 'auto',
      preAllocationThreshold: 0.1,
      scalingPolicy: { quantile: 0.9, margin: 0.2, lowerAfterMs: 120_000 },
      cpu: { min: 250, max: 2000 },
      net: { max: 10 * 1024 * 1024 },
    });
  });

  test.each([
    ['forecast: {horizon: 4m}', 'forecast.horizon: expected 5m to 24h'],
    ['forecast: {horizon: 2d}', 'forecast.horizon: expected 5m to 24h'],
    ['forecast: {horizon: soon}', 'forecast.horizon: "soon" is no time such as 5m'],
    ['allocation: {mode: maybe}', 'allocation.mode: expected'],
    ['allocation: {preAllocationThreshold: 2}', 'allocation.preAllocationThreshold: '],
    ['allocation: {preAllocationThreshold: .nan}', 'allocation.preAllocationThreshold: '],
    ['allocation: {scalingPolicy: bold}', 'allocation.scalingPolicy: expected eager, balanced, thrifty, or'],
    ['allocation: {scalingPolicy: {quantile: 1}}', 'allocation.scalingPolicy.quantile: '],
    [
      'allocation: {scalingPolicy: {lowerAfter: 1s}}',
      'allocation.scalingPolicy.lowerAfter: expected 1m to 24h',
    ],
    ['allocation: {cpu: {min: 2, max: 1}}', 'allocation.cpu.min: is more than max'],
    ['allocation: {cpu: {min: 0}}', 'allocation.cpu.min: '],
    ['allocation: {disk: {max: fast}}', 'allocation.disk.max: expected a size such as 256MiB'],
    ['allocation: {gpu: 1}', 'allocation.gpu: unknown'],
  ])('cannot be %s', (text, problem) => {
    expect(problems(`${SMALL}${text}\n`)[0]).toContain(problem);
  });
});

describe('a specification that is wrong', () => {
  test('names the field and the line', () => {
    expect(problems(`${SMALL}nics:\n  - uplink:\n      kind: vlan\n`)).toEqual([
      '7: nics[0].uplink.kind: expected one of tap, passt, none',
    ]);
  });

  test('lists all problems, in the order of the lines', () => {
    const text = 'name: Redis\nvcpus: 65\nmemory: lots\naccel: xen\nboot: {kernel: 7}\nconsole: "yes"\n';
    expect(problems(text)).toEqual([
      '1: name: expected 1 to 40 of a-z 0-9 -, not beginning with -',
      '2: vcpus: expected 64 or less',
      '3: memory: "lots" is no size such as 256MiB or 4G',
      '4: accel: expected one of auto, kvm, tcg',
      '5: boot.kernel: expected string, not 7',
      '6: console: expected boolean, not "yes"',
    ]);
  });

  test('names unknown fields and what was probably meant', () => {
    const text = `${SMALL}vcpu: 2\nshadow:\n  pause_share: 0.2\n  frobnicate: 1\nnics:\n  - uplink: {kind: tap, device: a, brige: b}\n`;
    expect(problems(text)).toEqual([
      '5: vcpu: unknown field (did you mean vcpus?)',
      '7: shadow.pause_share: unknown field (did you mean pauseShare?)',
      expect.stringMatching(
        /^8: shadow\.frobnicate: unknown field \(known here: enabled, hosts, restartElsewhere, maxIntervalMs/,
      ),
      '10: nics[0].uplink.brige: unknown field (did you mean bridge?)',
    ]);
  });

  test('says what is missing, at the line of what should hold it', () => {
    expect(problems('name: a\nboot:\n  initrd: x\nnics:\n  - uplink:\n      kind: tap\n')).toEqual([
      '1: memory: is missing',
      '2: boot: expected either kernel or disk',
      '5: nics[0].uplink.device: is missing',
    ]);
  });

  test.each([
    ['boot: {kernel: a, disk: {path: b, format: raw}}', '3: boot.kernel: contradicts disk'],
    [
      'nics: [{uplink: {kind: tap, device: a, address: 10.0.0.1/24, bridge: b}}]',
      '3: nics[0].uplink.bridge: contradicts address',
    ],
    [
      'nics: [{uplink: {kind: tap, device: a, address: 10.0.0.1}}]',
      '3: nics[0].uplink.address: expected an address',
    ],
    [
      'nics: [{mac: "52:54:00:00:00:01", uplink: {kind: none}}, {mac: "52:54:00:00:00:01", uplink: {kind: none}}]',
      '3: nics[1].mac: 52:54:00:00:00:01 is taken',
    ],
    ['nics: [{mac: "53:54:00:00:00:01", uplink: {kind: none}}]', '3: nics[0].mac: is a multicast address'],
    [
      'nics: [{uplink: {kind: passt, forward: [{hostPort: 1, guestPort: 2}, {hostPort: 1, guestPort: 3}]}}]',
      '3: nics[0].uplink.forward[1].hostPort: 1 is forwarded already',
    ],
    [
      'nics: [{uplink: {kind: tap, device: "a-name-of-16-byte"}}]',
      '3: nics[0].uplink.device: no name of a network device',
    ],
    [
      'shadow: {maxIntervalMs: 500, hangTimeoutMs: 400}',
      '3: shadow.hangTimeoutMs: expected more than maxIntervalMs',
    ],
    [
      'shadow: {hangTimeoutMs: 400, restartTimeoutMs: 300}',
      '3: shadow.restartTimeoutMs: expected at least hangTimeoutMs: nothing is lost that is not silent yet',
    ],
    ['shadow: {pauseShare: 1}', '3: shadow.pauseShare: expected 0.9 or less'],
    ['shadow:', '3: shadow: expected object, not null'],
    ['machine: microvm', '3: machine: expected q35'],
    ['vcpus: 1.5', '3: vcpus: expected a whole number, not 1.5'],
  ])('refuses %s', (line, problem) => {
    const boot = line.startsWith('boot') ? '' : 'boot: {kernel: a}\n';
    expect(problems(`name: a\nmemory: 64M\n${line}\n${boot}`)[0]).toContain(problem);
  });

  test.each([
    ['16MiB', 'expected 32 MiB to 1 TiB'],
    ['2048GiB', 'expected 32 MiB to 1 TiB'],
    ['33558528', 'expected a whole number of MiB'],
    ['64 parsecs', 'is no size'],
  ])('refuses a memory of %s', (memory, problem) => {
    expect(problems(`name: a\nboot: {kernel: a}\nmemory: ${memory}\n`)).toEqual([
      expect.stringContaining(problem),
    ]);
  });

  test('refuses a field that is given twice, at the line of the second', () => {
    expect(problems(`${SMALL}name: other\n`)).toEqual(['5: Map keys must be unique']);
  });

  test.each(['', '- a list\n', 'just text', 'a: [1,', '\0'])('refuses %j without falling over', (text) => {
    expect(problems(text).length).toBeGreaterThan(0);
  });

  test('refuses a field given twice inside of another, however many others there are', () => {
    expect(problems(`${SMALL}  kernel: other\n`)).toEqual(['5: Map keys must be unique']);
    const many = Array.from({ length: 80_000 }, (_, index) => `k${index}: 1\n`).join('');
    expect(problems(`${SMALL}${many}k7: 1\n`)).toEqual(['80005: Map keys must be unique']);
  });

  test('tells a hundred problems and no more, in the order of lines', () => {
    const many = Array.from({ length: 80_000 }, (_, index) => `k${index}: 1\n`).join('');
    const told = problems(`${SMALL}${many}`);
    expect(told).toHaveLength(100);
    expect(told[99]).toMatch(/^104: k99: unknown field/);
    expect(problems(`${SMALL}nics: [${'1, '.repeat(10_000)}]\n`).length).toBeLessThanOrEqual(100);
    expect(problems('['.repeat(100) + ']]'.repeat(1000)).length).toBeLessThanOrEqual(100);
  });

  test.each([
    ['name: &n [*n]', '1: name: expected string, not a list'],
    ['name: &n {a: *n}', '1: name: expected string, not a map'],
    ['name: &n [x]\nvcpus: *n', '2: vcpus: expected number, not a list'],
  ])('refuses a value that holds itself or stands elsewhere: %s', (lines, problem) => {
    expect(problems(`${lines}\nmemory: 64M\nboot: {kernel: a}\n`)).toContainEqual(problem);
  });

  test('refuses aliases that multiply', () => {
    const lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]'];
    for (let i = 1; i < 9; i += 1)
      lines.push(
        `a${i}: &a${i} [${Array(10)
          .fill(`*a${i - 1}`)
          .join(', ')}]`,
      );
    expect(problems(lines.join('\n'))).toEqual(['1: specification: too many aliases']);
  });

  test.each([
    ['size: 0', 'disks[0].size: expected 1 MiB to 64 TiB'],
    ['size: 65TiB', 'disks[0].size: expected 1 MiB to 64 TiB'],
    ['size: 1048577', 'disks[0].size: expected a whole number of MiB'],
    ['size: large', 'disks[0].size: "large" is no size'],
    ['create: true', 'disks[0].create: needs a size'],
    ['create: true, size: 1GiB, readOnly: true', 'disks[0].create: contradicts readOnly'],
    ['backing: {path: b, format: raw}', 'disks[0].backing: contradicts format'],
    ['backing: b', 'disks[0].backing: expected object, not "b"'],
    ['serial: "a,b"', 'disks[0].serial: expected 1 to 20 of'],
    ['cache: unsafe', 'disks[0].cache: expected one of writeback, none'],
    ['unprotectedDisk: "yes"', 'disks[0].unprotectedDisk: expected boolean, not "yes"'],
    ['unprotected: true', 'disks[0].unprotected: unknown field (did you mean unprotectedDisk?)'],
  ])('refuses a disk with %s', (field, problem) => {
    expect(problems(`${SMALL}disks: [{path: a, format: raw, ${field}}]\n`)[0]).toContain(`5: ${problem}`);
  });

  test('refuses a disk that is given twice', () => {
    const one = '{path: a, format: raw, readOnly: true}';
    expect(problems(`${SMALL}disks: [${one}, ${one}]\n`)).toEqual([
      '5: disks[1].path: a is a disk of this VM already',
    ]);
  });

  test('refuses a disk in epochs past the page cache, naming each disk and its line', () => {
    const lines =
      'name: a\nmemory: 64M\nboot: {disk: {path: a.raw, format: raw, cache: none}}\ndisks:\n' +
      '  - {path: b.raw, format: raw, cache: none, unprotectedDisk: true}\n  - {path: c.raw, format: raw}\n' +
      '  - {path: d.raw, format: raw, cache: none}\n';
    const error = refusal(lines);
    expect(error.code).toBe('CONFIG_UNPROTECTABLE');
    expect(error.message.split('\n')).toEqual([
      expect.stringMatching(/^demo\.yaml:3: boot\.disk\.cache: none is not for a disk that commits/),
      expect.stringMatching(/^demo\.yaml:7: disks\[2\]\.cache: none is not for a disk that commits/),
    ]);
    expect(error.hint).toContain('unprotectedDisk: true');
    expect(parse(lines.replaceAll(', cache: none', '')).disks).toHaveLength(3);
    expect(parse(`${lines}shadow: {enabled: false}\n`).disks).toHaveLength(3);
  });
});

describe('a specification on disk', () => {
  let directory: string;
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), 'us-config-'));
  });
  afterAll(() => rmSync(directory, { recursive: true }));

  test('finds its files beside itself', () => {
    writeFileSync(join(directory, 'vmlinuz'), '');
    writeFileSync(join(directory, 'good.yaml'), SMALL);
    expect(loadVmSpec(join(directory, 'good.yaml')).boot).toMatchObject({
      kernel: join(directory, 'vmlinuz'),
    });
  });

  test('names the files that do not exist', () => {
    const path = join(directory, 'bad.yaml');
    writeFileSync(path, 'name: a\nmemory: 64M\nboot: {kernel: gone, initrd: /nowhere/initrd}\n');
    expect(() => loadVmSpec(path)).toThrow(
      expect.objectContaining({
        code: 'CONFIG_FILE_MISSING',
        message: `${path}: boot.kernel: ${directory}/gone does not exist\n${path}: boot.initrd: /nowhere/initrd does not exist`,
      }),
    );
  });

  test('need not find a disk that is to be made, but what that stands on', () => {
    const path = join(directory, 'disks.yaml');
    const text = `${SMALL}shadow: {enabled: false}\ndisks:\n  - {path: none, format: qcow2, create: true, size: 1GiB`;
    writeFileSync(path, `${text}}\n`);
    expect(loadVmSpec(path).disks).toHaveLength(1);
    writeFileSync(path, `${text}, backing: {path: base, format: raw}}\n  - {path: gone, format: raw}\n`);
    expect(() => loadVmSpec(path)).toThrow(
      expect.objectContaining({
        code: 'CONFIG_FILE_MISSING',
        message: `${path}: disks[0].backing.path: ${directory}/base does not exist\n${path}: disks[1].path: ${directory}/gone does not exist`,
      }),
    );
  });

  test('that does not exist is told apart from one that is wrong', () => {
    expect(() => loadVmSpec(join(directory, 'none.yaml'))).toThrow(
      expect.objectContaining({ code: 'CONFIG_NOT_FOUND' }),
    );
  });
});
