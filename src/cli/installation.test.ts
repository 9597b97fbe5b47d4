import { execFile } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { parseHostConfig } from '../config/host-config.ts';
import { systemdUnits } from './systemd-units.ts';

const MAIN = fileURLToPath(new URL('main.ts', import.meta.url));
const PACKAGE = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '');
const HOST_UNIT = 'usr/local/lib/systemd/system/understudy-host.service';
const MANIFEST = 'usr/local/lib/understudy/installed.json';

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'us-root-'));
});
afterEach(() => rmSync(root, { recursive: true }));

interface Told {
  readonly code: number;
  readonly steps: readonly { done: string; what: string; why?: string }[];
  readonly error?: { code: string; message: string };
}

function understudy(...words: string[]): Promise<Told> {
  const { promise, resolve } = Promise.withResolvers<Told>();
  execFile(process.execPath, [MAIN, ...words, '--root', root, '--json'], (thrown, stdout) => {
    resolve({ code: Number(thrown?.code ?? 0), steps: [], ...JSON.parse(stdout) });
  });
  return promise;
}

/** Paths of all files and links, and what is in them. */
function tree(): Record<string, string> {
  const entries = readdirSync(root, { recursive: true, withFileTypes: true });
  return Object.fromEntries(
    entries
      .filter((entry) => !entry.isDirectory())
      .map((entry) => join(entry.parentPath, entry.name))
      .map((path) => [path.slice(root.length), statOf(path)]),
  );
}

function statOf(path: string): string {
  try {
    return `→ ${readlinkSync(path)}`;
  } catch {
    return readFileSync(path, 'utf8');
  }
}

const doneTo = ({ steps }: Told, done: string) =>
  steps.filter((step) => step.done === done).map(({ what }) => what);

describe('an installation', () => {
  it('writes what it says, of which nothing is left when it is uninstalled', async () => {
    const told = await understudy('install');
    expect(told.code).toBe(0);
    const files = Object.keys(tree()).filter((path) => path !== `/${MANIFEST}`);
    expect(files.length).toBeGreaterThan(8);
    expect(
      doneTo(told, 'created')
        .filter(
          (path) =>
            statSync(join(root, path), { throwIfNoEntry: false })?.isFile() ||
            path.endsWith('/bin/understudy'),
        )
        .sort(),
    ).toEqual(files.sort());
    expect(tree()['/usr/local/bin/understudy']).toBe(`→ ${PACKAGE}/bin/understudy`);
    expect(statSync(join(root, 'var/lib/understudy')).mode & 0o777).toBe(0o700);

    const gone = await understudy('uninstall');
    expect(gone.code).toBe(0);
    expect(tree()).toEqual({});
    for (const directory of ['etc/understudy', 'var/lib/understudy', 'usr/local/lib/understudy'])
      expect(existsSync(join(root, directory))).toBe(false);
    expect((await understudy('uninstall')).error?.code).toBe('CLI_NOT_INSTALLED');
  });

  it('changes nothing when it is repeated', async () => {
    await understudy('install');
    const before = tree();
    const again = await understudy('install');
    expect(new Set(again.steps.map(({ done }) => done))).toEqual(new Set(['unchanged', 'skipped']));
    expect(tree()).toEqual(before);
  });

  it('only says what it would do with --dry-run', async () => {
    const told = await understudy('install', '--dry-run');
    expect(doneTo(told, 'created')).toContain(`/${HOST_UNIT}`);
    expect(readdirSync(root)).toEqual([]);
    await understudy('install');
    const before = tree();
    expect(doneTo(await understudy('uninstall', '--dry-run'), 'removed')).toContain(`/${HOST_UNIT}`);
    expect(tree()).toEqual(before);
  });

  it('follows a package that has moved, and what the configuration says of directories', async () => {
    await understudy('install');
    writeFileSync(join(root, 'etc/understudy/host.yaml'), 'runDirectory: /run/vms\nstate: /srv/state\n');
    const told = await understudy('install', '--package', '/opt/understudy');
    expect(doneTo(told, 'updated')).toEqual(
      expect.arrayContaining(['/usr/local/bin/understudy', `/${HOST_UNIT}`]),
    );
    expect(doneTo(told, 'kept')).toEqual(['/etc/understudy/host.yaml']);
    const unit = readFileSync(join(root, HOST_UNIT), 'utf8');
    expect(unit).toContain('ExecStart=/opt/understudy/node_modules/.bin/node ');
    expect(unit).toContain('RuntimeDirectory=vms\n');
    expect(unit).toContain('ReadWritePaths=/srv/state\n');
    expect(unit).toContain('Environment=UNDERSTUDY_RUN_DIR=/run/vms\n');
  });

  it('replaces nothing that others wrote or changed, unless it is told to', async () => {
    const unit = join(root, HOST_UNIT);
    mkdirSync(join(unit, '..'), { recursive: true });
    writeFileSync(unit, 'of another');
    const refused = await understudy('install');
    expect(refused.error).toMatchObject({
      code: 'CLI_FILE_EXISTS',
      message: expect.stringContaining(HOST_UNIT),
    });
    expect(Object.keys(tree())).toEqual([`/${HOST_UNIT}`]);
    expect((await understudy('install', '--force')).code).toBe(0);
    writeFileSync(unit, 'changed by hand');
    expect((await understudy('install')).error?.code).toBe('CLI_FILE_EXISTS');
    expect(readFileSync(unit, 'utf8')).toBe('changed by hand');
  });

  it('leaves to the administrator what is his when it is uninstalled', async () => {
    mkdirSync(join(root, 'etc/understudy'), { recursive: true });
    await understudy('install');
    for (const path of ['etc/understudy/host.yaml', HOST_UNIT]) writeFileSync(join(root, path), 'mine: now');
    writeFileSync(join(root, 'var/lib/understudy/host.db'), 'state');
    writeFileSync(join(root, 'etc/understudy/host.yaml'), 'log: {level: warn}\n');
    const told = await understudy('uninstall');
    expect(Object.keys(tree()).sort()).toEqual(
      ['/etc/understudy/host.yaml', `/${HOST_UNIT}`, '/var/lib/understudy/host.db'].sort(),
    );
    expect(doneTo(told, 'kept').sort()).toEqual(
      ['/etc/understudy/host.yaml', `/${HOST_UNIT}`, '/var/lib/understudy'].sort(),
    );
    // It was there before.
    expect(existsSync(join(root, 'etc/understudy'))).toBe(true);
  });

  it('takes the state away only with --purge and a yes', async () => {
    await understudy('install');
    writeFileSync(join(root, 'var/lib/understudy/host.db'), 'state');
    expect((await understudy('uninstall', '--purge')).error?.code).toBe('CLI_USAGE');
    expect(existsSync(join(root, HOST_UNIT))).toBe(true);
    expect((await understudy('uninstall', '--purge', '--yes')).code).toBe(0);
    expect(tree()).toEqual({});
    expect(existsSync(join(root, 'var/lib/understudy'))).toBe(false);
  });

  it('makes the group in the image, and removes it unless somebody is in it', async () => {
    const database = join(root, 'etc/group');
    mkdirSync(join(root, 'etc'));
    writeFileSync(database, 'root:x:0:\n');
    expect(doneTo(await understudy('install'), 'created')).toContain('group understudy');
    expect(readFileSync(database, 'utf8')).toMatch(/^understudy:x:\d+:$/m);
    expect(doneTo(await understudy('install'), 'unchanged')).toContain('group understudy');
    expect(doneTo(await understudy('uninstall'), 'removed')).toContain('group understudy');
    expect(readFileSync(database, 'utf8')).toBe('root:x:0:\n');

    await understudy('install');
    writeFileSync(database, 'root:x:0:\nunderstudy:x:999:eve\n');
    expect(doneTo(await understudy('uninstall'), 'kept')).toEqual(['group understudy']);
  });

  it('is not guessed at when the list of what was written cannot be read', async () => {
    await understudy('install');
    writeFileSync(join(root, MANIFEST), '{"form": 2}');
    const before = tree();
    for (const command of ['install', 'uninstall'])
      expect((await understudy(command)).error?.code).toBe('CLI_MANIFEST_UNREADABLE');
    expect(tree()).toEqual(before);
  });

  it('is refused with a wrong configuration, and nothing is written', async () => {
    mkdirSync(join(root, 'etc/understudy'), { recursive: true });
    writeFileSync(join(root, 'etc/understudy/host.yaml'), 'stat: /x\n');
    expect((await understudy('install')).error).toMatchObject({
      code: 'CONFIG_INVALID',
      message: expect.stringContaining('did you mean state?'),
    });
    expect(existsSync(join(root, 'usr'))).toBe(false);
  });
});

