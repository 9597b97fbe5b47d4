import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { REPOSITORY } from '../kit/static-checks.ts';

// Installing for real would change the machine. So `run` gets a PATH on which only these stand-ins stand; each
// writes down how it was called, and what apt-get "installs" appears beside it.
const PLAIN_TOOLS = 'sh cat chmod cmp cp cut dirname env id mkdir readlink sed sleep touch tr uname'.split(
  ' ',
);

const PROGRAM_OF_PACKAGE: Record<string, string> = {
  npm: 'npm',
  'qemu-system-x86': 'qemu-system-x86_64',
  'qemu-utils': 'qemu-img',
  gcc: 'gcc',
  'libc6-dev': 'c-headers',
  iproute2: 'ip',
  passt: 'passt',
  jq: 'jq',
  curl: 'curl',
  'redis-tools': 'redis-benchmark',
  'etcd-server': 'etcd',
  'victoria-metrics': 'victoria-metrics',
  'libnbd-bin': 'nbdcopy',
  fio: 'fio',
  e2fsprogs: 'mke2fs',
};
const PACKAGES = Object.keys(PROGRAM_OF_PACKAGE);

const RECORD = 'echo "$(basename_of "$0") $*" >>"$CALLS"';
const HEADER = `#!/bin/sh\nbasename_of() { echo "\${1##*/}"; }\n${RECORD}\n`;

const NPM = `${HEADER}
case $1 in
  ci)
    [ -z "\${NPM_CI_FAILS:-}" ] || exit 1
    mkdir -p node_modules/.bin
    cp ../node node_modules/.bin/
    echo 'npm talks' ;;
esac
`;

/** Answers a signal only when it is the very process that was started as \`run\`. */
const NODE = `#!/bin/sh
echo "\${UNDERSTUDY_SOAK:+UNDERSTUDY_SOAK=$UNDERSTUDY_SOAK }node $*" >>"$CALLS"
[ -z "\${WAIT_FOR_SIGNAL:-}" ] || trap 'echo ended; exit 7' TERM
echo "script output in $(pwd)"
[ -z "\${WAIT_FOR_SIGNAL:-}" ] || while :; do sleep 0.05; done
`;

const SCRIPTS: Record<string, string> = JSON.parse(
  readFileSync(join(REPOSITORY, 'package.json'), 'utf8'),
).scripts;

const aptGet = (bin: string): string => `${HEADER}
case "$*" in
  *update*) touch "${bin}/.lists" ;;
  *--simulate*) [ -z "\${NO_LISTS:-}" ] || [ -e "${bin}/.lists" ] || exit 100 ;;
  *install*)
    echo 'apt-get talks'
    [ -z "\${OLD_LISTS:-}" ] || [ -e "${bin}/.lists" ] || exit 100
    for argument; do
      [ ! -e "${bin}/../packages/$argument" ] || cp "${bin}/../packages/$argument"/* "${bin}/"
    done ;;
esac
`;

let folder: string;
let bin: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'understudy-run-'));
  bin = join(folder, 'bin');
  mkdirSync(bin);
  for (const tool of PLAIN_TOOLS) symlinkSync(whereIs(tool), join(bin, tool));
  for (const [name, program] of Object.entries(PROGRAM_OF_PACKAGE)) {
    mkdirSync(join(folder, 'packages', name), { recursive: true });
    executable(join(folder, 'packages', name, program), program === 'npm' ? NPM : programText(program));
  }
  executable(join(bin, 'apt-get'), aptGet(bin));
  executable(join(folder, 'node'), NODE);
  mkdirSync(join(folder, 'project'));
  copyFileSync(join(REPOSITORY, 'run'), join(folder, 'project', 'run'));
  writeFileSync(join(folder, 'project', 'package-lock.json'), '{}');
  asUser('root');
});

afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('the run script', () => {
  it('installs on a bare system exactly what is missing, says so, and then runs the program', () => {
    const { status, stdout, stderr } = run(['test', '--bail']);
    expect(status).toBe(0);
    for (const name of PACKAGES) expect(stderr).toContain(`installing Debian package ${name} (`);
    expect(calls()).toEqual([
      `apt-get --simulate install --no-install-recommends ${PACKAGES.join(' ')}`,
      `apt-get -qq -y install --no-install-recommends ${PACKAGES.join(' ')}`,
      'npm ci --no-audit --no-fund --loglevel=error',
      'node test/kit/suite.ts --bail',
    ]);
    expect(stdout, 'standard output belongs to the script').toBe(`script output in ${folder}/project\n`);
  });

  it('asks neither apt-get nor npm for anything when everything is there', () => {
    run(['demo']);
    forgetCalls();
    const { status, stderr } = run(['demo', '--json']);
    expect(status).toBe(0);
    expect(stderr).toBe('');
    expect(calls()).toEqual(['node src/cli/main.ts demo --json']);
  });

  it.each(['demo', 'test', 'check', 'bench', 'soak'])('runs for %s what npm would run', (command) => {
    run([command, 'x y']);
    expect(calls().at(-1)).toBe(`${SCRIPTS[command]} x y`);
  });

  it('is the program in the end, so that signals reach it', async () => {
    const child = spawn(join(folder, 'project', 'run'), ['demo'], {
      cwd: folder,
      env: { PATH: bin, CALLS: join(folder, 'calls'), WAIT_FOR_SIGNAL: '1' },
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const exited = once(child, 'exit');
    try {
      for await (const line of createInterface({ input: child.stdout })) {
        if (line.startsWith('script output')) child.kill('SIGTERM');
        if (line === 'ended') break;
      }
      expect(await exited).toEqual([7, null]);
    } finally {
      child.kill('SIGKILL');
    }
  });

  it('finds its own folder through a symbolic link', () => {
    symlinkSync(join(folder, 'project', 'run'), join(folder, 'linked'));
    const { status, stdout } = run(['demo'], {}, 'linked');
    expect(status).toBe(0);
    expect(stdout).toBe(`script output in ${folder}/project\n`);
  });

  it('installs the one package that is missing', () => {
    run(['demo']);
    rmSync(join(bin, 'passt'));
    forgetCalls();
    run(['demo']);
    expect(calls()).toContain('apt-get -qq -y install --no-install-recommends passt');
  });

  it('installs the npm packages again after package-lock.json changed', () => {
    run(['demo']);
    writeFileSync(join(folder, 'project', 'package-lock.json'), '{"changed": true}');
    forgetCalls();
    run(['demo']);
    expect(calls()[0]).toMatch(/^npm ci/);
  });

  it('fetches package lists when there are none', () => {
    expect(run(['demo'], { NO_LISTS: '1' }).status).toBe(0);
    expect(calls()[1]).toBe('apt-get -qq update');
  });

  it('fetches package lists anew when the ones it has are too old', () => {
    expect(run(['demo'], { OLD_LISTS: '1' }).status).toBe(0);
    expect(calls().slice(1, 4)).toEqual([
      expect.stringContaining('install'),
      'apt-get -qq update',
      expect.stringContaining('install'),
    ]);
  });

  it('uses sudo when it is not run by root', () => {
    asUser('somebody');
    executable(join(bin, 'sudo'), `${HEADER}exec "$@"\n`);
    expect(run(['demo']).status).toBe(0);
    expect(calls().filter((call) => call.startsWith('sudo'))).toEqual([
      `sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends ${PACKAGES.join(' ')}`,
    ]);
  });

  it.each([
    ['apt-get', () => rmSync(join(bin, 'apt-get'))],
    ['root', () => asUser('somebody')],
  ])('says without %s what to install by hand, and exits with 69', (what, takeAway) => {
    takeAway();
    const { status, stderr } = run(['demo']);
    expect(status).toBe(69);
    expect(stderr).toContain(what);
    expect(stderr).toContain(`apt-get install --no-install-recommends ${PACKAGES.join(' ')}`);
    expect(calls()).toEqual([]);
  });

  it('does not take an interrupted npm ci for a finished one', () => {
    const { status, stderr } = run(['demo'], { NPM_CI_FAILS: '1' });
    expect(status).toBe(69);
    expect(stderr).toContain('npm ci failed');
    forgetCalls();
    expect(run(['demo']).status).toBe(0);
    expect(calls()[0]).toMatch(/^npm ci/);
  });

  it('passes the command line on from where the user stands, and needs only npm for it', () => {
    mkdirSync(join(folder, 'project', 'bin'));
    executable(join(folder, 'project', 'bin', 'understudy'), '#!/bin/sh\necho "$(pwd) $*"\n');
    const { stdout } = run(['understudy', 'run', 'vm.yaml']);
    expect(stdout).toBe(`${folder} run vm.yaml\n`);
    expect(calls().filter((call) => call.includes('-y install'))).toEqual([
      'apt-get -qq -y install --no-install-recommends npm',
    ]);
  });

  it('prints help without a command, and refuses a wrong one with 64', () => {
    expect(run([])).toMatchObject({ status: 0, stdout: expect.stringContaining('Usage: ./run COMMAND') });
    expect(run(['tset'])).toMatchObject({ status: 64, stderr: expect.stringContaining("no command 'tset'") });
    expect(calls()).toEqual([]);
  });
});

function run(args: string[], environment: Record<string, string> = {}, script = 'project/run') {
  return spawnSync(join(folder, script), args, {
    cwd: folder,
    env: { PATH: bin, CALLS: join(folder, 'calls'), ...environment },
    encoding: 'utf8',
    timeout: 20_000,
  });
}

function calls(): string[] {
  const path = join(folder, 'calls');
  return existsSync(path) ? readFileSync(path, 'utf8').split('\n').slice(0, -1).filter(isInstallation) : [];
}

/** Looking for the C headers is a call of gcc, but nothing that was asked for. */
function isInstallation(call: string): boolean {
  return !call.startsWith('gcc ');
}

function forgetCalls(): void {
  rmSync(join(folder, 'calls'), { force: true });
}

function asUser(user: 'root' | 'somebody'): void {
  rmSync(join(bin, 'id'), { force: true });
  executable(join(bin, 'id'), `#!/bin/sh\necho ${user === 'root' ? 0 : 1000}\n`);
}

/** A compiler finds headers only when they were installed. */
function programText(program: string): string {
  return program === 'gcc' ? `${HEADER}[ -e "\${0%/*}/c-headers" ]\n` : `${HEADER}`;
}

function executable(path: string, text: string): void {
  writeFileSync(path, text);
  chmodSync(path, 0o755);
}

function whereIs(tool: string): string {
  const path = ['/usr/bin', '/bin'].map((parent) => join(parent, tool)).find(existsSync);
  if (path === undefined) throw new Error(`this system has no ${tool}`);
  return path;
}
