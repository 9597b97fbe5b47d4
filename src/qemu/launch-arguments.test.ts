import { expect, test } from 'vitest';
import { parseVmSpec } from '../config/vm-spec.ts';
import { type InstancePaths, instancePaths } from './instance-paths.ts';
import { buildArguments } from './launch-arguments.ts';

const SPEC = parseVmSpec(
  `name: redis-demo
memory: 1GiB
vcpus: 2
boot: {kernel: vmlinuz, initrd: initrd, cmdline: "console=ttyS0, quiet"}
nics: [{mac: "52:54:00:00:00:01", uplink: {kind: none}}]
qemu: {extraArgs: [-device, virtio-rng-pci]}
`,
  { source: 'demo.yaml', directory: '/specs' },
);

function paths(instance: number): InstancePaths {
  return instancePaths({
    runDirectory: '/run/us',
    memoryDirectory: '/dev/shm',
    vm: 'redis-demo',
    instance,
    nicCount: SPEC.nics.length,
  });
}

test('a standby differs from its primary in its paths and in waiting for device state, in nothing else', () => {
  const primary = buildArguments(SPEC, { role: 'primary', paths: paths(1), accel: 'tcg' });
  const standby = buildArguments(SPEC, { role: 'standby', paths: paths(2), accel: 'tcg' });
  const withoutPaths = (args: string[]) =>
    args.map((arg) =>
      arg.replaceAll(/\/run\/us\/\d/g, 'DIRECTORY').replaceAll(/redis-demo-\d\.ram/g, 'MEMORY'),
    );
  expect(withoutPaths(standby).join(' ').replace('-incoming defer ', '')).toBe(
    withoutPaths(primary).join(' '),
  );
  expect(standby.join(' ')).not.toContain('/run/us/1');
});

test('the command line is the one that was proven', () => {
  const line = buildArguments(SPEC, { role: 'primary', paths: paths(1), accel: 'tcg' }).join(' ');
  for (const part of [
    '-nodefaults -no-user-config -display none -vga none',
    '-machine q35,memory-backend=ram,suppress-vmdesc=on',
    '-global migration.send-configuration=off',
    '-smp 2 -m 1024M -object memory-backend-file,id=ram,size=1024M,mem-path=/dev/shm/us-redis-demo-1.ram,share=on',
    '-action shutdown=pause,panic=pause',
    '-kernel /specs/vmlinuz -initrd /specs/initrd -append console=ttyS0, quiet',
    '-netdev stream,id=nic0,server=off,addr.type=unix,addr.path=/run/us/1/nic0',
    '-device virtio-net-pci,netdev=nic0,mac=52:54:00:00:00:01,romfile=',
    '-device virtserialport,chardev=agent,name=org.qemu.guest_agent.0',
  ]) {
    expect(line).toContain(part);
  }
  expect(line.endsWith('-S -device virtio-rng-pci')).toBe(true);
});

test('under KVM the guest gets an invariant TSC, so that its time runs on in pauses', () => {
  const args = buildArguments(SPEC, { role: 'primary', paths: paths(1), accel: 'kvm' });
  expect(args).toContain('host,migratable=off,+invtsc');
});

test('console and agent are left out when they are not wanted', () => {
  const spec = { ...SPEC, console: false, agent: false };
  const line = buildArguments(spec, { role: 'primary', paths: paths(1), accel: 'tcg' }).join(' ');
  expect(line).toContain('-serial none');
  expect(line).not.toMatch(/virtio-serial|id=console|id=agent/);
});

test('a socket path that the kernel would cut off is refused before anything is started', () => {
  const inside = (bytes: number) => () =>
    instancePaths({
      runDirectory: `/${'r'.repeat(bytes - '//1/qemu/incoming'.length)}`,
      memoryDirectory: '/dev/shm',
      vm: 'a',
      instance: 1,
      nicCount: 0,
    });
  expect(inside(107)).not.toThrow();
  expect(inside(108)).toThrow(expect.objectContaining({ code: 'QEMU_PATH_TOO_LONG' }));
});
