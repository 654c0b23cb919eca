"""How a command starts: Hydra composes its config, once or for each choice of a sweep, and what
Hydra refuses is told in our words. Knows Hydra and the names of commands; what they do stays out.
"""

import contextlib
import math
import os
import re
import shlex
import shutil
from argparse import Namespace
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from traceback import walk_tb
from typing import Any, NoReturn

import yaml
from hydra import compose, initialize_config_dir, version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from fer import UserError, choices, config, config_dir, nearest, signatures, vocabulary
from fer.runtime import Interrupted, is_out_of_memory, refuse_processes


def launch(command: str, args: list[str]) -> int:
    """Compose the command's config with Hydra and run it, once or, with -m, once for each of a
    sweep's choices.
    """
    options = parse(command, args)
    if options.multirun:
        refuse_processes("-m: makes a sweep")
    groups = choices(command, options.config_dir)
    if options.shell_completion:
        raise UserError(f"fer -sc comes before the command; see fer {command} --help")
    refuse_twice(options.overrides)
    if options.config_dir:
        check_chosen(Path(options.config_dir), groups, options.overrides)
    options.overrides = [
        rewrite(command, groups, override, options) for override in options.overrides
    ]
    failures: list[Exception] = []  # kept until the sweep's other jobs are done
    sweeps: set[Path] = set()
    own = os.getpid()

    def task(composed: DictConfig) -> float | None:
        try:
            values, typed = settle(command, groups, composed)
            settings = HydraConfig.get()
            if settings.mode == RunMode.MULTIRUN:
                sweeps.add(Path(settings.sweep.dir))
                if command == "train" and not values["run"]:
                    values["run"] = str(Path(settings.sweep.dir) / str(settings.job.num))
            run = import_module(f"fer.commands.{command}").run
            # train checks by itself: resume= lays these values over the saved ones.
            if command == "train":
                return run(values, typed)
            return run(config.check(command, values), list(typed))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            batch = "train.batch_size" if "train" in values else "batch_size"
            refused: Exception = UserError(
                f"out of memory; take a smaller {batch} or model, or device=cpu"
            )
            failures.append(of_job(refused, options.overrides))
        except (UserError, OmegaConfBaseException, OSError) as error:
            refused = worded(better_key(error, command, options.config_dir))
            failures.append(of_job(refused, options.overrides))
            if os.getpid() != own:  # a launcher's process, whose failures reach us only so
                raise failures[-1] from None
        return math.nan

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed
    version.setbase("1.3")
    try:
        _run_hydra(options, get_args_parser(), task, str(config_dir()), command)
    except Interrupted as signal:
        return signal.code
    except Exception as error:
        ours = any(frame.f_code is task.__code__ for frame, _ in walk_tb(error.__traceback__))
        refusal = worded(error, None if ours else options.config_dir)
        if refusal is error:
            raise
        raise refusal from error
    finally:
        for (
            sweep
        ) in sweeps:  # made before the first job is checked: if all were refused, it holds nothing
            if {entry.name for entry in sweep.iterdir()} <= {"multirun.yaml"}:
                shutil.rmtree(sweep)
                with contextlib.suppress(OSError):  # runs/ holds other runs
                    sweep.parent.rmdir()
    if command == "train" and options.multirun:
        for sweep in filter(Path.is_dir, sweeps):
            print(f"all of the sweep, side by side:\n  fer report run={shlex.quote(str(sweep))}")
            if any("exists already" in str(failure) for failure in failures):
                print(f"to resume its runs:\n  fer train resume={shlex.quote(str(sweep))}")
    if failures:
        raise UserError("\nfer: ".join(lines_of(failures))) from failures[0]
    return 0


def lines_of(failures: list[Exception]) -> list[str]:
    """A line for each failure of a sweep; one line if more than three jobs failed alike."""
    jobs: dict[str, list[str]] = {}
    for failure in failures:
        job, _, reason = str(failure).partition(": ")
        if not job.startswith("job "):
            job, reason = "", str(failure)
        jobs.setdefault(reason, []).append(job)
    lines = []
    for reason, names in jobs.items():
        if len(names) > 3:
            lines.append(f"{names[0]}: {reason} (and {len(names) - 1} other jobs alike)")
        else:
            lines += [f"{name}: {reason}" if name else reason for name in names]
    return lines


