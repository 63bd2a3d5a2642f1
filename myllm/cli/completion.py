"""Room: the verbs and their flags → a script that completes them in a shell. No torch, no disk.

The script holds the tables itself, so that completing starts no Python. Runs are the folders in
the folder of runs; whatever else is no name of ours is a file.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from myllm.cli.choices import CHOICES, FILE, FOLDER, PLACES, RUN
from myllm.cli.help import comment_of, summary
from myllm.cli.parse import Flag, flags_of
from myllm.cli.verb import Verb
from myllm.config import positional
from myllm.registry import check_choice


@dataclass(frozen=True)
class CompletionOptions:
    """Print a script that completes verbs, flags and names of runs in bash, zsh or fish."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "source <(myllm completion bash)",
        "source <(myllm completion zsh)",
        "myllm completion fish | source",
    )

    shell: str = positional("bash")  # bash, zsh, fish: put the line above into its start-up file
    debug: bool = False  # show the traceback of an error


TEMPLATES = {
    "bash": """\
# bash completion of myllm; in ~/.bashrc: source <(myllm completion bash)
_myllm_runs() {
    local place name
    for place in "$runs"/*/; do
        name=${place%/}
        name=${name##*/}
        [[ -d $place && $name == "$word"* ]] && COMPREPLY+=("$(printf %q "$name")")
    done
}
_myllm() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} runs=checkpoints i
    COMPREPLY=()
    if [[ $word == = ]]; then
        word=
    elif [[ $before == = ]]; then
        before=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((i = 2; i + 1 < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == --runs-dir ]] && runs=${COMP_WORDS[i+1]}
    done
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "VERBS help" -- "$word"))
        return
    fi
    case $before in
VALUES
    esac
    case ${COMP_WORDS[1]} in
        help) COMPREPLY=($(compgen -W "VERBS" -- "$word")) ;;
TABLE
    esac
}
complete -o default -F _myllm myllm
""",
    "zsh": """\
#compdef myllm
# zsh completion of myllm; in ~/.zshrc: source <(myllm completion zsh)
_myllm_runs() {
    local i=${words[(I)--runs-dir]}
    local -a found=(${~${words[i+1]:-checkpoints}}/*(N/:t))
    ((i)) || found=(checkpoints/*(N/:t))
    compadd -a found
}
_myllm() {
    local -a verbs=(
TABLE
    )
    if ((CURRENT == 2)); then
        _describe verb verbs
        return
    fi
    local verb=$words[2]
    shift words
    ((CURRENT--))
    case $verb in
VALUES
    esac
}
(($+functions[compdef])) || { autoload -Uz compinit && compinit; }
compdef _myllm myllm
""",
    "fish": """\
# fish completion of myllm; in ~/.config/fish/config.fish: myllm completion fish | source
function __myllm_runs
    set -l words (commandline -opc)
    set -l runs checkpoints
    if set -l i (contains -i -- --runs-dir $words)
        set runs $words[(math $i + 1)]
    end
    for place in $runs/*/
        path basename -- $place
    end
end
complete -c myllm -n __fish_use_subcommand -f
TABLE
VALUES
""",
}


def verb(verbs: Mapping[str, Verb]) -> Verb:
    """The verb that prints the script for a table of verbs, itself among them."""

    def work(options: CompletionOptions) -> None:
        print(script(options.shell, verbs), end="")

    return Verb(CompletionOptions, work)


def script(shell: str, verbs: Mapping[str, Verb]) -> str:
    """What a shell has to read.

    Args:
        shell: bash, zsh or fish.
        verbs: the table of verbs.

    Raises:
        ConfigError: another shell.
    """
    check_choice("shell", shell, TEMPLATES)
    table, values = {"bash": _for_bash, "zsh": _for_zsh, "fish": _for_fish}[shell](verbs)
    filled = {
        "VERBS": " ".join(_single(verbs)),
        "TABLE": "\n".join(table),
        "VALUES": "\n".join(values),
    }
    text = TEMPLATES[shell]
    for name, content in filled.items():
        text = text.replace(name, content)
    return text


def _for_bash(verbs: Mapping[str, Verb]) -> tuple[list[str], list[str]]:
    """The cases of verbs, and those of the flag before the word."""
    table: list[str] = []
    by_flag: dict[str, str] = {}
    for name, flags in _flags(verbs).items():
        typed = [word for flag in flags if not flag.positional for word in _typed(flag)]
        first = next((_bash_value(flag) for flag in flags if flag.positional), "")
        otherwise = f"else {first}; " if first else ""
        words = " ".join(["--help", "--help-all", *typed])
        table.append(
            f"        {name}) if [[ $word == -* ]]; then "
            f'COMPREPLY=($(compgen -W "{words}" -- "$word")); {otherwise}fi ;;'
        )
        by_flag |= {f"--{f.flag}": _bash_value(f) for f in flags if not f.positional}
    values = [f"        {flag}) {code}; return ;;" for flag, code in by_flag.items() if code]
    return table, values


