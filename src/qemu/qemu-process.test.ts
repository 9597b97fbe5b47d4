import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { SmallTmpfs } from '../../test/kit/small-tmpfs.ts';
import { BoundedLog } from './bounded-log.ts';
import { QemuFinder } from './qemu-binary.ts';
import { type LaunchOptions, QemuProcess } from './qemu-process.ts';

const failing = (code: string, facts = {}) => expect.objectContaining({ code, ...facts });
const IDLE = ['-nodefaults', '-display', 'none', '-machine', 'none', '-S'];

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-process-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

function launch(options: Partial<LaunchOptions> = {}): Promise<QemuProcess> {
  return QemuProcess.launch({
    binary: 'qemu-system-x86_64',
    args: IDLE,
    logPath: join(folder, 'log'),
    ...options,
  });
}

describe('a QEMU process', () => {
  test('is not in the session of our terminal, so that Ctrl-C does not reach it', async () => {
    await using qemu = await launch();
    // Fields after the name, which stands in brackets: state, parent, process group, session.
    const session = (pid: number) => readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ')[3];
    expect(session(qemu.pid)).toBe(String(qemu.pid));
    expect(session(qemu.pid)).not.toBe(session(process.pid));
  });

  test('inherits the descriptors and the environment that it is given', async () => {
    const fd = openSync(folder, 'r');
    await using qemu = await launch({ extraFds: [fd], environment: { UNDERSTUDY_FD: '3' } });
    closeSync(fd);
    expect(readlinkSync(`/proc/${qemu.pid}/fd/3`)).toBe(folder);
    const environment = readFileSync(`/proc/${qemu.pid}/environ`, 'utf8').split('\0');
    expect(environment).toContain('UNDERSTUDY_FD=3');
    expect(environment).toContain(`PATH=${process.env.PATH}`);
  });

  // Only root may start a process of another user.
  test.runIf(process.geteuid?.() === 0)('runs as the user that is named', async () => {
    await using qemu = await launch({ user: 'nobody' });
    const status = readFileSync(`/proc/${qemu.pid}/status`, 'utf8');
    const nobody = statUid('nobody');
    expect(/^Uid:\s+(\d+)/m.exec(status)?.[1]).toBe(nobody);
    expect(/^Groups:\s*$/m.test(status)).toBe(true);
  });

  test('is not started for a user who does not exist', async () => {
    await expect(launch({ user: 'no-such-user' })).rejects.toThrow(failing('QEMU_USER_UNKNOWN'));
  });

  test('dies of SIGKILL also when it is stopped, and then knows how', async () => {
    await using qemu = await launch();
    qemu.signal('SIGSTOP');
    expect(qemu.exit).toBeUndefined();
    expect(await qemu.kill()).toEqual({ code: null, signal: 'SIGKILL' });
    expect(qemu.hasExited).toBe(true);
    expect(qemu.signal('SIGTERM')).toBe(false);
    expect(await qemu.kill()).toEqual(await qemu.exited);
  });

  test('leaves its last words in the log and in the error', async () => {
    await using qemu = await launch({ args: ['-no-such-option'] });
    expect(await qemu.exited).toEqual({ code: 1, signal: null });
    expect(await qemu.startFailure(undefined)).toMatchObject({
      code: 'QEMU_START_FAILED',
      message: expect.stringMatching(/^QEMU ended \(exit code 1\): .*-no-such-option: invalid option/),
    });
    expect(readFileSync(join(folder, 'log'), 'utf8')).toContain('invalid option');
  });

  test('that is not installed is reported with the package to install', async () => {
    const missing = failing('QEMU_MISSING', { hint: expect.stringContaining('qemu-system-x86') });
    await expect(launch({ binary: 'qemu-system-nowhere' })).rejects.toThrow(missing);
  });
});

describe('the search for QEMU', () => {
  const program = (name: string, says: string) => {
    writeFileSync(join(folder, name), `#!/bin/sh\necho asked >> ${folder}/asked\necho '${says}'\n`, {
      mode: 0o755,
    });
  };

  test('finds the installed one and its version', async () => {
    const found = await new QemuFinder().find('qemu-system-x86_64');
    expect(found.path).toMatch(/^\/.*qemu-system-x86_64$/);
    expect(found.version).toMatch(/^\d+\.\d+\.\d+$/);
  });

  test('asks each binary once, and again when it was replaced', async () => {
    const finder = new QemuFinder({ searchPath: `/nowhere:${folder}` });
    program('qemu', 'QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)');
    expect(await finder.find('qemu')).toEqual({ path: join(folder, 'qemu'), version: '7.2.22' });
    await Promise.all([finder.find('qemu'), finder.find(join(folder, 'qemu'))]);
    expect(readFileSync(join(folder, 'asked'), 'utf8')).toBe('asked\n');
    rmSync(join(folder, 'qemu'));
    program('qemu', 'QEMU emulator version 10.0.2');
    expect(await finder.find('qemu')).toMatchObject({ version: '10.0.2' });
  });

  test.each(['7.1.0', '5.2.0', '6.99'])('refuses version %s', async (version) => {
    program('qemu', `QEMU emulator version ${version}`);
    await expect(new QemuFinder({ searchPath: folder }).find('qemu')).rejects.toThrow(
      failing('QEMU_TOO_OLD', { message: expect.stringContaining(version) }),
    );
  });

  test('refuses what is missing, and what is no QEMU', async () => {
    const finder = new QemuFinder({ searchPath: folder });
    await expect(finder.find('qemu')).rejects.toThrow(failing('QEMU_MISSING'));
    program('qemu', 'hello');
    await expect(finder.find('qemu')).rejects.toThrow(failing('QEMU_MISSING'));
  });
});

test('a log keeps one predecessor, and never more than twice its bound', () => {
  const path = join(folder, 'bounded');
  writeFileSync(path, 'old line\n');
  const log = new BoundedLog(path, { bytesMax: 100 });
  for (let line = 0; line < 50; line += 1) log.append(`line ${line}\n`);
  log[Symbol.dispose]();
  log.append('too late');
  expect(readFileSync(path, 'utf8').endsWith('line 49\n')).toBe(true);
  expect(statSync(path).size).toBeLessThanOrEqual(100);
  expect(statSync(`${path}.1`).size).toBeLessThanOrEqual(100);
});

test('a log on a full disk loses entries, whole ones, and says so once there is room again', () => {
  using tmpfs = new SmallTmpfs(64 * 1024);
  const [path, filler] = [join(tmpfs.path, 'log'), join(tmpfs.path, 'filler')];
  using log = new BoundedLog(path, { lossNote: (entries, reason) => `lost ${entries}: ${reason}\n` });
  log.append('first\n');
  writeFileSync(filler, Buffer.alloc(60 * 1024));
  const entry = `${'x'.repeat(5000)}\n`;
  for (let times = 0; times < 3; times += 1) log.append(entry);
  rmSync(filler);
  log.append('last\n');
  expect(readFileSync(path, 'utf8')).toMatch(/^first\nlost 3: ENOSPC.*\nlast\n$/);
});

test('a log whose directory is gone when it is renamed loses entries and throws nothing', () => {
  const inside = join(folder, 'gone');
  mkdirSync(inside);
  using log = new BoundedLog(join(inside, 'log'), { bytesMax: 10 });
  rmSync(inside, { recursive: true });
  for (let line = 0; line < 9; line += 1) log.append('a line\n');
});

function statUid(user: string): string | undefined {
  const line = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .find((entry) => entry.startsWith(`${user}:`));
  return line?.split(':')[2];
}