def call(command: str, overrides: list[str]) -> None:
    """Run the command once for a program of which this process is: its Hydra, its logging and its
    environment stay as they are. Raises Interrupted after a signal.
    """
    options = Namespace(config_dir=None, multirun=False, overrides=overrides)
    groups = choices(command)
    try:
        refuse_twice(overrides)
        rewritten = [rewrite(command, groups, override, options) for override in overrides]
        with hydra_set_aside(), initialize_config_dir(str(config_dir()), "fer", version_base="1.3"):
            composed = compose(command, rewritten, return_hydra_config=True)
            HydraConfig.instance().set_config(composed)
            with flag_override(composed, ["readonly", "struct"], False):
                del composed["hydra"]
            values, typed = settle(command, groups, composed)
        run = import_module(f"fer.commands.{command}").run
        run(values if command == "train" else config.check(command, values), typed)
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        raise worded(better_key(error, command, None)) from error


@contextlib.contextmanager
def hydra_set_aside() -> Iterator[None]:
    """Within the context Hydra is unused; after it all is as it was."""
    app, settings, base = (
        GlobalHydra.instance(),
        HydraConfig.instance(),
        version.VersionBase.instance(),
    )
    kept = app.hydra, settings.cfg, base.version_base
    app.clear()
    try:
        yield
    finally:
        GlobalHydra.set_instance(app)  # Hydra's own contexts leave a copy
        app.hydra, settings.cfg, base.version_base = kept


def of_job(error: Exception, overrides: list[str]) -> Exception:
    """In a sweep, a refusal with the number of its job and the choices that are the job's own, not
    all jobs'.
    """
    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN or not isinstance(error, UserError):
        return error
    chosen = [
        override.lstrip("+") for override in settings.overrides.task if override not in overrides
    ]
    job = f"job {settings.job.num} ({', '.join(chosen)})" if chosen else f"job {settings.job.num}"
    return UserError(f"{job}: {error}").with_traceback(error.__traceback__)


def parse(command: str, args: list[str]) -> Namespace:
    """Hydra's options; what they refuse is told before Hydra starts."""

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; see fer {command} --help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    options, extra = parser.parse_known_args(args)
    for word in extra:
        if word.startswith("-"):
            raise UserError(f"{word}: no such option; {option_meant(command, word, args)}")
    if options.experimental_rerun:
        refuse("--experimental-rerun: not supported")
    if options.config_dir and not Path(options.config_dir).is_dir():
        raise UserError(f"--config-dir {options.config_dir}: no such folder")
    options.overrides += extra
    return options


def check_chosen(folder: Path, groups: dict[str, list[str]], overrides: list[str]) -> None:
    """Refuse a chosen config of one's own that is not YAML, by its file; Hydra names none."""
    for override in overrides:
        group, _, choices_typed = override.lstrip("+").partition("=")
        if group in groups:
            for choice in choices_typed.split(","):
                check_file(folder / group / f"{choice}.yaml", [])


def check_file(file: Path, chain: list[str]) -> None:
    """Check a config and, in its folder, those that it starts from. chain: the names that led to
    it.
    """
    if not file.is_file():
        return
    if file.stem in chain:
        way = " → ".join([*chain, file.stem])
        raise UserError(f"{file}: starts from itself ({way}); change its defaults")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: is not valid YAML ({reason})") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: is not a mapping of keys, KEY: VALUE a line")
    for entry in values.get("defaults") or []:
        if isinstance(entry, str):
            name = entry.partition("@")[0]
            check_file(file.with_name(f"{name}.yaml"), [*chain, file.stem])


def option_meant(command: str, word: str, args: list[str]) -> str:
    """What to type in the place of an option that there is not: `--epochs 5` of other programs is
    train.epochs=5.
    """
    name, equals, value = word.lstrip("-").partition("=")
    following = args[args.index(word) + 1 :]
    if not equals and following and "=" not in following[0] and not following[0].startswith("-"):
        value = following[0]
    said = vocabulary.meant(command, name.replace("-", "_"))
    if not said:
        return f"see fer {command} --help"
    return said.replace("?", f"={value or 'VALUE'}?")


def refuse_twice(overrides: list[str]) -> None:
    """Refuse a key that is typed twice: which of its values was meant, only the user knows."""
    first: dict[str, str] = {}
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key in first:
            raise UserError(
                f"{key}: typed twice, {first[key]} and {override}; leave one of them out"
            )
        first[key] = override


def better_key(error: Exception, command: str, user_dir: str | None) -> Exception:
    """A key that there is not, told with the one that was probably meant, which may stand in
    another group.
    """
    if not isinstance(error, config.UnknownKeyError):
        return error
    if error.key in vocabulary.keys(command, user_dir):  # of another choice of its group
        return error
    meant = vocabulary.meant(command, error.key, user_dir)
    return UserError(f"{error.key}: no such key; {meant}") if meant else error


