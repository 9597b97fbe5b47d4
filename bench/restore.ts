import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { MIB } from '../src/base/units.ts';
import { AgentProbe } from '../src/keeper/agent-probe.ts';
import type { Instance } from '../src/keeper/instance.ts';
import { readFirmware, withFirmware } from '../src/qemu/firmware.ts';
import { LazyRestore } from '../src/snapshot/lazy-restore.ts';
import { SnapshotFile } from '../src/snapshot/snapshot-file.ts';
import { snapshotStill } from '../src/snapshot/snapshot-writer.ts';
import { BenchError } from './bench-error.ts';
import { EpochRig } from './epoch-rig.ts';
import { FullSnapshots } from './full-snapshot.ts';
import type { Benchmark, BenchRun } from './harness.ts';
import { freeMemoryBytes } from './machine-facts.ts';
import { demoGuest } from './redis-vm.ts';

const MEMORY_MIB = 1024;
const ROUNDS = 10;
const QUICK_ROUNDS = 3;
/** The VM, one that is restored, QEMU's file twice (once in this process), and ours. */
const ROOM_FACTOR = 6;
const AGENT_DEADLINE_MS = 60_000;
const LOAD_DEADLINE_MS = 120_000;

export const restore: Benchmark = {
  name: 'restore',
  summary: "From a snapshot to the guest's first reply, next to a full restore by QEMU of the same guest.",
  figures: {
    lazyFirstReplyMs: {
      meaning:
        'from the moment in which a started QEMU is given the state until the guest agent answers; 1 GiB',
    },
    fullFirstReplyMs: { meaning: 'the same with the file of a QEMU migration, which lies in memory' },
    restoreRatio: { meaning: 'fullFirstReplyMs / lazyFirstReplyMs', target: { atLeast: 5 } },
    lazyFilledMs: {
      meaning: 'from the same moment until all of the memory is there; the guest runs meanwhile',
    },
    faults: { meaning: 'how often the guest had to wait for a page until then, median' },
    processStartMs: {
      meaning: 'start of the QEMU that the state is given to, in neither of the figures above',
    },
    snapshotMs: { meaning: 'writing our snapshot of the guest, which stands still for it here' },
    snapshotBytesRatio: { meaning: 'size of our file / guest memory' },
    incompressibleShare: { meaning: 'share of guest memory that is noise, no page like another' },
  },
  run: async (run) => {
    const guest = await demoGuest(run);
    const { clock, signal } = run.options;
    const needed = ROOM_FACTOR * MEMORY_MIB * MIB;
    if (freeMemoryBytes() < needed)
      throw new BenchError('BENCH_GUEST_FAILED', `restore needs ${needed / MIB} MiB of free memory`, {
        hint: 'End what else runs here.',
      });
    run.progress(`booting a guest of ${MEMORY_MIB} MiB`);
    const name = `bench-${process.pid}-restore`;
    await using rig = await EpochRig.start({ name, memoryMiB: MEMORY_MIB, guest, clock, signal });
    run.describe({ machine: { accel: rig.accel }, versions: { guestKernel: guest.kernelRelease } });
    await clock.sleep(run.options.quick ? 500 : 3000, signal);
    await measure(run, rig);
  },
};

