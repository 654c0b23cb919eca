"""The command line: finds the command, and prints every refusal as one line.

Nothing heavy is imported before a command is known to run; then launch.py takes over.
"""

import os
import sys

NAMESAKE = "pip uninstall fer, then pip install --force-reinstall --no-deps fer-trainer"
try:
    from fer import UserError, __version__, in_processes, nearest
    from fer.streams import escaped, never_failing, open_closed_descriptors
except ImportError:
    print(f"fer: PyPI's package fer has replaced files of this one; {NAMESAKE}", file=sys.stderr)
    sys.exit(2)

COMMANDS = {
    "download": "download FER2013 from Kaggle through your own account",
    "train": "train a network and write a run folder",
    "predict": "label faces and write a submission",
    "evaluate": "measure accuracy on a labeled split, with intervals and paired tests",
    "curves": "plot the learning rate and everything else that a run would change over time",
    "report": "make pictures and tables of a run, or compare several",
    "explain": "show what a network looks at in a face, and what its filters respond to",
    "app": "try networks in the browser, with photos or the camera",
    "export": "write a network for other programs, as ONNX or torch.export",
    "inspect": "look at the data: counts, mean faces, copies within and across splits",
    "mislabels": "find the training faces that are most likely labeled wrong",
    "selftrain": "measure what unlabeled faces add",
    "summary": "show networks layer by layer, or side by side",
}
USAGE = """usage: fer COMMAND [KEY=VALUE ...]

{commands}

fer COMMAND --help explains the keys of a command. First steps, with built-in data:
  fer train data=demo train.epochs=5
  fer predict
  fer report
Tab completion, for this shell: eval "$(fer -sc install=bash)" (or zsh, fish)
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 2 refused; 75, 129, 130 or 143 ended by a
    signal, everything saved.
    """
    args = sys.argv[1:] if argv is None else argv
    open_closed_descriptors()
    sys.argv[0] = "fer"  # the name of the program in Hydra's own help and completion
    with never_failing() as (output, errors):
        code = guarded(args)
        output.flush()
        if output.lost and code == 0:
            print(
                f"fer: standard output cannot be written ({output.lost}); redirect it elsewhere",
                file=sys.stderr,
            )
            code = 2
        errors.flush()
    return code


def guarded(args: list[str]) -> int:
    """Run one command. What a user can fix is one line on standard error."""
    try:
        return run(*args)
    except KeyboardInterrupt:
        print("fer: interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        if os.environ.get("FER_DEBUG"):
            sys.excepthook(type(error), error, error.__traceback__)
        words = printable(str(error))
        first = not in_processes() or os.environ["RANK"] == "0"
        # One process reports what all of them find; each reports what only it can know.
        if first or words.startswith(("process ", "another process ")):
            print(f"fer: {words}", file=sys.stderr)
        return 2


def printable(text: str) -> str:
    """The text with control characters escaped. Line breaks stay only between the errors of several
    jobs: one in a file name would split its line.
    """
    return "\nfer: ".join(map(escaped, text.split("\nfer: ")))


def run(command: str = "--help", *args: str) -> int:
    if any("\ud800" <= c <= "\udfff" for c in "".join([command, *args])):
        raise UserError("an argument is not valid text; rename the file or folder that it names")
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
        from fer.helptext import help_text

        print(help_text(command, args))
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
