import { parseVmSpec } from '../config/vm-spec.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { checkSpec } from '../qemu/protectability.ts';
import type { PeerLink, PeerMessage } from '../replication/peer-link.ts';
import {
  decodeWords,
  garbled,
  helloProtocol,
  MESSAGE,
  PEER_PROTOCOL,
  type PeerWords,
} from '../replication/peer-messages.ts';
import { digestFiles } from './file-digests.ts';
import type { VmHost } from './vm-host.ts';

/** For the first words of a host that has connected. */
const HELLO_DEADLINE_MS = 10_000;

/** What the keeper of a VM asks this host for. */
export interface AskedShadow {
  readonly link: PeerLink;
  /** The host that the VM acts on. */
  readonly peer: string;
  readonly hello: Extract<PeerWords, { kind: 'hello' }>;
  readonly spec: VmSpec;
  /** What follows its first words. */
  readonly messages: AsyncIterable<PeerMessage>;
}

/** @throws KeeperError KEEPER_PEER_REFUSED; ReplicationError REPLICATION_PEER_GARBLED; ConfigError */
export async function readHello(
  link: PeerLink,
  { vm, peer, signal }: { vm: string; peer: string; signal: AbortSignal },
): Promise<AskedShadow> {
  const messages = link.messages()[Symbol.asyncIterator]();
  const late = AbortSignal.any([signal, AbortSignal.timeout(HELLO_DEADLINE_MS)]);
  const close = () => link.close();
  late.addEventListener('abort', close, { once: true });
  const first = await messages.next();
  late.removeEventListener('abort', close);
  const body = first.done || first.value.type !== MESSAGE.words ? undefined : first.value.body;
  // Before all else: a message of another protocol means nothing here.
  const protocol = body && helloProtocol(body);
  if (protocol !== undefined && protocol !== PEER_PROTOCOL)
    throw refused(`it speaks protocol ${protocol}, and this host ${PEER_PROTOCOL}`);
  const hello = body && decodeWords(body);
  if (hello?.kind !== 'hello') throw garbled('something else than its first words');
  const spec = parseVmSpec(hello.spec.text, hello.spec);
  if (spec.name !== vm || hello.vm !== vm)
    throw refused(`it has a place for ${vm}, and came for ${hello.vm}`);
  checkSpec({ ...spec, shadow: { ...spec.shadow, enabled: true } });
  // Left open for whoever goes on with it, also when that stops looking.
  const rest = { [Symbol.asyncIterator]: () => ({ next: () => messages.next() }) };
  return { link, peer, hello, spec, messages: rest };
}

/**
 * Device state is understood only by a QEMU that was started in the same way: of the same version, from the same files.
 * @throws KeeperError KEEPER_PEER_REFUSED
 */
export async function checkTwin({ hello, spec }: AskedShadow, host: VmHost): Promise<void> {
  const { qemuVersion, accel } = hello;
  if (host.qemu.version !== qemuVersion)
    throw refused(`it runs QEMU ${qemuVersion}, and this host has ${host.qemu.version}`);
  if (host.accel !== accel) throw refused(`its VM runs with ${accel}, and this host has ${host.accel}`);
  const files = await digestFiles(spec);
  const other = Object.keys({ ...files, ...hello.files }).find((name) => files[name] !== hello.files[name]);
  if (other !== undefined) throw refused(`the ${other} of ${spec.name} is another file there than here`);
}

function refused(why: string): KeeperError {
  return new KeeperError('KEEPER_PEER_REFUSED', `the shadow cannot be kept here: ${why}`, {
    hint: 'Install the same versions of understudy and QEMU and the same files on both hosts.',
  });
}
