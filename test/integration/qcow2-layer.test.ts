import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { MIB } from '../../src/base/units.ts';
import { EpochDisk } from '../../src/block/epoch-disk.ts';
import { openJournalFile } from '../../src/block/journal-file.ts';
import { JournaledImage } from '../../src/block/journaled-image.ts';
import { NbdClientDevice } from '../../src/block/nbd-client-device.ts';
import { TestFolder } from '../../src/block/nbd-fixture.ts';
import { epochId } from '../../src/epoch/epoch-id.ts';

let folder: TestFolder;
let server: ChildProcess;
let disk: EpochDisk;

const servers = [
  {
    program: 'qemu-nbd',
    words: (image: string, socket: string) => ['-f', 'qcow2', '-t', '-k', socket, image],
  },
  {
    program: 'qemu-storage-daemon',
    words: (image: string, socket: string) => [
      ...['--blockdev', `driver=qcow2,node-name=disk,file.driver=file,file.filename=${image},discard=unmap`],
      ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
      ...['--export', 'type=nbd,id=disk,node-name=disk,name=,writable=on'],
    ],
  },
];

describe.each(servers)('a qcow2 image that $program serves', ({ program, words }) => {
  let image: string;

  beforeEach(async () => {
    folder = new TestFolder();
    image = folder.file('disk.qcow2');
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', image, '64M']);
    const socket = folder.file('lower.sock');
    server = spawn(program, words(image, socket), { stdio: 'inherit' });
    while (!existsSync(socket) && server.exitCode === null)
      await new Promise((resolve) => setTimeout(resolve, 10));
    const device = await NbdClientDevice.connect(socket);
    const journal = await openJournalFile(folder.file('journal'));
    disk = new EpochDisk({
      image: await JournaledImage.open({ device, journal }),
      mode: 'in-sync',
      token: () => 1,
      heldBytesMax: 64 * MIB,
      onCutWanted: () => {},
      onFailed: () => {},
    });
  });

  afterEach(async () => {
    await disk.close();
    if (server.exitCode === null && server.signalCode === null) {
      const ended = once(server, 'exit');
      server.kill();
      await ended;
    }
    folder[Symbol.dispose]();
  });

  test('receives committed epochs, and nothing of others', async () => {
    await disk.write(5000, Buffer.alloc(100_000, 3));
    await disk.write(40 * MIB, Buffer.alloc(MIB, 4));
    await disk.zero(40 * MIB + 4096, 8192, { mayPunch: true });
    disk.seal(epochId(1));
    await disk.write(0, Buffer.alloc(MIB, 9));
    disk.commit(epochId(1));
    await disk.durable(epochId(1));
    const into = Buffer.alloc(4);
    await disk.read(4998, into);
    expect([...into]).toEqual([9, 9, 9, 9]);
    expect((await disk.extents(0, 64 * MIB))[0]).toMatchObject({ hole: false });
    disk.rollBack(epochId(2));
    await disk.close();
    const ended = once(server, 'exit');
    server.kill();
    await ended;
    const steps = [
      ...[
        'read -P 0 0 5000',
        'read -P 3 5000 100000',
        'read -P 4 40M 4k',
        'read -P 0 41947136 8k',
        'read -P 4 41955328 4k',
      ],
      'read -P 0 1M 39M',
    ];
    const said = execFileSync(
      'qemu-io',
      ['-r', '-f', 'qcow2', ...steps.flatMap((step) => ['-c', step]), image],
      {
        encoding: 'utf8',
      },
    );
    expect(said).not.toMatch(/verification failed|error/i);
    execFileSync('qemu-img', ['check', '-q', image]);
  });
});
