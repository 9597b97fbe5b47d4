import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../../src/base/clock.ts';
import type { KeeperOptions } from '../../src/keeper/keeper-options.ts';
import { KeptVm, killAt } from '../kit/kept-vm.ts';
import { type GuestConsole, TestVm } from '../kit/test-vm.ts';

const SECTOR_BYTES = 512;
const WRITTEN_AT_LEAST = 3;
/** For some writes of the guest that no epoch is cut after. */
const UNCUT_MS = 700;
/** What the guest says of a disk that does not fit its memory, or that it cannot use. */
const COMPLAINTS = /newer|lost|failed/;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-epoch-disks-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

type Format = 'raw' | 'qcow2';

const imagePath = (format: Format) => join(folder, `data.${format}`);

function start(format: Format, more = '', keeper: Partial<KeeperOptions> = {}): Promise<TestVm> {
  const disk = `{path: ${imagePath(format)}, format: ${format}, size: 8MiB, create: true${more}}`;
  return TestVm.start({ clients: 0, yaml: `disks: [${disk}]`, keeper });
}

/** The console of the guest's shell, once that takes commands. */
async function shellOf(vm: TestVm): Promise<GuestConsole> {
  const console = vm.openConsole();
  await console.take(/understudy-guest: ready[\s\S]*\/ # /);
  return console;
}

/**
 * Has the guest write its numbers, each to a sector of its own, through to the disk, until /tmp/enough exists. It says when
 * it finds a sector that it has not written yet with something in it, or one that it has written without it.
 */
function writer(to = ''): string {
  const read = (sector: string) =>
    `$(dd if=/dev/vda iflag=direct bs=${SECTOR_BYTES} skip=${sector} count=1 2>/dev/null | tail -c 8)`;
  const look = `n="${read('$((i+1))')}"; [ -z "$n" ] || echo "new""er:$n"`;
  const lookBack = `o="${read('$i')}"; [ "$o" = "$(printf %08d $i)" ] || echo "lo""st:$i"`;
  const dd = `dd of=/dev/vda bs=${SECTOR_BYTES} seek=$i conv=fsync,notrunc 2>/dev/null`;
  const write = `printf %0${SECTOR_BYTES}d $i | ${dd} && echo "w:$i;" || echo fai""led`;
  const loop = `i=0; while [ ! -e /tmp/enough ]; do ${look}; i=$((i+1)); ${write}; ${lookBack}; done; echo fin""ished`;
  return `(${loop}) ${to} &`;
}

/** What the guest said until it had written the next number, which comes last. */
async function said(console: GuestConsole): Promise<string> {
  return (await console.take(/^[\s\S]*?w:\d+;/))[0];
}

async function nextWritten(console: GuestConsole): Promise<number> {
  const text = await said(console);
  expect(text).not.toMatch(COMPLAINTS);
  return Number(/w:(\d+);/.exec(text)?.[1]);
}

/** Kills the QEMU that acts once the guest has written what no epoch has. Resolves when the shadow acts. */
async function killUncut(vm: TestVm, console: GuestConsole, format: Format): Promise<void> {
  for (let count = 0; count < WRITTEN_AT_LEAST; count += 1) await nextWritten(console);
  const promoted = vm.nextEvent('promoted');
  const hold = vm.holdAt('cut.before-pause');
  await hold.reached;
  const isInEpochs = vm.status.disks[0]?.epochs !== undefined;
  // On a busy machine many numbers are in epochs by now; those that follow are in none.
  const cut = isInEpochs ? 0 : Math.max(...numbersIn(format));
  const hasUncut = () =>
    isInEpochs ? (vm.status.disks[0]?.epochs?.heldBytes ?? 0) > 0 : Math.max(...numbersIn(format)) > cut;
  await clock.sleep(UNCUT_MS);
  while (!hasUncut()) await clock.sleep(50);
  vm.signalPrimary('SIGKILL');
  hold.release();
  await promoted;
}

/** What the guest said since, up to its end. */
async function finish(console: GuestConsole): Promise<string> {
  console.type(': > /tmp/enough');
  return (await console.take(/^([\s\S]*)finished\r?\n/))[1] ?? '';
}

/** The numbers that the image holds, by sector. */
function numbersIn(format: Format): number[] {
  const raw = format === 'raw' ? imagePath(format) : join(folder, 'content');
  if (format !== 'raw')
    execFileSync('qemu-img', ['convert', '-f', format, '-O', 'raw', imagePath(format), raw]);
  const content = readFileSync(raw);
  const sectors = Array.from({ length: content.length / SECTOR_BYTES }, (_, sector) =>
    content.toString('latin1', sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES),
  );
  return sectors
    .slice(1)
    .map(Number)
    .filter((number) => number > 0);
}

describe.each<Format>(['raw', 'qcow2'])('a VM with a %s disk in epochs whose QEMU is killed', (format) => {
  it('goes on in its shadow with the disk of the very epoch that its memory is of', async () => {
    let end = '';
    let last = 0;
    {
      await using vm = await start(format);
      using console = await shellOf(vm);
      console.type(writer());
      await killUncut(vm, console, format);
      await nextWritten(console);
      await vm.untilProtected();
      for (const place of ['cut.after-pause', 'cut.after-resume', 'commit.after-acknowledge']) {
        for (let count = 0; count < WRITTEN_AT_LEAST; count += 1) last = await nextWritten(console);
        const promoted = vm.nextEvent('promoted');
        await vm.atNext(place, () => {
          vm.signalPrimary('SIGKILL');
        });
        await promoted;
        expect(await nextWritten(console)).toBeGreaterThanOrEqual(last);
        await vm.untilProtected();
      }
      await vm.keeper.promote();
      expect(await nextWritten(console)).toBeGreaterThanOrEqual(last);
      await vm.keeper.unprotect();
      await nextWritten(console);
      end = await finish(console);
      last = Math.max(last, ...[...end.matchAll(/w:(\d+);/g)].map(([, number]) => Number(number)));
      expect(vm.status).toMatchObject({ promotions: 5, restarts: 0 });
    }
    expect(end).not.toMatch(COMPLAINTS);
    expect(numbersIn(format)).toEqual(Array.from({ length: last }, (_, index) => index + 1));
    if (format === 'qcow2') execFileSync('qemu-img', ['check', '-q', '-f', format, imagePath(format)]);
  });
});

describe('a disk that does not commit with epochs', () => {
  it('is newer than the memory that the shadow goes on with', async () => {
    await using vm = await start('raw', ', unprotectedDisk: true');
    using console = await shellOf(vm);
    console.type(writer());
    await killUncut(vm, console, 'raw');
    // Some numbers may have been said before it was killed.
    await console.take(/newer:\d+/);
    // A copy of it would write to the image that it uses.
    await vm.untilProtected();
    await expect(vm.keeper.testFailover()).rejects.toMatchObject({ code: 'KEEPER_TEST_REFUSED' });
  });
});

describe('a VM with a disk in epochs whose keeper is killed', () => {
  let vm: KeptVm;
  let asked = 0;
  afterEach(() => vm[Symbol.asyncDispose]());

  async function begin(): Promise<void> {
    const disk = { path: imagePath('raw'), format: 'raw', size: '8MiB', create: true };
    vm = await KeptVm.start({ clients: 1, disks: [disk] });
    await vm.shell(`${writer('>> /tmp/said')} echo be""gun`, /begun/);
    await more();
  }

  /** The guest has written some numbers more, and found nothing wrong with its disk. */
  async function more(): Promise<void> {
    const count = '$(grep -c w: /tmp/said)';
    const wait = `n=${count}; while [ ${count} -lt $((n+${WRITTEN_AT_LEAST})) ]; do sleep 0.1; done`;
    const pattern = '"newer|lost|failed|finished"';
    // What was said to an earlier call is shown as well.
    asked += 1;
    const said = new RegExp(`found:0:${asked};`);
    await vm.shell(`${wait}; echo "found:$(grep -cE ${pattern} /tmp/said):${asked};"`, said);
  }

  async function replaceKeeper(kind: string): Promise<void> {
    await vm.startKeeper();
    expect(await vm.kinds()).toContain(kind);
    await more();
  }

  it('goes on from the shadow with the disk of its last epoch, also when that is in its slot only', async () => {
    await begin();
    await vm.killKeeper();
    for (const [place, nth] of [
      ['commit.after-acknowledge', 20],
      ['promote.after-load', 1],
      ['commit.after-release', 1],
      ['cut.after-resume', 15],
    ] as const) {
      const keeper = vm.spawnKeeper({ plant: killAt(place, nth) });
      keeper.started().catch(() => {});
      await keeper.exited;
      keeper.release();
    }
    await replaceKeeper('inherited');
    await vm.until('protected');
    await vm.promote();
    await more();
    expect(await vm.isSameGuest()).toBe(true);
  });

  it('is taken back with all that was written where it has no shadow', async () => {
    await begin();
    await vm.unprotect();
    for (let round = 0; round < 2; round += 1) {
      await more();
      await vm.killKeeper();
      await replaceKeeper('taken-back');
    }
    expect(await vm.isSameGuest()).toBe(true);
  });
});

describe('a VM with a disk in epochs that is suspended', () => {
  it('has it with the next keeper as it left it, also after its failover was tested', async () => {
    const savedIn = { suspended: join(folder, 'suspended'), snapshot: join(folder, 'snapshot') };
    await using vm = await start('raw', '', { savedIn });
    using console = await shellOf(vm);
    console.type(writer());
    await nextWritten(console);
    expect(await vm.keeper.testFailover()).toMatchObject({ ok: true, reason: null });
    const last = await nextWritten(console);
    await vm.keeper.stop({ graceful: false, termination: 'suspend' });
    expect(numbersIn('raw').length).toBeGreaterThanOrEqual(last);
    await vm.startAgain();
    using again = vm.openConsole();
    for (let count = 0; count < WRITTEN_AT_LEAST; count += 1)
      expect(await nextWritten(again)).toBeGreaterThanOrEqual(last);
  });
});