def rewrite(command: str, groups: dict[str, list[str]], override: str, options: Namespace) -> str:
    """An override as Hydra should see it: paths quoted, keys let through to our own check, which
    knows better words.
    """
    key, equals, value = override.partition("=")
    key = key.lstrip("+")
    group = key.partition(".")[0]
    if key.startswith(("~", "hydra")) or "@" in key:
        return override
    if not (key and equals):
        meant = vocabulary.meant_override(command, override, options.config_dir)
        remedy = f"did you mean {meant}?" if meant else option_meant(command, override, [override])
        raise UserError(f"{override}: not of the form KEY=VALUE; {remedy}")
    parts = value.split(",") if options.multirun else [value]
    if key in groups:
        for choice in parts:
            instead = vocabulary.meant_choice(command, key, choice)
            if choice not in groups[key] and instead:
                raise UserError(f"{key}={choice}: no such choice; {instead}")
            if choice not in groups[key] and re.fullmatch(
                r"[\w-]*", choice
            ):  # else Hydra's grammar
                raise UserError(f"{key}={choice}: no such choice; {nearest(choice, groups[key])}")
        return f"{key}={value}"
    if group not in groups and (config_dir() / group).is_dir():
        why = "comes from the checkpoint" if command in vocabulary.FROM_RUN else "no such key here"
        raise UserError(f"{key}: {why}; leave it out")
    group = group if group in groups else ""
    typed = dict(word.lstrip("+").partition("=")[::2] for word in options.overrides)
    target = typed.get(f"{group}._target_")
    paths = signatures.path_keys(command, group, options.config_dir, target)
    path = paths.get(key)
    if path and not value:
        raise UserError(f"{override}: needs a path; give one, or leave {key} out")
    is_list = path and path.listed and value.startswith("[") and value.endswith("]")
    if path and value != "null" and not is_list:
        value = ",".join(part if part.startswith(("'", '"')) else quoted(part) for part in parts)
    return f"++{key}={value}"


def quoted(path: str) -> str:
    """Any text as one of Hydra's quoted strings, in which OmegaConf interpolates nothing."""
    text = path.replace("${", "\\${").replace("'", "\\'")
    return f"'{text}\\'" if text.endswith("\\") else f"'{text}'"


def settle(
    command: str, groups: dict[str, list[str]], composed: DictConfig
) -> tuple[dict[str, Any], dict[str, str]]:
    """The composed values, and of each key that was typed the words, in a sweep those of this job.

    An experiment pins keys; a group that is typed beside it counts whole. A `_target_` that is
    typed takes no keys from the group's default choice, but those of a choice typed beside it.
    """
    overrides: list[str] = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # type: ignore[assignment]
    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    typed = {override: override.lstrip("+~").partition("=")[0] for override in overrides}
    if "experiment" in typed.values():
        others = [override for override, key in typed.items() if key != "experiment"]
        plain = (
            GlobalHydra.instance().config_loader().load_configuration(command, others, RunMode.RUN)
        )
        whole = {*typed.values()} & {*groups} - {"experiment"}
        values |= {group: OmegaConf.to_container(plain[group]) for group in whole}
    for group in groups:
        own_keys = [key for key in typed.values() if key.startswith(f"{group}.")]
        if f"{group}._target_" in own_keys and group not in typed.values():
            values[group] = config.pick(values, own_keys)[group]
            if group == "model" and "name" in values and "name" not in typed.values():
                values["name"] = str(values[group]["_target_"]).rpartition(".")[2]
    return values, {key: override.lstrip("+") for override, key in typed.items()}


def worded(error: Exception, user_dir: str | None = None) -> Exception:
    """What Hydra or the system refuses, in our words; a bug as it is. A file in the user's own
    folder of configs may make Hydra raise anything.
    """
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    line = " ".join(str(cause).strip().partition("\n")[0].split())
    if isinstance(error, MissingConfigException):
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        return UserError(
            f"{group}={choice}: no such choice; {nearest(choice, error.options or [])}"
        )
    if isinstance(error, OverrideParseException):
        return UserError(f"{error.override.lstrip('+')}: not a value ({line}); quote it")
    if several := re.match(r"Ambiguous value for argument '\+*([^']+)'", line):
        return UserError(
            f"{several[1]}: several values; add -m to try each, or write a list as [a,b]"
        )
    if isinstance(error, HydraException | OmegaConfBaseException):
        key = getattr(cause, "full_key", None)  # of a value that OmegaConf cannot resolve
        return UserError(f"{key}: {line}" if key else line)
    if user_dir and not isinstance(error, UserError):
        return UserError(
            f"--config-dir {user_dir}: a file there is no YAML ({' '.join(str(error).split())})"
        )
    if isinstance(error, OSError):  # a disk or a name
        said = f"{error.filename or 'output'}: {error.strerror or error}"
        return UserError(said).with_traceback(error.__traceback__)
    return error
