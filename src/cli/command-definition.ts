import { type Command, InvalidArgumentError, Option } from 'commander';

/** What all commands are defined with. */

export type Finish = (exitCode: number) => void;

export function command(parent: Command, usage: string, description: string): Command {
  const [name = '', ...operands] = usage.split(' ');
  const added = parent.command(name).description(description).helpOption('-h, --help', 'show help');
  for (const operand of operands) added.argument(operand);
  return added.addOption(jsonOption());
}

function jsonOption(): Option {
  return new Option('--json', 'print JSON: one object, or a line for each event');
}

export function examples(...lines: readonly string[]): string {
  return `\nExamples:\n${lines.map((line) => `  ${line}\n`).join('')}`;
}

export function positiveNumber(text: string): number {
  const value = Number(text);
  if (Number.isFinite(value) && value > 0) return value;
  throw new InvalidArgumentError('Expected a number above 0.');
}

export function atLeastOne(text: string): number {
  const value = wholeNumber(text);
  if (value > 0) return value;
  throw new InvalidArgumentError('Expected at least 1.');
}

export function wholeNumber(text: string): number {
  if (/^\d{1,15}$/.test(text)) return Number(text);
  throw new InvalidArgumentError('Expected a whole number.');
}
