import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { systemClock } from '../base/clock.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import { frameFraming } from './frame-codec.ts';
import { GuestLink } from './guest-link.ts';
import { QemuPort } from './qemu-port.ts';
import { StreamEnd } from './stream-end.ts';

const FIRST = 1 as EpochId;
/** Reverse ARP, by which QEMU tells switches where a machine is now; QEMU makes these frames without a guest. */
const RARP = 0x8035;

let open: AsyncDisposableStack;

beforeEach(() => {
  open = new AsyncDisposableStack();
});

afterEach(() => open.disposeAsync());

async function startQemu(socketPath: string) {
  const qemu = spawn(
    'qemu-system-x86_64',
    [
      ...[
        '-accel',
        'tcg',
        '-machine',
        'q35',
        '-m',
        '32',
        '-nodefaults',
        '-no-user-config',
        '-display',
        'none',
      ],
      ...['-netdev', `stream,id=n0,server=off,addr.type=unix,addr.path=${socketPath}`],
      ...['-device', 'virtio-net-pci,netdev=n0,romfile=', '-qmp', 'stdio'],
    ],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  );
  open.defer(async () => {
    if (qemu.exitCode !== null || qemu.signalCode !== null) return;
    qemu.kill('SIGKILL');
    await once(qemu, 'exit');
  });
  let answered = () => {};
  createInterface({ input: qemu.stdout }).on('line', (line) => {
    if ('return' in JSON.parse(line)) answered();
  });
  const qmp = (command: object) =>
    new Promise<void>((resolve) => {
      answered = resolve;
      qemu.stdin.write(`${JSON.stringify(command)}\n`);
    });
  await qmp({ execute: 'qmp_capabilities' });
  return { qemu: qemu as ChildProcess, qmp };
}

test('a real QEMU speaks through a link, its input counts as read once it has it, and its death is noticed', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-qemu-frames-'));
  open.defer(() => rmSync(folder, { recursive: true, force: true }));
  const port = open.use(await QemuPort.listen(join(folder, 'nic0'), { framing: frameFraming }));
  const farEnd = open.use(new StreamEnd({ scrollbackBytes: 0 }));
  const left: number[] = [];
  const world = farEnd.connect({ onOutput: (frame) => left.push(Buffer.from(frame).readUInt16BE(12)) });
  const gone = Promise.withResolvers<unknown>();
  const onHeld = vi.fn();
  const link = new GuestLink({
    ...{ name: 'nic0', framing: frameFraming, farEnd, clock: systemClock },
    ...{ onHeld, onDisconnected: gone.resolve },
  });
  open.use(link);
  link.attach(port);
  link.holdOutput();

  const { qemu, qmp } = await startQemu(port.path);
  await port.awaitConnection({ deadlineMs: 10_000, clock: systemClock });
  // QEMU drops frames until it has seen for itself that it is connected, so it is asked for many.
  const manyTimes = { initial: 10, max: 50, rounds: 500, step: 10 };
  await qmp({ execute: 'announce-self', arguments: manyTimes });
  await vi.waitFor(() => expect(onHeld).toHaveBeenCalled(), { timeout: 10_000 });
  await qmp({ execute: 'stop' });
  link.drainOutput();
  link.seal(FIRST);
  expect(left).toEqual([]);
  link.commit(FIRST);
  expect(left).toContain(RARP);
  await qmp({ execute: 'cont' });

  world.write(Buffer.alloc(60, 1));
  await vi.waitFor(() => expect(port.allRead()).toBe(true), { timeout: 10_000 });

  qemu.kill('SIGKILL');
  expect(await gone.promise).toBeUndefined();
});
