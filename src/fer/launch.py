"""How a command starts: Hydra composes its config, once or for each choice of a sweep, and what Hydra refuses is told
in our words. Knows Hydra and the names of commands; what they do stays out.
"""

import contextlib
import math
import os
import re
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from traceback import walk_tb
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer import UserError, choices, config, config_dir, nearest
from fer.runtime import Interrupted

# Their values are quoted before Hydra parses them: a path may hold anything.
PATHS = {"run", "resume", "start", "ckpt", "out", "sample", "probs", "input", "image", "data.path", "model.weights"}
FROM_RUN = ("predict", "evaluate", "report", "explain", "export")  # commands that have no groups but a checkpoint's


def launch(command: str, args: list[str]) -> int:
    """Compose the command's config with Hydra and run it, once or, with -m, once for each of a sweep's choices."""
    options, words = parse(command, args)
    failures: list[Exception] = []  # kept until the sweep's other jobs are done
    sweeps: set[Path] = set()
    own = os.getpid()

    def task(composed: DictConfig) -> float | None:
        try:
            values, typed = settle(command, composed, options.config_dir)
            settings = HydraConfig.get()
            if settings.mode == RunMode.MULTIRUN:
                sweeps.add(Path(settings.sweep.dir))
                if command == "train" and not values["run"]:
                    values["run"] = str(Path(settings.sweep.dir) / str(settings.job.num))
            return import_module(f"fer.{command}").run(values, typed)
        except BrokenPipeError:  # fer … | head: the reader has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (UserError, OmegaConfBaseException, OSError) as error:
            failures.append(worded(error))
            if os.getpid() != own:  # a launcher's process, whose failures reach us only so
                raise failures[-1] from None
        return math.nan

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed
    OmegaConf.clear_resolver("oc.env")  # a config from others reads no environment variables
    saved, sys.argv = sys.argv, ["fer", *words]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)(task)()
    except Interrupted as signal:
        return signal.code
    except Exception as error:
        ours = any(frame.f_code is task.__code__ for frame, _ in walk_tb(error.__traceback__))
        refusal = worded(error, None if ours else options.config_dir)
        if refusal is error:
            raise
        raise refusal from error
    finally:
        sys.argv = saved
        for folder in sweeps:
            remove_if_empty(folder)
    if failures:
        raise UserError("\nfer: ".join(dict.fromkeys(map(str, failures)))) from failures[0]
    return 0


def parse(command: str, args: list[str]) -> tuple[Namespace, list[str]]:
    """Hydra's options, and the arguments as it should see them."""

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; see fer {command} --help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    options, extra = parser.parse_known_args(args)
    if unknown := [a for a in extra if a.startswith("-")]:
        refuse(f"{unknown[0]}: no such option")
    if options.experimental_rerun:
        refuse("--experimental-rerun: not supported")
    if options.config_dir:
        if not Path(options.config_dir).is_dir():
            raise UserError(f"--config-dir {options.config_dir}: no such folder")
        config.vet(Path(options.config_dir))
    overrides = [*options.overrides, *extra]
    words = [a for a in args if a not in overrides]
    if options.shell_completion:
        return options, words + overrides
    return options, words + [rewrite(command, o, options.multirun, options.config_dir) for o in overrides]


def settle(command: str, composed: DictConfig, user_dir: str | None) -> tuple[dict[str, Any], list[str]]:
    """The composed values, and the keys that were typed. An experiment pins keys; a group that is typed beside it
    counts whole."""
    overrides: list[str] = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # type: ignore[assignment]
    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    typed = [override_key(override) for override in overrides]
    if "experiment" in typed:
        others = [override for override in overrides if override_key(override) != "experiment"]
        plain = GlobalHydra.instance().config_loader().load_configuration(command, others, RunMode.RUN)
        groups = set(typed) & set(choices(command, user_dir)) - {"experiment"}
        values |= {group: OmegaConf.to_container(plain[group]) for group in groups}
    return values, typed


def worded(error: Exception, user_dir: str | None = None) -> Exception:
    """What Hydra or the system refuses, in our words; a bug as it is. A file in the user's own folder of configs may
    make Hydra raise anything."""
    if isinstance(error, MissingConfigException):
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        return UserError(f"{group}={choice}: no such choice; {nearest(choice, error.options or [])}")
    if isinstance(error, OverrideParseException):
        return UserError(f"{error.override.lstrip('+')}: not a value ({first_line(error)}); quote it")
    if isinstance(error, HydraException | OmegaConfBaseException):
        if several := re.match(r"Ambiguous value for argument '\+*([^']+)'", str(error)):
            return UserError(f"{several[1]}: several values; add -m to try each, or write a list as [a,b]")
        return UserError(first_line(error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error))
    if user_dir and not isinstance(error, UserError):
        return UserError(f"--config-dir {user_dir}: a file there is no YAML ({' '.join(str(error).split())})")
    if isinstance(error, OSError):  # a disk or a name
        said = f"{error.filename or 'output'}: {error.strerror or error}"
        return UserError(said).with_traceback(error.__traceback__)
    return error


def first_line(error: BaseException) -> str:
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
        for choice in value.split(",") if sweep and re.fullmatch(r"[\w,-]+", value) else [value]:
            if choice not in groups[bare] and (choice in ("", "null") or re.fullmatch(r"[\w-]+", choice)):
                raise UserError(f"{bare}={choice}: no such choice; {nearest(choice, groups[bare])}")
        return f"{bare}={value}"
    if group not in groups and (config_dir() / group).is_dir():
        raise UserError(
            f"{bare}: {'comes from the checkpoint' if command in FROM_RUN else 'no such key here'}; leave it out"
        )
    if bare in PATHS and not value:
        raise UserError(f"{override}: names nothing; give a path, or leave {bare} out")
    if bare in PATHS and value != "null" and not (value.startswith("[") and value.endswith("]")):
        parts = value.split(",") if sweep else [value]
        value = ",".join(part if part[:1] in ("'", '"') else quoted(part) for part in parts)
    return f"++{bare}={value}"


def quoted(path: str) -> str:
    """Any text as one of Hydra's quoted strings, `${` included, which OmegaConf would interpolate."""
    text = path.replace("${", "\\${").replace("'", "\\'")
    return f"'{text}{chr(92) if text.endswith(chr(92)) else ''}'"


def remove_if_empty(sweep: Path) -> None:
    """Hydra makes a sweep's folder before the first job is checked; one whose jobs were all refused holds nothing."""
    if {entry.name for entry in sweep.iterdir()} <= {"multirun.yaml"}:
        (sweep / "multirun.yaml").unlink(missing_ok=True)
        sweep.rmdir()
        with contextlib.suppress(OSError):  # runs/ holds other runs
            sweep.parent.rmdir()