def _bash_value(flag: Flag) -> str:
    if flag.name in CHOICES:
        return f'COMPREPLY=($(compgen -W "{" ".join(CHOICES[flag.name])}" -- "$word"))'
    codes = {RUN: "_myllm_runs", FOLDER: 'COMPREPLY=($(compgen -d -- "$word"))'}
    return codes.get(PLACES.get(flag.name, ""), "")


def _for_zsh(verbs: Mapping[str, Verb]) -> tuple[list[str], list[str]]:
    """The verbs with what they do, and a case for each."""
    table = [
        f"        {shlex.quote(f'{name}:{_brief(summary(verb.options))}')}"
        for name, verb in _single(verbs).items()
    ]
    cases: list[str] = [f"        help) compadd {' '.join(_single(verbs))} ;;"]
    for name, flags in _flags(verbs).items():
        specs = [_zsh_spec(flag, word) for flag in flags for word in _typed(flag)]
        cases += [f"        {name}) _arguments --help --help-all \\", *specs, "            ;;"]
    return table, cases


def _zsh_spec(flag: Flag, word: str) -> str:
    kinds = {RUN: "_myllm_runs", FILE: "_files", FOLDER: "_files -/"}
    value = kinds.get(PLACES.get(flag.name, ""), " ")
    if flag.name in CHOICES:
        value = f"({' '.join(CHOICES[flag.name])})"
    if flag.positional:
        spec = f"{'*' * flag.is_list}:{flag.flag}:{value}"
    else:
        text = _brief(comment_of(flag.owner, flag.name))
        for sign in "[]:":
            text = text.replace(sign, f"\\{sign}")
        repeated = "*" if flag.is_list else ""
        spec = f"{repeated}{word}[{text}]" if flag.is_switch else f"{repeated}{word}=[{text}]"
        spec += "" if flag.is_switch else f":{flag.flag}:{value}"
    return f"            {shlex.quote(spec)} \\"


def _for_fish(verbs: Mapping[str, Verb]) -> tuple[list[str], list[str]]:
    """The verbs, and a line for each of their flags."""
    table = [
        f"complete -c myllm -n __fish_use_subcommand -a {name} "
        f"-d {shlex.quote(_brief(summary(verb.options)))}"
        for name, verb in _single(verbs).items()
    ]
    values = [
        "complete -c myllm -n '__fish_seen_subcommand_from help' -f -a "
        + shlex.quote(" ".join(_single(verbs)))
    ]
    for name, flags in _flags(verbs).items():
        head = f"complete -c myllm -n '__fish_seen_subcommand_from {name}'"
        values.append(f"{head} -l help-all")
        for flag in flags:
            text = shlex.quote(_brief(comment_of(flag.owner, flag.name)))
            for word in _typed(flag):
                option = "" if flag.positional else f" -l {word[2:]} -d {text}"
                values.append(f"{head}{option}{_fish_value(flag)}")
    return table, values


def _fish_value(flag: Flag) -> str:
    """What a flag takes, or a verb by its place."""
    if flag.is_switch:
        return ""
    only = " -f" if flag.positional else " -x"
    if flag.name in CHOICES:
        return f"{only} -a {shlex.quote(' '.join(CHOICES[flag.name]))}"
    place = PLACES.get(flag.name)
    if place == RUN:
        return f"{only} -a '(__myllm_runs)'"
    if flag.positional or place in (FILE, FOLDER):
        return " -F" if flag.positional else " -r -F"
    return " -x"


def _flags(verbs: Mapping[str, Verb]) -> dict[str, list[Flag]]:
    """The flags by verb; of verbs of two words, together by the first."""
    found: dict[str, dict[str, Flag]] = {}
    for name, verb in verbs.items():
        together = found.setdefault(name.split()[0], {})
        together |= {flag.name: flag for flag in flags_of(verb.options)}
    return {name: list(flags.values()) for name, flags in found.items()}


def _single(verbs: Mapping[str, Verb]) -> dict[str, Verb]:
    """The verbs of one word."""
    return {name: verb for name, verb in verbs.items() if " " not in name}


def _typed(flag: Flag) -> list[str]:
    """How a flag can be typed; one word for what has its place."""
    return [f"--{flag.flag}", *([f"--no-{flag.flag}"] if flag.is_switch else [])]


def _brief(text: str) -> str:
    """As much of a sentence as fits beside a word."""
    return text.partition(" (")[0].partition(";")[0].rstrip(".").replace("'", "’")[:60]
