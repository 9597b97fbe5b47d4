import { allNodes, type CommandNode, type Completion, childNames } from './command-tree.ts';

/** A completion for zsh; goes into a folder of `$fpath` as `_understudy`. */
export function zshCompletion(program: CommandNode): string {
  return `#compdef understudy
# Completion of understudy for zsh; written by \`understudy completion zsh\`.

# What the command $1 offers.
_understudy_of() {
  options=() commands=() operands=() variadic=
  case $1 in
${allNodes(program).map(nodeCase).join('\n')}
  esac
}

# What the value of option $2 of command $1 is; nothing when it takes none.
_understudy_value() {
  case "$1 $2" in
${allNodes(program).flatMap(valueCases).join('\n')}
  esac
}

_understudy_fill() {
  case $1 in
    vm) local -a names; names=(\${(f)"$(_call_program vms $words[1] completion vms 2>/dev/null)"}); compadd -a names ;;
    command) _understudy_of ''; _describe command commands ;;
    file) _files ;;
    directory) _files -/ ;;
    choices:*) compadd -- \${=\${1#choices:}} ;;
  esac
}

_understudy() {
  local path_ expects word variadic
  local -a options commands operands
  integer i place=1
  _understudy_of ''
  for ((i = 2; i < CURRENT; i++)); do
    word=$words[i]
    if [[ -n $expects ]]; then
      expects=
    elif [[ $word == --*=* ]]; then
      :
    elif [[ $word == -* ]]; then
      expects=$(_understudy_value "$path_" "$word")
    elif (( \${#commands} && \${commands[(I)$word:*]} )); then
      path_=\${path_:+$path_ }$word
      _understudy_of "$path_"
    else
      (( place++ ))
    fi
  done
  if [[ -n $expects ]]; then
    _understudy_fill "$expects"
  elif [[ $words[CURRENT] == --*=* ]]; then
    word=\${words[CURRENT]%%=*}
    compset -P '*=' && _understudy_fill "$(_understudy_value "$path_" "$word")"
  elif [[ $words[CURRENT] == -* ]]; then
    _describe option options
  elif (( \${#commands} )); then
    _describe command commands
  else
    [[ -n $variadic ]] && (( place > \${#operands} )) && place=\${#operands}
    _understudy_fill "$operands[place]"
  fi
}

_understudy "$@"
`;
}

function nodeCase(node: CommandNode): string {
  const flags = node.options.map(({ long, description }) => entry(long, description));
  const names = childNames(node).map((name, index) => entry(name, node.commands[index]?.description ?? ''));
  const kinds = node.operands.map(({ completion }) => word(kindOf(completion)));
  return [
    `    ${word(node.path)})`,
    `      options=(${flags.join(' ')})`,
    `      commands=(${names.join(' ')})`,
    `      operands=(${kinds.join(' ')}) variadic=${node.operands.at(-1)?.variadic ? '1' : "''"}`,
    '      ;;',
  ].join('\n');
}

function valueCases({ path, options }: CommandNode): string[] {
  return options.flatMap(({ long, completion }) =>
    completion === undefined
      ? []
      : [`    ${word(`${path} ${long}`)}) print -r -- ${word(kindOf(completion))} ;;`],
  );
}

/** As `_describe` takes them: a colon ends the name. */
function entry(name: string, description: string): string {
  return word(`${name.replaceAll(':', '\\:')}:${description}`);
}

function kindOf(completion: Completion): string {
  return completion.kind === 'choices' ? `choices:${completion.choices.join(' ')}` : completion.kind;
}

function word(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
