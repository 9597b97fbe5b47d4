import { readFileSync } from 'node:fs';
import type { Command } from 'commander';
import { describe, expect, it } from 'vitest';
import { EXIT_CODES } from './exit-codes.ts';
import { Output } from './output.ts';
import { buildProgram } from './program.ts';

const DOCUMENT = readFileSync(new URL('../../docs/cli.md', import.meta.url), 'utf8');

/** `understudy run <spec>` → flags of its options, for every command that does something. */
function defined(parent: Command, path: string): [string, string[]][] {
  return parent.commands.flatMap((command): [string, string[]][] => {
    const operands = command.registeredArguments.map((argument) => {
      const name = `${argument.name()}${argument.variadic ? '...' : ''}`;
      return argument.required ? `<${name}>` : `[${name}]`;
    });
    const words = [path, command.name(), ...operands];
    if (command.commands.length > 0) return defined(command, `${path} ${command.name()}`);
    return [[words.join(' '), command.options.map(({ flags }) => flags).sort()]];
  });
}

/** The same, read from the document. */
function documented(markdown: string): [string, string[]][] {
  return markdown
    .split('\n### ')
    .slice(1)
    .map((section) => {
      const usage = /^`([^`]+)`/.exec(section)?.[1] ?? '';
      const body = section.split('\n## ')[0] ?? '';
      const flags = [...body.matchAll(/^\| `(--[^`]+)` \|/gm)].map(([, flag]) => flag ?? '');
      return [usage, flags.sort()];
    });
}

const program = buildProgram(new Output({ json: false }), () => {});

describe('docs/cli.md', () => {
  it('describes exactly the commands and options that there are', () => {
    expect(documented(DOCUMENT)).toEqual(defined(program, 'understudy'));
  });

  it('would be found wrong with an option missing or a command too many', () => {
    const planted = [
      DOCUMENT.replace(/^\| `--follow`.*\n/m, ''),
      DOCUMENT.replace('### `understudy ls`', '### `understudy rm`'),
    ];
    for (const document of planted) expect(documented(document)).not.toEqual(defined(program, 'understudy'));
  });

  it('lists the exit codes as they are', () => {
    const rows = [...DOCUMENT.matchAll(/^\| (\d+) \| (.+) \|$/gm)].map(([, code, meaning]) => ({
      code: Number(code),
      meaning,
    }));
    expect(rows).toEqual(Object.values(EXIT_CODES));
  });
});

describe('the help', () => {
  it.each(
    program.commands
      .filter((command) => command.name() !== 'help')
      // Of a group, its commands.
      .flatMap((command) => (command.commands.length > 0 ? command.commands : [command]))
      .map((command) => [command.name(), command] as const),
  )('of %s has examples and the option --json', (_, command) => {
    let text = '';
    command.configureOutput({ writeOut: (part) => (text += part) }).outputHelp();
    expect(text).toContain('Examples:\n  ');
    expect(text).toContain('--json');
  });
});
