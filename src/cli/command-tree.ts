import type { Argument, Command, Option } from 'commander';

/** What a person or a shell can say after `understudy`, read from the definition that is also what runs. */
export interface CommandNode {
  /** `guest build`; empty for the program itself. */
  readonly path: string;
  readonly description: string;
  readonly operands: readonly OperandNode[];
  readonly options: readonly OptionNode[];
  readonly commands: readonly CommandNode[];
  /** What the help says after its lists: examples and more. */
  readonly afterHelp: string;
}

interface OperandNode {
  readonly name: string;
  readonly required: boolean;
  readonly variadic: boolean;
  readonly completion: Completion;
}

export interface OptionNode {
  /** `--wait <goal>`, as the help shows it. */
  readonly flags: string;
  readonly long: string;
  readonly short: string | undefined;
  readonly description: string;
  readonly defaultValue: string | undefined;
  /** Undefined for an option that takes no value. */
  readonly completion: Completion | undefined;
}

/** What may stand in a place. */
export type Completion =
  | { readonly kind: 'choices'; readonly choices: readonly string[] }
  | { readonly kind: 'vm' }
  | { readonly kind: 'command' }
  | { readonly kind: 'file' }
  | { readonly kind: 'directory' }
  | { readonly kind: 'none' };

/** By the name of a value in angle brackets. */
const COMPLETIONS: Readonly<Record<string, Completion>> = {
  name: { kind: 'vm' },
  topic: { kind: 'command' },
  spec: { kind: 'file' },
  file: { kind: 'file' },
  path: { kind: 'file' },
  directory: { kind: 'directory' },
};

export function commandTree(command: Command, path = ''): CommandNode {
  const below = (child: Command) => (path === '' ? child.name() : `${path} ${child.name()}`);
  return {
    path,
    description: command.description(),
    operands: command.registeredArguments.map(operandNode),
    options: command.createHelp().visibleOptions(command).map(optionNode),
    commands: command.commands.map((child) => commandTree(child, below(child))),
    afterHelp: afterHelpOf(command),
  };
}

function operandNode(argument: Argument): OperandNode {
  const { required, variadic, argChoices } = argument;
  return { name: argument.name(), required, variadic, completion: completionOf(argument.name(), argChoices) };
}

function optionNode(option: Option): OptionNode {
  const { flags, long, short, description, defaultValue, argChoices } = option;
  const value = /[<[]([^>\]]+)[>\]]/.exec(flags)?.[1];
  return {
    flags,
    long: long ?? flags,
    short,
    description,
    defaultValue: defaultValue === undefined || defaultValue === false ? undefined : String(defaultValue),
    completion: value === undefined ? undefined : completionOf(value, argChoices),
  };
}

function completionOf(name: string, choices: readonly string[] | undefined): Completion {
  if (choices !== undefined) return { kind: 'choices', choices };
  return COMPLETIONS[name] ?? { kind: 'none' };
}

/** What `addHelpText('after', …)` added: the help as printed begins with the help as formatted. */
function afterHelpOf(command: Command): string {
  const before = command.configureOutput();
  let printed = '';
  command.configureOutput({ writeOut: (text) => (printed += text) });
  command.outputHelp();
  command.configureOutput(before);
  return printed.slice(command.helpInformation().length).trim();
}

/** All commands that do something, deepest included, in the order of their definition. */
export function leafCommands(node: CommandNode): readonly CommandNode[] {
  return node.commands.flatMap((child) => (child.commands.length > 0 ? leafCommands(child) : [child]));
}

/** A node and all below it. */
export function allNodes(node: CommandNode): readonly CommandNode[] {
  return [node, ...node.commands.flatMap(allNodes)];
}

/** Names of commands right below a node. */
export function childNames({ path, commands }: CommandNode): readonly string[] {
  return commands.map((child) => (path === '' ? child.path : child.path.slice(path.length + 1)));
}
