"""The command line: finds the command, words every refusal, and hands Hydra only what it can parse.

Nothing heavy is imported before a command is known to run.
"""

import contextlib
import os
import sys
from pathlib import Path

from fer import UserError, __version__, config_dir, nearest

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
# Their values are quoted before Hydra parses them: a path may hold anything.
PATHS = {"run", "resume", "start", "ckpt", "out", "sample", "probs", "input", "image", "data.path", "model.weights"}
USAGE = """usage: fer COMMAND [KEY=VALUE ...]

{commands}

fer COMMAND --help explains a command's keys. First steps, with built-in data:
  fer train data=demo train.epochs=5
  fer predict
  fer report
Tab completion, for this shell: eval "$(fer -sc install=bash)" (or zsh, fish)
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 refused, 75, 130 or 143 ended by a signal with all saved."""
    args = sys.argv[1:] if argv is None else argv
    command, rest = (args[0], args[1:]) if args else ("--help", [])
    try:
        if any("\ud800" <= c <= "\udfff" for c in "".join(args)):
            raise UserError("an argument holds bytes that are no text; rename the file or folder that it names")
        if command in ("-h", "--help", "help"):
            print(USAGE.format(commands="\n".join(f"  {name:<9} {line}" for name, line in COMMANDS.items())), end="")
            return 0
        if command == "--version":
            print(f"fer {__version__}")
            return 0
        if command in ("-sc", "--shell-completion"):
            return complete(rest)
        if command not in COMMANDS:
            raise UserError(f"{command}: no such command; {nearest(command, COMMANDS)}")
        if "--help" in rest or "-h" in rest:
            print(help_text(command))
            return 0
        if command != "train" and os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError(f"{command}: only fer train runs in several processes; leave torchrun out")
        return launch(command, rest)
    except KeyboardInterrupt:
        print("fer: interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        if os.environ.get("FER_DEBUG"):
            sys.excepthook(type(error), error, error.__traceback__)
        words = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(error))  # no terminal codes
        if os.environ.get("RANK", "0") == "0" or "another process" in words:  # of several processes one speaks
            print(f"fer: {words}", file=sys.stderr)
        return 2


def launch(command: str, args: list[str]) -> int:
    """Compose the command's config with Hydra and run it, once or, with -m, once for each of a sweep's choices."""
    import math
    from importlib import import_module
    from traceback import walk_tb

    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from fer.runtime import Interrupted

    failures: list[UserError] = []
    own = os.getpid()
    sweeps: set[Path] = set()

    def refuse(message: str):
        raise UserError(f"{message}; see fer {command} --help")

    def task(composed) -> float | None:
        settings = HydraConfig.get()
        overrides = OmegaConf.to_container(settings.overrides.task, resolve=False)
        typed = [override_key(override) for override in overrides]
        try:
            values = OmegaConf.to_container(composed, resolve=True)
            if "experiment" in typed:  # it pins keys; a group that is typed beside it counts whole
                others = [o for o in overrides if override_key(o) != "experiment"]
                plain = GlobalHydra.instance().config_loader().load_configuration(command, others, RunMode.RUN)
                groups = set(typed) & set(choices(command, user_dir)) - {"experiment"}
                values |= {key: OmegaConf.to_container(plain[key]) for key in groups}
            if settings.mode == RunMode.MULTIRUN:
                sweeps.add(Path(settings.sweep.dir))
                if command == "train" and not values["run"]:
                    values["run"] = str(Path(settings.sweep.dir) / str(settings.job.num))
            return import_module(f"fer.{command}").run(values, typed)
        except (UserError, OmegaConfBaseException) as error:  # kept until the sweep's other jobs are done
            failures.append(error if isinstance(error, UserError) else UserError(first_line(error)))
            if os.getpid() != own:  # a launcher's process, whose failures reach us only so
                raise failures[-1] from None
            return math.nan
        except BrokenPipeError:  # fer … | head: the reader has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return math.nan
        except OSError as error:  # a disk or a name that the system refuses
            failures.append(UserError(f"{error.filename or 'output'}: {error.strerror or error}"))
            failures[-1].__cause__ = error
            return math.nan

    parser = get_args_parser()
    parser.error = refuse
    options, extra = parser.parse_known_args(args)
    if unknown := [a for a in extra if a.startswith("-")]:
        refuse(f"{unknown[0]}: no such option")
    overrides = [*options.overrides, *extra]
    if options.experimental_rerun:
        refuse("--experimental-rerun: not supported")
    sweep, user_dir = options.multirun, options.config_dir
    if user_dir and not Path(user_dir).is_dir():
        raise UserError(f"--config-dir {user_dir}: no such folder")
    if user_dir:
        from fer.config import vet

        vet(Path(user_dir))
    OmegaConf.clear_resolver("oc.env")  # a config from others reads no environment variables
    words = [a for a in args if a not in overrides]
    words += overrides if options.shell_completion else [rewrite(command, o, sweep, user_dir) for o in overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed
    saved, sys.argv = sys.argv, ["fer", *words]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)(task)()
    except Interrupted as signal:
        return signal.code
    except MissingConfigException as error:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        raise UserError(f"{group}={choice}: no such choice; {nearest(choice, error.options or [])}") from error
    except OverrideParseException as error:
        raise UserError(f"{error.override.lstrip('+')}: not a value ({first_line(error)}); quote it") from error
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        raise UserError(first_line(cause)) from error
    except Exception as error:
        if not user_dir or any(frame.f_code is task.__code__ for frame, _ in walk_tb(error.__traceback__)):
            raise  # a bug of ours
        raise UserError(f"--config-dir {user_dir}: a file there is no YAML ({' '.join(str(error).split())})") from error
    finally:
        sys.argv = saved
        for folder in sweeps:
            remove_if_empty(folder)
    if failures:
        raise UserError("\nfer: ".join(dict.fromkeys(map(str, failures)))) from failures[0]
    return 0


