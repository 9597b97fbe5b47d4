import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { ensureDemoGuest } from '../../guest/build.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { CertificateStore } from '../../src/pki/certificate-store.ts';
import { HOST_NAMES, HOSTS, LAN_ADDRESS, otherThan } from './host-network.ts';
import { ETCD } from './site-etcd.ts';

export const GUEST = { host: '10.77.0.2', port: 6379 };
const PORT = 7946;
const IMAGES = { raw: 'data.img', qcow2: 'data.qcow2' };

export type DiskFormat = keyof typeof IMAGES;

/** What may be said of them beside what they have in common. */
export interface TwoHostFilesOptions {
  /** Fields of site.yaml. */
  readonly site?: Readonly<Record<string, unknown>>;
  /** Fields of the specification. */
  readonly spec?: Readonly<Record<string, unknown>>;
  /** A disk that is made with it, of so many bytes. */
  readonly diskBytes?: number;
  /** So many disks, of one of these each. Default: a raw one. */
  readonly diskFormats?: readonly DiskFormat[];
  /** Further words of the guest's kernel command line. */
  readonly cmdline?: string;
}

/** In the folder of disks of any host. */
export function imageNameOf(format: DiskFormat): string {
  return IMAGES[format];
}

/** Certificates of both hosts and of etcd in `pki`, and for each host `site-HOST.yaml`. */
export async function writeSites(folder: string, { site: more }: TwoHostFilesOptions): Promise<void> {
  const pki = new CertificateStore(join(folder, 'pki'), { wallMs: clock.wallMs });
  await pki.init();
  await pki.host('etcd', [LAN_ADDRESS]);
  for (const name of HOST_NAMES) {
    await pki.host(name, [...HOSTS[name].peers]);
    const other = otherThan(name);
    const site = {
      host: name,
      listen: HOSTS[name].peers.map((address) => `${address}:${PORT}`),
      ...{ certificate: `pki/${name}.crt`, key: `pki/${name}.key`, ca: 'pki/ca.crt' },
      hosts: { [other]: HOSTS[other].peers.map((address) => `${address}:${PORT}`) },
      lease: { etcd: { endpoints: [ETCD] }, holdSeconds: 3 },
      // A busy machine is silent for longer than an idle one.
      ...{ peerTimeoutMs: 2000, peerTimeoutMinMs: 1000 },
      ...more,
    };
    writeFileSync(join(folder, `site-${name}.yaml`), stringify(site));
  }
}

/** `vm.yaml`: the specification of a Redis VM that may be on both hosts. */
export async function writeSpec(
  folder: string,
  { vm, diskBytes, diskFormats = ['raw'], cmdline = '', spec: more }: TwoHostFilesOptions & { vm: string },
): Promise<void> {
  const guest = await ensureDemoGuest();
  const disks = diskFormats.map((format) => ({
    ...{ path: join(folder, 'disks', IMAGES[format]), format, create: true, size: String(diskBytes) },
  }));
  const spec = {
    ...{ name: vm, memory: '128MiB' },
    boot: {
      kernel: guest.kernel,
      initrd: guest.initrd,
      cmdline: `${guest.cmdline} us.ip=${GUEST.host}/24 us.gw=${LAN_ADDRESS} ${cmdline}`,
    },
    nics: [{ uplink: { kind: 'tap', device: 'us-redis', bridge: 'br0' } }],
    shadow: { hosts: ['a', 'b'] },
    ...(diskBytes !== undefined && { disks }),
    ...more,
  };
  writeFileSync(join(folder, 'vm.yaml'), stringify(spec));
}
