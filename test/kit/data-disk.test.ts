import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { checkDataDisk, makeDataDisk } from './data-disk.ts';

const SET = '*3\r\n$3\r\nSET\r\n$6\r\nab:0:0\r\n$6\r\nab:0=0\r\n';

let folder: string;
let image: string;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'us-data-disk-test-'));
  image = join(folder, 'image');
  await makeDataDisk(image);
});
afterEach(() => rmSync(folder, { recursive: true }));

function change(...commands: readonly string[]): void {
  for (const command of commands)
    execFileSync('debugfs', ['-w', '-R', command, image], { cwd: folder, stdio: 'ignore' });
}

function keep(text: string): void {
  writeFileSync(join(folder, 'log'), text);
  writeFileSync(join(folder, 'manifest'), 'file appendonly.aof.1.incr.aof seq 1 type i\n');
  change(
    ...['mkdir appendonlydir', 'write log appendonlydir/appendonly.aof.1.incr.aof'],
    'write manifest appendonlydir/appendonly.aof.manifest',
  );
}

it('finds damage to the file system, and to the append-only file', async () => {
  const fresh = join(folder, 'fresh');
  copyFileSync(image, fresh);
  keep(SET);
  expect(await checkDataDisk(image)).toEqual({
    complaints: [],
    files: ['appendonlydir', 'lost+found'],
    writes: [0],
  });
  change('clri lost+found');
  expect((await checkDataDisk(image)).complaints).not.toEqual([]);
  copyFileSync(fresh, image);
  keep(SET.slice(0, -4));
  expect((await checkDataDisk(image)).complaints).toEqual([expect.stringMatching(/not valid/)]);
});
