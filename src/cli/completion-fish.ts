import { allNodes, type CommandNode, type Completion, childNames, type OptionNode } from './command-tree.ts';

/** A completion for fish 3. */
export function fishCompletion(program: CommandNode): string {
  const groups = allNodes(program).filter(({ commands }) => commands.length > 0);
  const cases = groups.map(
    (node) =>
      `            case ${word(node.path)}\n                contains -- $word ${childNames(node).join(' ')}; and set -a path $word`,
  );
  const lines = allNodes(program).flatMap((node) => nodeLines(node, childNames(program)));
  return `# Completion of understudy for fish; written by \`understudy completion fish\`.

# The command that the words before the cursor name.
function __understudy_path
    set -l path
    for word in (commandline -opc)[2..]
        string match -q -- '-*' $word; and continue
        switch "$path"
${cases.join('\n')}
        end
    end
    echo (string join ' ' -- $path)
end

function __understudy_at
    test (__understudy_path) = "$argv"
end

complete -c understudy -f
${lines.join('\n')}
`;
}

function nodeLines(node: CommandNode, topics: readonly string[]): string[] {
  const at = `complete -c understudy -n ${word(`__understudy_at ${node.path}`.trim())}`;
  return [
    ...childNames(node).map(
      (name, index) => `${at} -a ${name} -d ${word(node.commands[index]?.description ?? '')}`,
    ),
    ...node.options.map((option) => `${at} ${optionWords(option)}`),
    ...node.operands.flatMap(({ completion }) => {
      const words = valueWords(completion, topics);
      return words === '' ? [] : [`${at} ${words}`];
    }),
  ];
}

function optionWords({ long, short, description, completion }: OptionNode): string {
  const names = `-l ${long.slice(2)}${short === undefined ? '' : ` -s ${short.slice(1)}`}`;
  const value = completion === undefined ? '' : ` -r ${valueWords(completion)}`.trimEnd();
  return `${names}${value} -d ${word(description)}`;
}

function valueWords(completion: Completion, topics: readonly string[] = []): string {
  switch (completion.kind) {
    case 'choices':
      return `-a ${word(completion.choices.join(' '))}`;
    case 'vm':
      return "-a '(understudy completion vms 2>/dev/null)'";
    case 'command':
      return `-a ${word(topics.join(' '))}`;
    case 'file':
      return '-F';
    case 'directory':
      return "-a '(__fish_complete_directories)'";
    case 'none':
      return '';
  }
}

function word(text: string): string {
  return `'${text.replaceAll(/['\\]/g, '\\$&')}'`;
}
