import { formatBytes } from '../base/units.ts';
import type { VmStatus } from '../control/vm-status.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { duration, type Output, table } from './output.ts';
import { connectTo } from './vm-connection.ts';

/** Shorter waits are over before anybody could do something about them. */
const OUTPUT_WAITS_SHOWN_MS = 1000;

export async function status(name: string, out: Output): Promise<number> {
  using control = await connectTo(name);
  const found = await control.status();
  out.result(found, () => statusText(found));
  return EXIT_CODES.ok.code;
}

/** What a person wants to know of a VM, a fact a line. */
export function statusText(vm: VmStatus): string {
  const { epochs, clock, shadow } = vm;
  const machine = `${vm.vcpus} vCPU, ${formatBytes(vm.memoryBytes)}, QEMU ${vm.qemuVersion} with ${vm.accel.toUpperCase()}`;
  const rows: [string, string][] = [
    ['name', vm.name],
    ['state', vm.stopReason === null ? vm.phase : `${vm.phase} (${vm.stopReason})`],
    ['machine', machine],
    ['up', `${duration(vm.upMs)}, keeper is process ${vm.keeperPid}`],
    ['primary', primaryText(vm)],
    ['shadow', shadowText(shadow)],
  ];
  for (const path of vm.paths ?? []) rows.push(['path', pathText(path)]);
  if (vm.lease !== undefined) rows.push(['right to act', leaseText(vm.lease)]);
  for (const { host, why } of vm.placement?.candidates ?? []) rows.push(['candidate', `${host}: ${why}`]);
  if (epochs.commits > 0) {
    rows.push(
      ['epochs', `${epochs.commits} committed, the last is ${epochs.committed}; dirty log: ${vm.dirtyLog}`],
      ['dirty pages', quantiles(epochs.dirtyPages, '')],
      ['pause', quantiles(epochs.pauseMs, ' ms')],
      [
        'time paused',
        `${(100 * epochs.pauseShare).toFixed(1)} %; the guest's monotonic clock is slow by as much`,
      ],
      ['commit', quantiles(epochs.commitMs, ' ms')],
    );
  }
  for (const disk of vm.disks) rows.push(['disk', diskText(disk)]);
  rows.push(['guest clock', clockText(clock)]);
  if (vm.promotions > 0) {
    rows.push(
      ['promotions', `${vm.promotions}; promoting took ${quantiles(vm.promoteMs, ' ms')}`],
      ['outages', quantiles(vm.outageMs, ' ms')],
      ['noticing', quantiles(vm.detectMs, ' ms')],
      ['fencing', quantiles(vm.fenceMs, ' ms')],
      ['first reply', quantiles(vm.replyMs, ' ms')],
    );
  }
  if (vm.restarts > 0) rows.push(['cold restarts', String(vm.restarts)]);
  const text = table(rows);
  return vm.links.length === 0 ? text : `${text}\n\n${linksText(vm.links)}`;
}

function primaryText({ primary, actsOn }: VmStatus): string {
  if (actsOn !== undefined) return `on ${actsOn}`;
  return primary === null ? 'none' : `process ${primary.pid}`;
}

function diskText({ path, format, readOnly, epochs, warmedBytes }: VmStatus['disks'][number]): string {
  if (warmedBytes !== undefined)
    return `${path} (${format}, a copy, ${formatBytes(warmedBytes)} read ahead into the cache)`;
  return `${path} (${format}, ${readOnly ? 'only read' : epochsText(epochs)})`;
}

function epochsText(epochs: VmStatus['disks'][number]['epochs']): string {
  if (epochs === undefined) return 'not in epochs: after a failover it may be newer than memory';
  if (epochs.mode !== 'in-sync') return 'written at once, while no shadow is in sync';
  return `commits with epochs, ${formatBytes(epochs.heldBytes)} not in the image yet`;
}

function shadowText(shadow: VmStatus['shadow']): string {
  if (shadow === null) return 'none';
  const copied = shadow.copiedShare < 1 ? `, ${Math.floor(100 * shadow.copiedShare)} % copied` : '';
  return `${shadow.host === undefined ? `process ${shadow.pid}` : `on ${shadow.host}`}${copied}${sentText(shadow)}${sparedText(shadow)}`;
}

function pathText({ address, state, rttMs, lost }: NonNullable<VmStatus['paths']>[number]): string {
  if (state !== 'heard') return `${address}: ${state === 'lost' ? 'not heard any more' : 'never heard'}`;
  return `${address}: round trip ${rttMs.p50.toFixed(1)} ms, ${lost} heartbeats lost`;
}

function leaseText({ awayMs, token, mode, endsInMs, outputWaitsMs }: NonNullable<VmStatus['lease']>): string {
  const store = awayMs === null ? 'etcd answers' : `etcd has not answered for ${duration(awayMs)}`;
  if (mode === 'claiming')
    return `token ${token}, ended or about to be renewed: the VM may stand still; ${store}`;
  const end = endsInMs === null ? 'does not end' : `ends in ${duration(endsInMs)} unless it is renewed`;
  const waits =
    typeof outputWaitsMs === 'number' && outputWaitsMs >= OUTPUT_WAITS_SHOWN_MS
      ? `; output has been waiting for ${duration(outputWaitsMs)}: the shadow may have taken over`
      : '';
  return `token ${token}, ${mode}, ${end}; ${store}${waits}`;
}

function sentText({ sent }: NonNullable<VmStatus['shadow']>): string {
  if (sent === undefined || sent.dirtyBytes === 0) return '';
  const share = ((100 * sent.wireBytes) / sent.dirtyBytes).toFixed(1);
  return `; ${formatBytes(sent.dirtyBytes)} of pages were sent as ${share} % of that`;
}

/** What did not have to be copied, and how often. */
function sparedText({ reconnects = 0, filled }: NonNullable<VmStatus['shadow']>): string {
  const spared =
    filled?.kind === 'delta' ? `; began with ${formatBytes(filled.savedBytes)} that were there` : '';
  if (reconnects === 0) return spared;
  return `${spared}; connected again ${reconnects === 1 ? 'once' : `${reconnects} times`}`;
}

function clockText({ errorMs, answeredAgoMs, corrections }: VmStatus['clock']): string {
  if (errorMs === null || answeredAgoMs === null) return 'the guest agent has not answered yet';
  return `off by ${errorMs.toFixed(1)} ms ${duration(answeredAgoMs)} ago, set ${corrections} times`;
}

function linksText(links: VmStatus['links']): string {
  return table([
    ['link', 'held', 'released', 'logged', 'replayed', 'dropped'],
    ...links.map((link) => [
      link.name,
      `${link.heldItems} (${formatBytes(link.heldBytes)})`,
      String(link.releasedItems),
      `${link.loggedItems} (${formatBytes(link.loggedBytes)})`,
      String(link.replayedItems),
      String(link.droppedItems),
    ]),
  ]);
}

function quantiles({ p50, p99, max }: VmStatus['promoteMs'], unit: string): string {
  const [median, tail, most] = [p50, p99, max].map((value) => `${Number(value.toFixed(1))}${unit}`);
  return `half within ${median}, 99 of 100 within ${tail}, at most ${most}`;
}