def first_line(error: Exception) -> str:
    key = getattr(error, "full_key", None)  # of a value that OmegaConf cannot resolve
    return (f"{key}: " if key else "") + " ".join(str(error).strip().split("\n")[0].split())


def override_key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0]


def rewrite(command: str, override: str, sweep: bool, user_dir: str | None) -> str:
    """An override as Hydra should see it: paths quoted, keys let through to our own check, which knows better words."""
    key, equals, value = override.partition("=")
    bare = key.lstrip("+")
    if bare.startswith(("~", "hydra")) or "@" in bare:
        return override
    if not equals:
        raise UserError(f"{override}: not of the form KEY=VALUE; see fer {command} --help")
    groups, group = choices(command, user_dir), bare.split(".")[0]
    if bare in groups:
        if value in ("", "null"):
            raise UserError(f"{override}: no such choice; {nearest(value, groups[bare])}")
        return f"{bare}={value}"
    if group not in groups and (config_dir() / group).is_dir():
        from_run = command in ("predict", "evaluate", "report", "explain", "export")
        raise UserError(f"{bare}: {'comes from the checkpoint' if from_run else 'no such key here'}; leave it out")
    if bare in PATHS and value not in ("null", "") and not (value.startswith("[") and value.endswith("]")):
        parts = value.split(",") if sweep else [value]
        value = ",".join(part if part[:1] in ("'", '"') else quoted(part) for part in parts)
    return f"++{bare}={value}"


def quoted(path: str) -> str:
    """Any text as one of Hydra's quoted strings, `${` included, which OmegaConf would interpolate."""
    text = path.replace("${", "\\${").replace("'", "\\'")
    return f"'{text}{chr(92) if text.endswith(chr(92)) else ''}'"


def choices(command: str, user_dir: str | None = None) -> dict[str, list[str]]:
    """Group → its configs, for the groups that the command's defaults list names."""
    import yaml

    roots = [config_dir(), *([Path(user_dir)] if user_dir else [])]
    defaults = yaml.safe_load((config_dir() / f"{command}.yaml").read_text())["defaults"]
    if "train" in defaults:
        return choices("train", user_dir)
    groups = [next(iter(entry)).split()[-1] for entry in defaults if isinstance(entry, dict)]
    return {g: sorted({f.stem for root in roots for f in (root / g).glob("*.yaml")}) for g in groups if "/" not in g}


def help_text(command: str) -> str:
    """The command's root config, which documents itself: its heading, its groups, its keys with their comments."""
    import textwrap

    import yaml

    lines = (config_dir() / f"{command}.yaml").read_text().splitlines()
    heading = [line[2:] for line in lines if line.startswith("#")]
    body = "\n".join(lines[lines.index("defaults:") + 1 :]).split("\n\n", 1)[1].splitlines()
    defaults = yaml.safe_load("\n".join(lines))["defaults"]
    chosen = {key: choice for entry in defaults if isinstance(entry, dict) for key, choice in entry.items()}
    text = [
        f"usage: fer {command} [KEY=VALUE ...]",
        "",
        *heading,
        "",
        "Groups (GROUP=NAME chooses, GROUP.KEY=VALUE changes):",
    ]
    for group, names in choices(command).items():
        text += textwrap.wrap(f"{group:<11} {', '.join(names)}", 110, initial_indent="  ", subsequent_indent=" " * 14)
    text += ["", "Keys, with their defaults:", *(f"  {line}" for line in body)]
    for group, choice in chosen.items():
        if choice and group != "model":
            own = (config_dir() / group / f"{choice}.yaml").read_text().splitlines()
            keys = [f"    {line}" for line in own if not line.startswith(("#", "_target_"))]
            text += [f"  {group}:     # {group}={choice}", *keys]
    text += ["", "Options:", "  -m                sweep over comma-separated values"]
    text += ["  --config-dir DIR  add your own configs", "  --cfg job         show the composed config"]
    return "\n".join(text)


def complete(args: list[str]) -> int:
    """Shell completion: Hydra's, with the sub-command taken out of the line that it completes."""
    line = os.environ.get("COMP_LINE", "")
    if not any(word.startswith("query") for word in args):
        return launch("train", ["-sc", *args])
    program, _, rest = line.lstrip().partition(" ")
    command, space, rest = rest.lstrip().partition(" ")
    if not space:
        print(" ".join(name for name in COMMANDS if name.startswith(command)))
        return 0
    if command not in COMMANDS:
        return 0
    os.environ["COMP_LINE"] = f"{program} {rest}"
    point = int(os.environ.get("COMP_POINT", len(line)))
    os.environ["COMP_POINT"] = str(max(point - (len(line) - len(os.environ["COMP_LINE"])), 0))
    return launch(command, ["-sc", *args])


def remove_if_empty(sweep: Path) -> None:
    """Hydra makes a sweep's folder before the first job is checked; one whose jobs were all refused holds nothing."""
    if {entry.name for entry in sweep.iterdir()} <= {"multirun.yaml"}:
        (sweep / "multirun.yaml").unlink(missing_ok=True)
        sweep.rmdir()
        with contextlib.suppress(OSError):  # runs/ holds other runs
            sweep.parent.rmdir()
