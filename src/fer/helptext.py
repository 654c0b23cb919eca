"""`fer COMMAND --help`, made from the comments of the command's YAML in configs/.

In such a file the heading says what the command does, with examples; the line RARELY separates the
keys that people change first from the others. Reads YAML only and imports nothing heavy.
"""

import re
from collections.abc import Sequence
from textwrap import fill, indent

import yaml

from fer import choices, config_dir

WIDTH = 100
FIRST = "Change first:\n"
RARELY = "# Change rarely:\n"
HELP = """usage: fer {command} [KEY=VALUE ...]

{heading}

{first}
{groups}{rest}Options:
  -m                try comma-separated values in turn (a sweep)
  --config-dir DIR  use configs of your own, DIR/GROUP/NAME.yaml
  --cfg job         show the composed config, and stop"""


def help_text(command: str, args: Sequence[str] = ()) -> str:
    """What the command does, three examples, the keys that people change first, then the rest.

    args: the other words of the command line; a choice among them, GROUP=NAME, shows its keys.
    """
    text = (config_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    heading, _, body = text.partition("defaults:\n")
    heading = re.sub(r"^# ?", "", heading, flags=re.MULTILINE).strip()
    defaults = yaml.safe_load(text)["defaults"]
    keys = body.partition("\n\n")[2]
    if FIRST in heading:  # written out, for keys of groups
        heading, _, first = heading.partition(FIRST)
        rest = keys
    else:
        first, _, rest = keys.partition(RARELY)
        first = indent(refilled(first, WIDTH - 2), "  ")
    more = indent(refilled(rest, WIDTH - 2), "  ")
    more += keys_of_choices(shown_choices(command, defaults, args))
    if "train" in defaults:
        more += "  and all keys of fer train; see fer train --help\n"
    return HELP.format(
        command=command,
        heading=heading.strip(),
        first=f"{FIRST}{first.rstrip()}\n",
        groups=groups_text(command),
        rest=f"Other keys, with their defaults:\n{more}\n" if more else "",
    )


def groups_text(command: str) -> str:
    """Every group with the names of its configs."""
    lines = []
    for group, names in choices(command).items():
        start = f"  {group:<11} "
        lines.append(
            fill(", ".join(names), WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
        )
    if not lines:
        return ""
    heading = (
        "Groups: GROUP=NAME chooses, GROUP.KEY=VALUE changes, GROUP=NAME --help shows the keys"
    )
    return "\n".join([heading, *lines, "\n"])


def shown_choices(command: str, defaults: list, args: Sequence[str]) -> dict[str, str]:
    """Group → the config whose keys are shown: one of `args`, else the default. A network has keys
    of its own, so those of the default one are not shown.
    """
    shown: dict[str, str] = {}
    for entry in defaults:
        for group, choice in entry.items() if isinstance(entry, dict) else ():
            if choice and group != "model":
                shown[group] = choice
    for group, names in choices(command).items():
        for name in names:
            if group != "experiment" and f"{group}={name}" in args:
                shown[group] = name
    return shown


def keys_of_choices(shown: dict[str, str]) -> str:
    """The keys of each group's choice, with their values and comments."""
    text = ""
    for group, choice in shown.items():
        keys = (config_dir() / group / f"{choice}.yaml").read_text(encoding="utf-8")
        heading = f"{group}={choice}"
        for parent in yaml.safe_load(keys).get("defaults", []):
            heading += f"; all other keys are those of {group}={parent}"
        keys = re.sub(r"^defaults:\n(  - .*\n)+", "", keys, flags=re.MULTILINE)
        keys = re.sub(r"^(#|_target_).*\n", "", keys, flags=re.MULTILINE)
        text += f"  {group}:     # {heading}\n"
        text += indent(refilled(keys, WIDTH - 4), "    ")
    return text


def refilled(text: str, width: int) -> str:
    """YAML whose comments are wrapped anew where a line of them is longer than `width`."""
    paragraphs: list[list[str]] = []
    for line in text.splitlines():
        if re.match(r"\s+# ", line) and paragraphs:  # the comment of the key above goes on
            paragraphs[-1].append(line)
        else:
            paragraphs.append([line])
    lines: list[str] = []
    for paragraph in paragraphs:
        if max(map(len, paragraph)) > width:
            paragraph = [wrapped(paragraph, width)]
        lines += paragraph
    return "".join(f"{line}\n" for line in lines)


def wrapped(paragraph: list[str], width: int) -> str:
    """A key and its comment, of one line or several, as lines of at most `width`."""
    key, _, first = paragraph[0].partition("# ")
    words = [first, *(line.strip().removeprefix("# ") for line in paragraph[1:])]
    return fill(
        " ".join(words),
        width,
        initial_indent=f"{key}# ",
        subsequent_indent=" " * len(key) + "# ",
        break_long_words=False,
        break_on_hyphens=False,
    )
