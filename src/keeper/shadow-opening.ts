import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { nextEpoch } from '../epoch/epoch-id.ts';
import { PEER_PROTOCOL } from '../replication/peer-messages.ts';
import { newPulseKey } from '../wire/pulse-datagram.ts';
import { epochsName } from './inheritance.ts';
import type { Instance } from './instance.ts';
import type { RemoteSite } from './keeper-options.ts';
import type { RecordPatience } from './record-patience.ts';
import { RemoteShadow, type RemoteShadowOptions } from './remote-shadow.ts';
import { ShadowSession } from './shadow-session.ts';
import type { KnownVm } from './vm-description.ts';
import type { VmDisks } from './vm-disks.ts';

/** So many that no two copies of a VM have the same number. */
const COPIES = 2 ** 47;

export interface LocalShadowOptions {
  readonly spec: VmSpec;
  readonly failpoints: Failpoints;
  readonly memoryDirectory: string;
  readonly disks: VmDisks;
  readonly startStandby: (signal: AbortSignal) => Promise<Instance>;
  readonly onLost: (error: string) => void;
}

/** A shadow on this host: a standby QEMU with little of a CPU, and room for epochs. @throws what keeps it from starting */
export async function openLocalShadow(
  { spec, failpoints, memoryDirectory, disks, startStandby, onLost }: LocalShadowOptions,
  signal: AbortSignal,
): Promise<ShadowSession> {
  const standby = await startStandby(signal);
  const session = await ShadowSession.open(standby, {
    epochsInFlightMax: spec.shadow.epochsInFlightMax,
    epochsDirectory: join(memoryDirectory, epochsName(standby.number)),
    failpoints,
    kept: (epoch) => disks.kept(epoch),
    cpuShare: spec.shadow.standbyCpuShare,
  });
  void standby.machine.process.exited.then(() => onLost('its QEMU ended'));
  return session;
}

export interface RemoteShadowWishes {
  readonly spec: VmSpec;
  readonly clock: Clock;
  readonly failpoints: Failpoints;
  readonly memoryDirectory: string;
  readonly remote: RemoteSite;
  readonly disks: VmDisks;
  readonly known: Pick<KnownVm, 'token' | 'committed' | 'qemu' | 'accel'>;
  readonly onLost: (error: string) => void;
  readonly patience: RecordPatience;
  readonly publish: (kind: string, facts: Readonly<Record<string, unknown>>) => void;
  readonly claimed: RemoteShadowOptions['claimed'];
}

/** A shadow on another host, whose keeper starts a standby there. @throws what keeps it from being had */
export async function openRemoteShadow(
  { spec, remote, known, memoryDirectory, disks: vmDisks, ...options }: RemoteShadowWishes,
  signal: AbortSignal,
): Promise<RemoteShadow> {
  const { right, given, files, places } = remote;
  const generationId = remote.generationId();
  await vmDisks.noteToken();
  const disks = vmDisks.copied();
  const copy = randomInt(COPIES);
  let shadow: RemoteShadow | undefined;
  const { link, host, addresses, path, presencePort } = await remote.connect({
    ...{ copy, signal },
    onResumed: (resumed) => shadow?.noteResumed(resumed),
  });
  shadow = await RemoteShadow.open(
    {
      ...{ ...options, link, host, right, disks, memoryBytes: spec.memoryBytes },
      ...{ addresses, path, silenceMs: remote.silenceMs },
      onUnwelcome: () => places.avoid(host),
      onDiskFailed: (disk) => places.noteFailing(host, disk),
      epochsInFlightMax: spec.shadow.epochsInFlightMax,
      directory: join(memoryDirectory, `outgoing-${copy}`),
      hello: {
        ...{ kind: 'hello', protocol: PEER_PROTOCOL, vm: spec.name, copy, spec: given, files, generationId },
        ...{ token: known.token, epoch: nextEpoch(known.committed), accel: known.accel },
        disks: disks.map(({ name, sizeBytes, usedBytes, identity, token }) => ({
          ...{ name, sizeBytes, usedBytes, identity, token: Math.max(known.token, token) },
        })),
        ...{ qemuVersion: known.qemu.version, rightToken: right.token, presencePort },
        pulseKey: newPulseKey().toString('hex'),
      },
    },
    signal,
  ).catch((cause) => {
    places.avoid(host);
    throw cause;
  });
  return shadow;
}
