"""Tab completion: what may follow in a command line, and how bash, zsh and fish ask for it.

Imports neither Hydra nor torch, which take seconds: a key press is answered in 0.1 s.
"""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from fer import UserError, choices, signatures, vocabulary

OPTIONS = ("--cfg", "--config-dir", "--help", "-m")
SPECIAL = re.compile(r"([^\w@%+=:,./~-])")  # characters that a shell would not take as they are

SCRIPTS = {
    "bash": """_fer() {
    local IFS=$'\\n'
    COMPREPLY=($(COMP_LINE=${COMP_LINE:0:COMP_POINT} FER_WORD=$2 "$1" -sc query=bash 2>/dev/null))
}
complete -o nospace -F _fer fer""",
    "zsh": """_fer() {
    local -a found
    found=("${(@f)$(COMP_LINE=$LBUFFER fer -sc query=zsh 2>/dev/null)}")
    compadd -Q -U -S '' -- ${found:#}
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _fer fer""",
    "fish": """function _fer
    env COMP_LINE=(commandline -cp | string collect) fer -sc query=fish 2>/dev/null
end
complete -c fer -f -a '(_fer)'""",
}
REMOVALS = {
    "bash": "complete -r fer; unset -f _fer",
    "zsh": "compdef -d fer; unfunction _fer",
    "fish": "complete -c fer -e; functions -e _fer",
}


def run(commands: list[str], asked: str) -> None:
    """Answer `fer -sc ASKED`: print a shell's script, or what may follow in the line $COMP_LINE."""
    action, _, shell = asked.partition("=")
    if action not in ("install", "uninstall", "query") or shell not in SCRIPTS:
        raise UserError(
            "-sc: should be install=bash, uninstall=bash or query=bash, or of zsh or fish"
        )
    if action == "query":
        line = os.environ.get("COMP_LINE", "")
        for word in candidates(commands, line):
            print(behind_equals(word, line) if shell == "bash" else word)
    else:
        print(SCRIPTS[shell] if action == "install" else REMOVALS[shell])


def candidates(commands: list[str], line: str) -> list[str]:
    """What the last word of `line` may become, as the shell takes it. A space ends a complete
    word.
    """
    words, open_quote = split(line)
    word = words.pop()
    if len(words) < 2:
        return [f"{name} " for name in commands if name.startswith(word)]
    command, given = words[1], words[2:]
    if command not in commands:
        return []
    return following(command, given, word, open_quote)


def behind_equals(candidate: str, line: str) -> str:
    """The part of a candidate that replaces $FER_WORD, bash's last word: most bashes cut words at
    `=`.
    """
    if "=" in os.environ.get("FER_WORD", "").rstrip("="):
        return candidate
    equals_signs = split(line)[0][-1].count("=")
    return candidate.split("=", equals_signs)[equals_signs]


def split(line: str) -> tuple[list[str], bool]:
    """The words of a line that may end inside a word, and whether a quote is open. After a space
    the last word is empty.
    """
    for ending in ("", "'", '"'):
        try:
            words = shlex.split(f"{line}{ending}")
        except ValueError:
            continue
        between = not line or (line[-1].isspace() and not ending and not line.endswith("\\ "))
        return [*words, ""] if between else words, bool(ending)
    return [""], False  # the line ends with a backslash


def following(command: str, given: list[str], word: str, open_quote: bool) -> list[str]:
    """Completions of `word` after the words `given`. Names of files are escaped outside quotes."""
    user_dir = given[given.index("--config-dir") + 1] if "--config-dir" in given[:-1] else None
    if given and given[-1] == "--config-dir":
        return [path for path in paths(word, open_quote) if path.endswith("/")]
    if word.startswith("-"):
        return [f"{option} " for option in OPTIONS if option.startswith(word)]
    values = dict(other.partition("=")[::2] for other in given if "=" in other)
    groups = choices(command, user_dir)
    key, equals, value = word.partition("=")
    if not equals:
        chosen = {
            group: choice for group, choice in values.items() if choice in groups.get(group, ())
        }
        names = vocabulary.keys(command, user_dir, chosen) + keys_of_targets(values, groups)
        return [f"{name}=" for name in names if name.startswith(word) and name not in values]
    before, value = re.fullmatch(r"(.*[\[,]|)(.*)", value, re.DOTALL).groups()  # type: ignore[union-attr]
    end = "" if before.startswith("[") else " "
    if key in groups:
        return [f"{key}={before}{name}{end}" for name in groups[key] if name.startswith(value)]
    group = key.partition(".")[0] if "." in key else ""
    if key in signatures.path_keys(command, group, user_dir, values.get(f"{group}._target_")):
        return [
            f"{key}={before}{path}{'' if path.endswith('/') else end}"
            for path in paths(value, open_quote)
        ]
    if isinstance(default(command, key), bool):
        return [f"{key}={answer} " for answer in ("true", "false") if answer.startswith(value)]
    return []


def keys_of_targets(values: dict[str, str], groups: Iterable[str]) -> list[str]:
    """The parameters of each `_target_` that was given, as keys of its group."""
    dotted = []
    for group in groups:
        target = values.get(f"{group}._target_")
        if target:
            dotted += [f"{group}.{name}" for name in signatures.parameters(target)]
    return dotted


def default(command: str, key: str) -> object:
    """The default of one of the command's own keys, such as train.epochs; None of a group's."""
    values: object = vocabulary.root_values(command)
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def paths(start: str, open_quote: bool) -> list[str]:
    """The files and folders whose path begins with `start`, as the shell takes them; folders end in
    /. Hidden ones only after a dot.
    """
    folder, slash, name = start.rpartition("/")
    place = Path(f"{folder}{slash}" or ".")
    try:
        entries = sorted(place.expanduser().iterdir())
    except (OSError, RuntimeError):  # ~NAME of an unknown user
        return []
    shown = [
        entry
        for entry in entries
        if entry.name.startswith(name) and (name or not entry.name.startswith("."))
    ]
    names = [f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}" for entry in shown]
    return names if open_quote else [SPECIAL.sub(r"\\\1", path) for path in names]
