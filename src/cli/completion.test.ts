import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { allNodes, commandTree, leafCommands } from './command-tree.ts';
import { bashCompletion } from './completion-bash.ts';
import { fishCompletion } from './completion-fish.ts';
import { zshCompletion } from './completion-zsh.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { manPage } from './man-page.ts';
import { Output } from './output.ts';
import { buildProgram } from './program.ts';

const program = commandTree(buildProgram(new Output({ json: false }), () => {}));
const BIN = fileURLToPath(new URL('../../bin', import.meta.url));

let folder: string;
let script: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-completion-'));
  script = join(folder, 'understudy.bash');
  writeFileSync(script, bashCompletion(program));
  for (const vm of ['redis', 'redis-two']) {
    mkdirSync(join(folder, 'run', vm), { recursive: true });
    writeFileSync(join(folder, 'run', vm, 'keeper.json'), 'being written');
  }
  mkdirSync(join(folder, 'specs', 'more'), { recursive: true });
  writeFileSync(join(folder, 'specs', 'a b.yaml'), '');
});
afterAll(() => rmSync(folder, { recursive: true }));

/** What bash offers for the last of these words, through the function that it would call. */
function offered(...words: string[]): string[] {
  const line = ['understudy', ...words].map((word) => `'${word}'`).join(' ');
  const ask = `. ${script}; COMP_WORDS=(${line}); COMP_CWORD=${words.length}; _understudy; printf '%s\\n' "\${COMPREPLY[@]}"`;
  const answer = execFileSync('bash', ['--norc', '-c', ask], {
    encoding: 'utf8',
    cwd: join(folder, 'specs'),
    env: { PATH: `${BIN}:${process.env.PATH}`, UNDERSTUDY_RUN_DIR: join(folder, 'run'), HOME: folder },
  });
  return answer.split('\n').filter((word) => word !== '');
}

describe('completion in bash', () => {
  it('is a script without fault, also for who stops at unset variables', () => {
    expect(spawnSync('bash', ['-n', script], { encoding: 'utf8' })).toMatchObject({ status: 0, stderr: '' });
  });

  it('offers every command, and those that begin so', () => {
    expect(offered('').sort()).toEqual(program.commands.map(({ path }) => path).sort());
    expect(offered('st').sort()).toEqual(['start', 'status', 'stop']);
    expect(offered('guest', '')).toEqual(['build']);
    expect(offered('help', 'prom')).toEqual(['promote']);
  });

  it.each(leafCommands(program).map((node) => [node.path, node] as const))(
    'offers the options of %s',
    (path, { options }) => {
      const longs = offered(...path.split(' '), '--');
      expect(longs.sort()).toEqual(options.map(({ long }) => long).sort());
    },
  );

  it('offers what an option takes, however it is given', () => {
    expect(offered('run', '--wait', '')).toEqual(['protected', 'started', 'none']);
    expect(offered('run', '--wait', '=', 'pro')).toEqual(['protected']);
    expect(offered('run', '--wait', '=')).toEqual(['protected', 'started', 'none']);
    expect(offered('run', '--timeout', '')).toEqual([]);
    expect(offered('completion', 'z')).toEqual(['zsh']);
    expect(offered('install', '--root', '')).toEqual(['more']);
  });

  it('offers names of VMs, and files for specifications', () => {
    expect(offered('stop', 're')).toEqual(['redis', 'redis-two']);
    expect(offered('stop', '--force', 'redis-')).toEqual(['redis-two']);
    expect(offered('stop', 'redis', '')).toEqual([]);
    expect(offered('run', 'a')).toEqual(['a b.yaml']);
    expect(offered('run', '--wait', 'none', '').sort()).toEqual(['a b.yaml', 'more']);
  });
});

describe.each([
  ['zsh', zshCompletion(program), ['-n']],
  ['fish', fishCompletion(program), ['--no-execute']],
] as const)('completion in %s', (shell, text, check) => {
  it('knows every command and every option', () => {
    for (const { path, options } of allNodes(program)) {
      expect(text).toContain(path);
      for (const { long } of options) expect(text).toContain(shell === 'fish' ? `-l ${long.slice(2)}` : long);
    }
  });

  it('is a script without fault, where the shell is there to say so', () => {
    const path = join(folder, `understudy.${shell}`);
    writeFileSync(path, text);
    const { status, error, stderr } = spawnSync(shell, [...check, path], { encoding: 'utf8' });
    if (error === undefined) expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    else expect(error).toMatchObject({ code: 'ENOENT' });
  });
});

describe('the manual page', () => {
  const page = manPage(program, { version: '1.2.3', exitCodes: Object.values(EXIT_CODES) });

  it('describes every command with every option, and what exit codes mean', () => {
    const plain = page.replaceAll('\\-', '-').replaceAll('\\(aq', "'");
    for (const { path, options } of leafCommands(program)) {
      const section = plain.split('.SS ').find((part) => part.startsWith(`"understudy ${path}`)) ?? '';
      for (const { flags } of options) expect(section).toContain(`.B ${flags}\n`);
    }
    for (const { meaning } of Object.values(EXIT_CODES))
      expect(plain).toContain(meaning.replaceAll("'", "'"));
  });

  it('is understood by groff without a warning, where groff is there', () => {
    const groff = (text: string) =>
      spawnSync('groff', ['-man', '-Tutf8', '-ww'], { input: text, encoding: 'utf8' });
    const { error, stdout, stderr } = groff(page);
    if (error !== undefined) {
      expect(error).toMatchObject({ code: 'ENOENT' });
      return;
    }
    expect(stderr).toBe('');
    expect(stdout).toContain('redis.yaml');
    expect(groff(`${page}\n.nosuchrequest\n`).stderr).toContain('nosuchrequest');
  });
});
