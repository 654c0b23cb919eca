"""The command line: finds the command and words every refusal. Nothing heavy is imported before a
command is known to run; then launch.py does the rest.
"""

import contextlib
import os
import sys

NAMESAKE = "pip uninstall fer, then pip install --force-reinstall --no-deps fer-trainer"
try:
    from fer import UserError, __version__, choices, config_dir, in_processes, nearest
    from fer.streams import Output, open_closed_descriptors
except ImportError:
    print(f"fer: PyPI's package fer has replaced files of this one; {NAMESAKE}", file=sys.stderr)
    sys.exit(2)

COMMANDS = {
    "download": "get FER2013 from Kaggle through your own account",
    "train": "train a network and write a run folder",
    "predict": "label the faces of a split, write a submission",
    "evaluate": "measure on a labelled split, with intervals and paired tests",
    "curves": "plot what a training would change over time",
    "report": "turn a run into pictures and tables",
    "explain": "show what a network looks at in a face, and what its filters respond to",
    "export": "write a network for other programs, ONNX or torch.export",
    "inspect": "look at the data: counts, mean faces, copies within and across splits",
    "mislabels": "find the training faces that are likeliest labelled wrong",
    "selftrain": "measure what unlabelled faces add",
    "summary": "show networks layer by layer, or side by side",
}
USAGE = """usage: fer COMMAND [KEY=VALUE ...]

{commands}

fer COMMAND --help explains a command's keys. First steps, with built-in data:
  fer train data=demo train.epochs=5
  fer predict
  fer report
Tab completion, for this shell: eval "$(fer -sc install=bash)" (or zsh, fish)
"""
HELP = """usage: fer {command} [KEY=VALUE ...]

{heading}
Groups (GROUP=NAME chooses, GROUP.KEY=VALUE changes):{groups}

Keys, with their defaults:
{keys}
Options:
  -m                sweep over comma-separated values
  --config-dir DIR  add your own configs
  --cfg job         show the composed config"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 refused, 75, 130 or 143 ended by a signal
    with all saved.
    """
    args = sys.argv[1:] if argv is None else argv
    open_closed_descriptors()
    sys.argv[0] = "fer"  # by which name Hydra's own help and completion call the program
    output, errors = Output(sys.stdout, clean=True), Output(sys.stderr, clean=False)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):  # type: ignore[type-var]
        code = guarded(args)
        output.flush()
        if output.lost and code == 0:
            print(
                f"fer: standard output cannot be written ({output.lost}); name a file or a pipe",
                file=sys.stderr,
            )
            code = 2
        errors.flush()
    return code


def guarded(args: list[str]) -> int:
    """Run one command; what a user can mend is a line on standard error."""
    try:
        return run(*args)
    except KeyboardInterrupt:
        print("fer: interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        if os.environ.get("FER_DEBUG"):
            sys.excepthook(type(error), error, error.__traceback__)
        words = "".join(
            c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(error)
        )  # no terminal codes
        first = not in_processes() or os.environ["RANK"] == "0"
        if first or "another process" in words:  # of several processes one speaks
            print(f"fer: {words}", file=sys.stderr)
        return 2


def run(command: str = "--help", *args: str) -> int:
    if any("\ud800" <= c <= "\udfff" for c in "".join([command, *args])):
        raise UserError(
            "an argument holds bytes that are no text; rename the file or folder that it names"
        )
    if command in ("-h", "--help", "help"):
        print(
            USAGE.format(
                commands="\n".join(f"  {name:<9} {line}" for name, line in COMMANDS.items())
            ),
            end="",
        )
    elif command == "--version":
        print(f"fer {__version__}")
    elif command in ("-sc", "--shell-completion"):
        from fer import completion

        completion.run([*COMMANDS], " ".join(args))
    elif command not in COMMANDS:
        raise UserError(f"{command}: no such command; {nearest(command, COMMANDS)}")
    elif "--help" in args or "-h" in args:
        print(help_text(command))
    elif command != "train" and in_processes() and os.environ["WORLD_SIZE"] != "1":
        raise UserError(f"{command}: only fer train runs in several processes; leave torchrun out")
    else:
        warn_of_namesake()
        from fer.launch import launch

        return launch(command, [*args])
    return 0


def warn_of_namesake() -> None:
    """PyPI's package `fer` installs into the same folder as this one, so each may overwrite files
    of the other.
    """
    from importlib import metadata

    try:
        version = metadata.version("fer")
    except metadata.PackageNotFoundError:
        return
    print(
        f"fer: PyPI's package fer {version} is installed too, in the same folder; {NAMESAKE}",
        file=sys.stderr,
    )


def help_text(command: str) -> str:
    """The command's root config, which documents itself: its heading, its groups, its keys with
    their comments.
    """
    import re
    from textwrap import fill, indent

    import yaml

    root = (config_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    heading, _, rest = root.partition("defaults:\n")
    groups = ""
    for group, names in choices(command).items():
        line = f"{group:<11} {', '.join(names)}"
        groups += "\n" + fill(line, 110, initial_indent="  ", subsequent_indent=" " * 14)
    keys = indent(rest.partition("\n\n")[2], "  ")
    for entry in yaml.safe_load(root)["defaults"]:
        for group, choice in entry.items() if isinstance(entry, dict) else ():
            if choice and group != "model":
                own = (config_dir() / group / f"{choice}.yaml").read_text(encoding="utf-8")
                own = re.sub(r"^(#|_target_).*\n", "", own, flags=re.MULTILINE)
                keys += f"  {group}:     # {group}={choice}\n" + indent(own, "    ")
    heading = re.sub(r"^# ?", "", heading, flags=re.MULTILINE)
    return HELP.format(command=command, heading=heading, groups=groups, keys=keys)