describe('units of systemd', () => {
  const unitsFor = (packageDirectory: string) => {
    const config = parseHostConfig('memoryDirectory: /mnt/with space', { source: '' });
    const units = systemdUnits({ node: `${packageDirectory}/node`, packageDirectory, config });
    return units.get('understudy-host.service') ?? '';
  };

  it('take any path by its letters', () => {
    const unit = unitsFor('/opt/a b"c%d$e\\f');
    expect(unit).toContain('ExecStart="/opt/a b\\"c%%d$$e\\\\f/node" --disable-warning');
    expect(unit).toContain('Environment="UNDERSTUDY_MEMORY_DIR=/mnt/with space"');
    expect(unit).toContain('ReadWritePaths="/mnt/with space"');
  });

  it('let what takes shadows in start keepers as those of VMs are, and end without them', () => {
    const config = parseHostConfig('state: /srv/state', { source: '' });
    const units = systemdUnits({ node: '/opt/node', packageDirectory: '/opt', config });
    const site = units.get('understudy-site.service') ?? '';
    expect(site).toContain('ExecStart=/opt/node /opt/src/keeper/site-main.ts --text\n');
    expect(site).toContain('Environment=UNDERSTUDY_STATE_DIR=/srv/state\n');
    expect(site).toContain('KillMode=process\n');
    const mayOf = (unit = '') => unit.match(/^(?:CapabilityBoundingSet|DeviceAllow|Protect\w+)=.*$/gm);
    expect(mayOf(site)).toEqual(mayOf(units.get('understudy-keeper@.service')));
    expect(mayOf(site)).not.toEqual(mayOf(units.get('understudy-host.service')));
  });

  it('do not hide the package from itself', () => {
    expect(unitsFor('/opt/understudy')).toMatch(/ProtectHome=yes\nPrivateTmp=yes/);
    expect(unitsFor('/home/eve/understudy')).toMatch(/ProtectHome=read-only\nPrivateTmp=yes/);
    expect(unitsFor('/tmp/understudy')).toMatch(/ProtectHome=yes\nPrivateTmp=no/);
  });
});