async function measure(run: BenchRun, rig: EpochRig): Promise<void> {
  run.progress('filling its memory with noise');
  const usedBytes = rig.primary.memory.residentBytes();
  await rig.makeResident({ unique: true });
  const { sizeBytes } = rig.primary.memory;
  run.figure('incompressibleShare', (rig.primary.memory.residentBytes() - usedBytes) / sizeBytes);
  const { clock } = run.options;
  const folder = rig.directory.memoryPath;
  const places = { clock, runDirectory: rig.directory.path, memoryDirectory: folder };
  await using full = await FullSnapshots.of(rig.machine, places);
  run.progress('writing both snapshots');
  const path = await snapshotOf(run, rig);
  await full.take();
  const theirs = readFileSync(join(folder, 'snapshot'));
  await rig.machine.stop();
  run.figure('snapshotBytesRatio', SnapshotFile.outline(path).sizeBytes / sizeBytes);
  const rounds = run.options.quick ? QUICK_ROUNDS : ROUNDS;
  for (let round = 1; round <= rounds; round += 1) {
    run.progress(`restoring, round ${round} of ${rounds}`);
    await restoreOurs(run, { rig, path });
    await restoreTheirs(run, { rig, state: theirs });
  }
  for (const figure of ['lazyFirstReplyMs', 'fullFirstReplyMs', 'lazyFilledMs', 'processStartMs', 'faults'])
    run.figure(figure, run.p50(figure));
  run.figure('restoreRatio', run.p50('fullFirstReplyMs') / run.p50('lazyFirstReplyMs'));
  run.note(
    'all files lie in memory (/dev/shm); every round but the first knows the working set of the one before',
  );
}

async function snapshotOf(run: BenchRun, rig: EpochRig): Promise<string> {
  const { clock, signal } = run.options;
  const { machine, paths, memory } = rig.primary;
  const directory = join(rig.directory.memoryPath, 'ours');
  mkdirSync(directory);
  const path = join(directory, 'one.usnap');
  const firmware = await readFirmware(machine, paths.firmware);
  await machine.stop();
  await machine.saveDeviceState(paths.deviceState);
  const startMs = clock.nowMs();
  await snapshotStill({
    ...{ path, memory, firmware, signal, key: undefined, spec: Buffer.alloc(0), onProgress: () => {} },
    deviceState: readFileSync(paths.deviceState),
    facts: {
      ...{ vm: rig.spec.name, savedAtMs: clock.wallMs(), epoch: 0, token: 0, memoryBytes: memory.sizeBytes },
      ...{ qemuVersion: '', accel: rig.accel === 'kvm' ? 'kvm' : 'tcg', machineHash: '0'.repeat(64) },
    },
  });
  run.figure('snapshotMs', clock.nowMs() - startMs);
  await machine.cont();
  return path;
}

async function restoreOurs(run: BenchRun, { rig, path }: { rig: EpochRig; path: string }): Promise<void> {
  const { clock } = run.options;
  using file = SnapshotFile.open(path);
  await using lazy = new LazyRestore(file, { key: undefined });
  await using standby = await startStandby(run, rig);
  const startMs = clock.nowMs();
  await lazy.begin(standby);
  await standby.machine.loadDeviceState(withFirmware(file.blob('deviceState'), file.blob('firmware')));
  await reply(run, standby);
  run.sample('lazyFirstReplyMs', clock.nowMs() - startMs);
  const { faults } = await lazy.filled;
  run.sample('lazyFilledMs', clock.nowMs() - startMs);
  run.sample('faults', faults);
}

async function restoreTheirs(
  run: BenchRun,
  { rig, state }: { rig: EpochRig; state: Uint8Array },
): Promise<void> {
  const { clock } = run.options;
  await using standby = await startStandby(run, rig);
  const startMs = clock.nowMs();
  await standby.machine.loadDeviceState(state, { deadlineMs: LOAD_DEADLINE_MS });
  await reply(run, standby);
  run.sample('fullFirstReplyMs', clock.nowMs() - startMs);
}

async function startStandby(run: BenchRun, rig: EpochRig): Promise<Instance> {
  const { clock } = run.options;
  const startMs = clock.nowMs();
  const standby = await rig.startStandby();
  run.sample('processStartMs', clock.nowMs() - startMs);
  return standby;
}

/** Lets it run, and waits for the first thing that it says. */
async function reply({ options: { clock } }: BenchRun, { machine, ports }: Instance): Promise<void> {
  using agent = new AgentProbe(ports.get('agent'));
  await machine.cont();
  if (await agent.answers({ clock, deadlineMs: AGENT_DEADLINE_MS })) return;
  throw new BenchError('BENCH_GUEST_FAILED', 'a restored guest gave no answer', {
    hint: 'Look at how much memory is free, and try again.',
  });
}
