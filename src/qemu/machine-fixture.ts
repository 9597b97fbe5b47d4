/** For tests: real machines that need no operating system. */
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemClock } from '../base/clock.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { type InstancePaths, instancePaths } from './instance-paths.ts';
import { type Accelerator, buildArguments } from './launch-arguments.ts';
import { Machine, type StartOptions } from './machine.ts';

/** Where the guests of {@link writeGuest} are loaded. */
const LOAD_ADDRESS = 0x100000;
const HEADER_BYTES = 32;
/** Where the counting guest keeps its count, 32 bits. */
export const COUNT_ADDRESS = 0x200000;

const le32 = (value: number) => [
  value & 0xff,
  (value >>> 8) & 0xff,
  (value >>> 16) & 0xff,
  (value >>> 24) & 0xff,
];
const HALT_FOR_EVER = [0xfa, 0xf4, 0xeb, 0xfc]; // cli; again: hlt; jmp again

/** Programs in i386 machine code; each is a whole guest. */
const PROGRAMS = {
  silent: HALT_FOR_EVER,
  // mov eax, 0; again: inc eax; mov [COUNT_ADDRESS], eax; jmp again
  counting: [0xb8, ...le32(0), 0x40, 0xa3, ...le32(COUNT_ADDRESS), 0xeb, 0xf8],
  // mov dx, 0x604 (power management of q35); mov ax, 0x2000; out dx, ax
  poweringOff: [0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, ...HALT_FOR_EVER],
  // lidt [an empty table]; int3: triple fault
  crashing: [0x0f, 0x01, 0x1d, ...le32(LOAD_ADDRESS + HEADER_BYTES + 8), 0xcc, ...Array<number>(6).fill(0)],
} as const;

/** Writes `text` on the first serial port. */
function speaking(text: string): number[] {
  const textAddress = LOAD_ADDRESS + HEADER_BYTES + 17 + HALT_FOR_EVER.length;
  return [
    ...[0xbe, ...le32(textAddress)], // mov esi, text
    ...[0xac, 0x84, 0xc0, 0x74, 0x07], // next: lodsb; test al, al; jz end
    ...[0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb], // mov dx, 0x3f8; out dx, al; jmp next
    ...[0xf4, ...HALT_FOR_EVER],
    ...Buffer.from(`${text}\0`),
  ];
}

/** A kernel after the Multiboot 0.6.96 specification: a header that says where to load what follows, and start it. */
export function writeGuest(path: string, guest: keyof typeof PROGRAMS | { says: string }): void {
  const program = typeof guest === 'string' ? PROGRAMS[guest] : speaking(guest.says);
  const magic = 0x1badb002;
  const addressesFollow = 0x10000;
  const checksum = -(magic + addressesFollow) >>> 0;
  const end = LOAD_ADDRESS + HEADER_BYTES + program.length;
  const header = [
    magic,
    addressesFollow,
    checksum,
    LOAD_ADDRESS,
    LOAD_ADDRESS,
    end,
    end,
    LOAD_ADDRESS + HEADER_BYTES,
  ];
  const image = Buffer.from([...header.flatMap(le32), ...program]);
  // QEMU looks at the first 8 KiB for a header.
  writeFileSync(path, Buffer.concat([image, Buffer.alloc(8192 - image.length)]));
}

export interface FixtureOptions {
  /** More lines of the specification. */
  readonly yaml?: string;
  readonly guest?: keyof typeof PROGRAMS;
}

/** A folder with a specification, its guest, and the machines that a test starts. */
export class MachineFixture implements AsyncDisposable {
  readonly folder: string;
  readonly spec: VmSpec;
  readonly qmpLog: string[] = [];
  readonly #owned = new AsyncDisposableStack();
  #instances = 0;

  constructor({ yaml = '', guest = 'counting' }: FixtureOptions = {}) {
    // A comma, because QEMU's options have to escape it.
    this.folder = mkdtempSync(join(tmpdir(), 'us-qemu,'));
    chmodSync(this.folder, 0o755);
    this.#owned.defer(() => rmSync(this.folder, { recursive: true }));
    writeGuest(join(this.folder, 'guest'), guest);
    const text = `name: fixture\nmemory: 64MiB\nboot: {kernel: guest}\n${yaml}\n`;
    this.spec = parseVmSpec(text, { source: 'fixture.yaml', directory: this.folder });
  }

  /** Paths of a new instance, with somebody who listens on the sockets that QEMU connects to. */
  async prepare(): Promise<InstancePaths> {
    this.#instances += 1;
    const paths = instancePaths({
      runDirectory: join(this.folder, 'run'),
      memoryDirectory: this.folder,
      vm: this.spec.name,
      instance: this.#instances,
      nicCount: this.spec.nics.length,
    });
    mkdirSync(paths.qemuDirectory, { recursive: true });
    for (const path of [...paths.nics, paths.console, paths.agent]) this.#owned.use(await listen(path));
    return paths;
  }

  async start(
    role: 'primary' | 'standby' = 'primary',
    options: Partial<StartOptions> & { accel?: Accelerator; user?: string } = {},
  ): Promise<{ machine: Machine; paths: InstancePaths }> {
    const paths = await this.prepare();
    const { accel = 'tcg', user, ...start } = options;
    const machine = await Machine.start({
      launch: {
        binary: this.spec.qemu.binary,
        args: buildArguments(this.spec, { role, paths, accel }),
        logPath: paths.log,
        user,
      },
      qmpPath: paths.qmp,
      clock: systemClock,
      qmpLog: (line) => this.qmpLog.push(line),
      ...start,
    });
    this.#owned.use(machine);
    return { machine, paths };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned[Symbol.asyncDispose]();
  }
}

async function listen(path: string): Promise<Server> {
  const server = createServer((socket) => {
    server.once('close', () => socket.destroy());
    socket.on('error', () => {}).resume();
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return server;
}
