import { type CommandNode, leafCommands, type OptionNode } from './command-tree.ts';

interface ManPageSetting {
  readonly version: string;
  readonly exitCodes: readonly { readonly code: number; readonly meaning: string }[];
}

/** understudy.1 in the man macros of roff, man(7). */
export function manPage(program: CommandNode, { version, exitCodes }: ManPageSetting): string {
  return [
    `.TH UNDERSTUDY 1 "" "Understudy ${version}" "User Commands"`,
    '.SH NAME',
    `understudy \\- ${escaped(lowerFirst(program.description.replace(/\.$/, '')))}`,
    '.SH SYNOPSIS',
    '.B understudy',
    '.I COMMAND',
    '.RI [ ARGUMENTS ]',
    '.SH DESCRIPTION',
    'Each VM is kept by a process of its own, its keeper. Primary and shadow are two QEMU processes on one machine:',
    'when the first dies, hangs or panics, the second goes on from the last committed epoch. Options may stand',
    'before or after operands.',
    '.SH COMMANDS',
    ...leafCommands(program).flatMap(commandSection),
    '.SH "EXIT STATUS"',
    ...exitCodes.flatMap(({ code, meaning }) => ['.TP', `.B ${code}`, escaped(meaning)]),
    '.SH ENVIRONMENT',
    ...ENVIRONMENT.flatMap(([name, meaning]) => ['.TP', `.B ${name}`, escaped(meaning)]),
    '.SH FILES',
    ...FILES.flatMap(([path, meaning]) => ['.TP', `.I ${escaped(path)}`, escaped(meaning)]),
    '.SH "SEE ALSO"',
    '.BR qemu (1),',
    '.BR systemctl (1),',
    '.BR journalctl (1)',
    '',
  ].join('\n');
}

const ENVIRONMENT: readonly (readonly [string, string])[] = [
  ['UNDERSTUDY_CONFIG', 'Configuration of the host, instead of /etc/understudy/host.yaml.'],
  ['UNDERSTUDY_RUN_DIR', 'Directory for sockets, logs and records of VMs.'],
  ['UNDERSTUDY_MEMORY_DIR', 'File system in memory that holds the memory of guests.'],
  ['UNDERSTUDY_STATE_DIR', 'Directory for what the host keeps over a reboot.'],
  ['UNDERSTUDY_CACHE', 'Directory for what can be made again.'],
  ['UNDERSTUDY_HOST_SOCKET', 'Where the API of the host listens.'],
  ['UNDERSTUDY_DEBUG', 'When set, errors come with their stack.'],
];

const FILES: readonly (readonly [string, string])[] = [
  ['/etc/understudy/host.yaml', 'Configuration of the host; understudy host --help shows all keys.'],
  ['/run/understudy/NAME/', 'Sockets, logs and record of the VM NAME.'],
  ['/var/lib/understudy/host.db', 'Declared VMs and events of the host.'],
];

function commandSection(command: CommandNode): string[] {
  const operands = command.operands.map(({ name, required, variadic }) => {
    const word = `${name.toUpperCase()}${variadic ? '...' : ''}`;
    return required ? word : `[${word}]`;
  });
  return [
    `.SS "understudy ${escaped([command.path, ...operands].join(' '))}"`,
    `${escaped(upperFirst(command.description))}.`,
    ...command.options.flatMap(optionEntry),
    ...example(command.afterHelp),
  ];
}

function optionEntry({ flags, description, defaultValue }: OptionNode): string[] {
  const fallback = defaultValue === undefined ? '' : ` Default ${defaultValue}.`;
  return ['.TP', `.B ${escaped(flags)}`, escaped(`${upperFirst(description)}.${fallback}`)];
}

/** As the help shows it, in a fixed-width font and not filled. */
function example(text: string): string[] {
  if (text === '') return [];
  return ['.PP', '.nf', '.ft CW', ...text.split('\n').map(escaped), '.ft', '.fi'];
}

/** Backslashes and hyphens are signs of roff, and so is a dot at the beginning of a line. */
function escaped(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll('~', '\\(ti')
    .replaceAll('^', '\\(ha')
    .replaceAll('`', '\\(ga')
    .replaceAll("'", '\\(aq')
    .replace(/^\./, '\\&.');
}

function upperFirst(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

function lowerFirst(text: string): string {
  return text.slice(0, 1).toLowerCase() + text.slice(1);
}
