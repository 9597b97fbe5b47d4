import { allNodes, type CommandNode, type Completion, childNames } from './command-tree.ts';

/**
 * A completion for bash 4 and newer that needs nothing but bash. It reads the words before the cursor as the command
 * itself does: which command, which of its operands, or the value of which option.
 */
export function bashCompletion(program: CommandNode): string {
  return `# Completion of understudy for bash; written by \`understudy completion bash\`.

# What the command $1 offers: its options, its commands, and what its operands are.
_understudy_of() {
  options= commands= operands=() variadic=
  case $1 in
${allNodes(program).map(nodeCase).join('\n')}
  esac
}

# What the value of option $2 of command $1 is; fails when it takes none.
_understudy_value() {
  case "$1 $2" in
${allNodes(program).flatMap(valueCases).join('\n')}
    *) return 1 ;;
  esac
}

# Completes $2 by what $1 says.
_understudy_fill() {
  local IFS=$' \\t\\n'
  case $1 in
    vm) COMPREPLY=($(compgen -W "$(\${COMP_WORDS[0]} completion vms 2>/dev/null)" -- "$2")) ;;
    command) COMPREPLY=($(compgen -W ${word(childNames(program).join(' '))} -- "$2")) ;;
    file) IFS=$'\\n'; COMPREPLY=($(compgen -f -- "$2")); compopt -o filenames 2>/dev/null ;;
    directory) IFS=$'\\n'; COMPREPLY=($(compgen -d -- "$2")); compopt -o filenames 2>/dev/null ;;
    choices:*) COMPREPLY=($(compgen -W "\${1#choices:}" -- "$2")) ;;
  esac
}

_understudy() {
  local path= options commands operands variadic place=0 expects= word i
  local current=\${COMP_WORDS[COMP_CWORD]}
  COMPREPLY=()
  _understudy_of ''
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    # bash takes --wait=started apart at the sign.
    [[ $word == '=' ]] && continue
    if [[ -n $expects ]]; then
      expects=
    elif [[ $word == -* ]]; then
      expects=$(_understudy_value "$path" "$word")
    elif [[ -n $commands && " $commands " == *" $word "* ]]; then
      path=\${path:+$path }$word
      _understudy_of "$path"
    else
      place=$((place + 1))
    fi
  done
  [[ $current == '=' ]] && current=
  if [[ -n $expects ]]; then
    _understudy_fill "$expects" "$current"
  elif [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
  elif [[ -n $commands ]]; then
    COMPREPLY=($(compgen -W "$commands" -- "$current"))
  else
    [[ -n $variadic && $place -ge \${#operands[@]} ]] && place=$((\${#operands[@]} - 1))
    _understudy_fill "\${operands[place]}" "$current"
  fi
  return 0
}

complete -F _understudy understudy
`;
}

function nodeCase(node: CommandNode): string {
  const flags = node.options.flatMap(({ long, short }) => (short === undefined ? [long] : [long, short]));
  const kinds = node.operands.map(({ completion }) => word(kindOf(completion)));
  return [
    `    ${word(node.path)})`,
    `      options=${word(flags.join(' '))} commands=${word(childNames(node).join(' '))}`,
    `      operands=(${kinds.join(' ')}) variadic=${node.operands.at(-1)?.variadic ? '1' : "''"}`,
    '      ;;',
  ].join('\n');
}

function valueCases({ path, options }: CommandNode): string[] {
  return options.flatMap(({ long, completion }) =>
    completion === undefined ? [] : [`    ${word(`${path} ${long}`)}) echo ${word(kindOf(completion))} ;;`],
  );
}

function kindOf(completion: Completion): string {
  return completion.kind === 'choices' ? `choices:${completion.choices.join(' ')}` : completion.kind;
}

function word(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
