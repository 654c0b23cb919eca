"""How a command starts: Hydra composes its config, once or for each choice of a sweep.

Hydra's errors become UserErrors. Knows Hydra and the names of commands, not what they do.
"""

import contextlib
import logging
import math
import os
import re
import shlex
import shutil
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from traceback import walk_tb
from typing import Any, ClassVar, NoReturn

import yaml
from hydra import compose, initialize_config_dir, version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from fer import UserError, choices, config, config_dir, nearest, signatures, vocabulary
from fer.runtime import Interrupted, is_out_of_memory, refuse_processes
from fer.streams import never_failing

# Launchers and sweepers of the extra `sweeps`.
PLUGINS = {
    "hydra/launcher": ("joblib", "submitit_local", "submitit_slurm"),
    "hydra/sweeper": ("optuna",),
}
SWEEP_FILES = ("multirun.yaml", "optimization_results.yaml")  # which Hydra writes


def launch(command: str, args: list[str]) -> int:
    """Compose the command's config with Hydra and run it, once or, with -m, once for each of a
    sweep's choices. Returns the exit code.
    """
    options = parse(command, args)
    groups = choices(command, options.config_dir)
    refuse_twice(options.overrides)
    if options.config_dir:
        check_chosen(Path(options.config_dir), groups, options.overrides)
    if options.multirun:
        check_sweep(command, options.overrides)
    options.overrides = [
        rewrite(command, groups, override, options) for override in options.overrides
    ]
    settings = settings_of_hydra(options.overrides)
    jobs = Jobs(command, groups, options.overrides, options.config_dir)
    JobResult.awaited_by = jobs
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed
    version.setbase("1.3")
    try:
        if needs_hydras_launcher(options):
            with quiet_logs(options):
                _run_hydra(options, get_args_parser(), jobs.run, str(config_dir()), command)
        else:
            with composed(command, options.overrides) as config_of_job:
                jobs.run(config_of_job)
    except Interrupted as signal:
        return signal.code
    except Exception as error:
        in_job = any(frame.f_code is Jobs.run.__code__ for frame, _ in walk_tb(error.__traceback__))
        refusal = as_user_error(error, None if in_job else options.config_dir)
        if refusal is error and not in_job and settings:
            refusal = refusal_of_plugin(error, settings)
        if refusal is error:
            raise
        raise refusal from error
    finally:
        jobs.remove_empty_sweeps()
    if command == "train" and options.multirun:
        jobs.print_next()
    if jobs.failures:
        failures = [failure for _, failure in sorted(jobs.failures.items())]
        raise UserError("\nfer: ".join(lines_of(failures))) from failures[0]
    return 0


def needs_hydras_launcher(options: Namespace) -> bool:
    """Does Hydra itself have to start the job: for a sweep, for what an option prints, or because
    its settings may have changed? It composes a single job twice, so we start that without it.
    """
    plain = get_args_parser().parse_args(options.overrides)
    return options != plain or bool(settings_of_hydra(options.overrides))


@contextlib.contextmanager
def quiet_logs(options: Namespace) -> Iterator[None]:
    """Within the context launchers and sweepers log warnings only, since each job prints a line
    itself. What --info prints is a log too.
    """
    if any(override.startswith("hydra/launcher=submitit") for override in options.overrides):
        print("jobs are submitted; their output is in .submitit/ in the folder of the sweep")
    if not options.info:
        logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def settings_of_hydra(overrides: list[str]) -> list[str]:
    """The overrides that set Hydra's own keys, such as its launcher."""
    return [override for override in overrides if override.lstrip("+~").startswith("hydra")]


def refusal_of_plugin(error: Exception, settings: list[str]) -> UserError:
    """What a launcher or sweeper raised, which may be anything, for example without Slurm.
    settings: the overrides of Hydra's own keys.
    """
    for setting in settings:
        if setting.startswith("hydra.sweeper.storage=") and isinstance(error, AssertionError):
            remedy = "leave it out, or pip install 'sqlalchemy<2' 'alembic<1.20'"
            return UserError(f"{setting}: Optuna 2.10 does not work with SQLAlchemy 2; {remedy}")
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{', '.join(settings)}: {reason}; correct it, or leave it out")


@dataclass
class Jobs:
    """Runs the command for each config that Hydra composes: one, or those of a sweep.

    overrides: those of all jobs. failures: job number → why it was refused, kept until the other
    jobs are done. sweeps: folders of sweeps. trust: the override with which their checkpoints can
    be opened. process: in which it was made; a launcher may run jobs in others.
    """

    command: str
    groups: dict[str, list[str]]
    overrides: list[str]
    user_dir: str | None
    failures: dict[int, Exception] = field(default_factory=dict)
    sweeps: set[Path] = field(default_factory=set)
    trust: str = ""
    process: int = field(default_factory=os.getpid)

    def run(self, composed: DictConfig) -> "float | JobResult | None":
        """One job. Returns what a sweep may optimize: 0, the worst accuracy, if it was refused."""
        if os.getpid() == self.process:
            return self.run_here(composed)
        self.failures, self.sweeps = {}, set()  # of this job alone
        with never_failing():
            value = self.run_here(composed)
        return JobResult(value, self.failures, self.sweeps, self.trust)

    def run_here(self, composed: DictConfig) -> float | None:
        try:
            return self.call_command(composed)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            batch = "train.batch_size" if "train" in composed else "batch_size"
            self.keep(UserError(f"out of memory; use a smaller {batch} or model, or device=cpu"))
        except (UserError, OmegaConfBaseException, OSError) as error:
            self.keep(as_user_error(better_key(error, self.command, self.user_dir)))
        return 0.0

    def keep(self, refusal: Exception) -> None:
        """Keep a refusal, in a sweep under the number of its job."""
        settings = HydraConfig.get()
        number = settings.job.num if settings.mode == RunMode.MULTIRUN else 0
        self.failures[number] = of_job(refusal, self.overrides)

    def call_command(self, composed: DictConfig) -> float | None:
        values, overrides = values_and_overrides(self.command, self.groups, composed)
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.MULTIRUN:
            sweep = Path(hydra.sweep.dir)
            self.sweeps.add(sweep)
            self.trust = config.trust_override(values) or self.trust
            print(job_name(self.overrides) + place_in_sweep(self.overrides))
            if self.command == "train" and not values["run"]:
                values["run"] = str(sweep / str(hydra.job.num))
        return run_command(self.command, values, overrides)

    def remove_empty_sweeps(self) -> None:
        """Hydra makes a sweep's folder before the first job is checked; if all were refused, it
        holds nothing of use.
        """
        for sweep in filter(Path.is_dir, self.sweeps):
            names = {entry.name for entry in sweep.iterdir()}
            if names <= {*SWEEP_FILES}:
                shutil.rmtree(sweep)
                with contextlib.suppress(OSError):  # runs/ holds other runs
                    sweep.parent.rmdir()

    def print_next(self) -> None:
        for sweep in filter(Path.is_dir, self.sweeps):
            if any(override.startswith("hydra/sweeper=") for override in self.overrides):
                print_best_values(sweep)
            folder = shlex.quote(str(sweep))
            print(f"all of the sweep, side by side:\n  fer report run={folder}{self.trust}")
            if any("already exists" in str(failure) for failure in self.failures.values()):
                print(f"to resume its runs:\n  fer train resume={folder}{self.trust}")


@dataclass
class JobResult:
    """The result of a job in another process: the value that a sweep may optimize, and what that
    process's Jobs collected.

    Hydra's sweepers drop what jobs return. So unpickling a result in the process of the sweep adds
    it to the Jobs there, `awaited_by`.
    """

    value: float | None
    failures: dict[int, Exception]
    sweeps: set[Path]
    trust: str
    awaited_by: ClassVar[Jobs]

    def __float__(self) -> float:
        return float(self.value)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple:
        return JobResult.received, (self.value, self.failures, self.sweeps, self.trust)

    @classmethod
    def received(
        cls, value: float | None, failures: dict[int, Exception], sweeps: set[Path], trust: str
    ) -> "JobResult":
        cls.awaited_by.failures |= failures
        cls.awaited_by.sweeps |= sweeps
        cls.awaited_by.trust = trust or cls.awaited_by.trust
        return cls(value, failures, sweeps, trust)


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
            lines.append(
                f"{names[0]}: {reason} (and {len(names) - 1} other jobs for the same reason)"
            )
        else:
            lines += [f"{name}: {reason}" if name else reason for name in names]
    return lines


def run_command(command: str, values: dict[str, Any], overrides: dict[str, str]) -> float | None:
    """Check the values and run the command on them. Returns what a sweep may optimize."""
    run = import_module(f"fer.commands.{command}").run
    if command == "train":  # checks the values itself: resume= merges them into saved ones
        return run(values, overrides)
    return run(config.check(command, values), list(overrides))


def call(command: str, overrides: list[str]) -> None:
    """Run the command once inside a Python program, whose own Hydra, logging and environment stay
    as they are. Raises Interrupted after a signal.
    """
    options = Namespace(config_dir=None, multirun=False, overrides=overrides)
    groups = choices(command)
    try:
        refuse_twice(overrides)
        rewritten = [rewrite(command, groups, override, options) for override in overrides]
        with composed(command, rewritten) as config_of_job:
            values, given = values_and_overrides(command, groups, config_of_job)
        run_command(command, values, given)
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        raise as_user_error(better_key(error, command, None)) from error


@contextlib.contextmanager
def composed(command: str, overrides: list[str]) -> Iterator[DictConfig]:
    """The config of a single job. Within the context Hydra is as its own launcher leaves it."""
    with fresh_hydra(), initialize_config_dir(str(config_dir()), "fer", version_base="1.3"):
        values = compose(command, overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(values)
        with flag_override(values, ["readonly", "struct"], False):
            del values["hydra"]
        yield values


@contextlib.contextmanager
def fresh_hydra() -> Iterator[None]:
    """Within the context Hydra is as new; afterwards it is as it was before."""
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


def print_best_values(sweep: Path) -> None:
    """The best values that Optuna found. Its file calls them as Hydra does: `++optim.lr`."""
    file = sweep / "optimization_results.yaml"
    if not file.is_file():
        return
    results = yaml.safe_load(file.read_text(encoding="utf-8"))
    if "best_params" in results:  # there are none if it optimizes several numbers
        values = {key.lstrip("+"): value for key, value in results["best_params"].items()}
        best = ", ".join(f"{key}={value}" for key, value in values.items())
        print(f"best: {best} (validation accuracy {results['best_value']:.4f})")


def of_job(error: Exception, overrides: list[str]) -> Exception:
    """In a sweep, a refusal with the name of its job."""
    if HydraConfig.get().mode != RunMode.MULTIRUN or not isinstance(error, UserError):
        return error
    return UserError(f"{job_name(overrides)}: {error}").with_traceback(error.__traceback__)


def job_name(overrides: list[str]) -> str:
    """The number of a sweep's job and the choices that only this job has. overrides: those of all
    jobs.
    """
    settings = HydraConfig.get()
    chosen = []
    for override in settings.overrides.task:
        if override not in overrides:
            key, _, value = override.lstrip("+").partition("=")
            unquoted = value.strip("'")  # a path is quoted for Hydra
            chosen.append(f"{key}={unquoted}")
    name = f"job {settings.job.num}"
    return f"{name} ({', '.join(chosen)})" if chosen else name


def place_in_sweep(overrides: list[str]) -> str:
    """Which of a sweep's jobs this is, such as `, 1 of 4`; nothing if their number is not known.
    Their names count from 0, as their folders do.
    """
    settings = HydraConfig.get()
    jobs = settings.sweeper.get("n_trials")  # Optuna's
    if jobs is None:
        params = [f"{key}={value}" for key, value in (settings.sweeper.get("params") or {}).items()]
        loader = GlobalHydra.instance().config_loader()  # finds the choices of glob(…)
        sweeps = OverridesParser.create(loader).parse_overrides([*params, *overrides])
        sweeps = [override for override in sweeps if override.is_sweep_override()]
        if not all(override.is_discrete_sweep() for override in sweeps):
            return ""
        jobs = math.prod(len([*override.sweep_iterator()]) for override in sweeps)
    return f", {settings.job.num + 1} of {jobs}"


def parse(command: str, args: list[str]) -> Namespace:
    """The command line as Hydra's options. Raises UserError for a wrong one before Hydra starts."""

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
    if options.shell_completion:
        refuse("-sc: comes before the command")
    if options.config_path or options.config_name:
        refuse("--config-path, --config-name: not supported; use --config-dir")
    modes = [f"--{name}" for name in ("run", "multirun", "cfg", "info") if getattr(options, name)]
    if len(modes) > 1:
        refuse(f"{' and '.join(modes)}: cannot be combined; leave one of them out")
    if options.multirun:
        refuse_processes("-m: makes a sweep")
    if options.config_dir and not Path(options.config_dir).is_dir():
        raise UserError(f"--config-dir {options.config_dir}: no such folder")
    options.overrides += extra
    return options


def check_chosen(folder: Path, groups: dict[str, list[str]], overrides: list[str]) -> None:
    """Refuse a chosen config of the user's that is not YAML. Hydra would not name its file."""
    for override in overrides:
        group, _, chosen = override.lstrip("+").partition("=")
        if group in groups:
            for choice in chosen.split(","):
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
        raise UserError(f"{file}: is not a mapping of keys; write one KEY: VALUE per line")
    for entry in values.get("defaults") or []:
        if isinstance(entry, str):
            name = entry.partition("@")[0]
            check_file(file.with_name(f"{name}.yaml"), [*chain, file.stem])


def check_sweep(command: str, overrides: list[str]) -> None:
    """Refuse a sweep whose jobs would all write to one place, or whose own files cannot be written:
    Hydra would wait for the reader of a pipe.
    """
    values = values_by_key(overrides)
    output = "run" if command == "train" else "out"
    place = values.get(output, "")
    if place and not re.search(r"[,({]", place):
        remedy = "leave it out"
        if command == "train":
            remedy += f", or set hydra.sweep.dir={place}, in which each job has its folder"
        raise UserError(f"{output}={place}: all jobs of a sweep would write there; {remedy}")
    for name in SWEEP_FILES:
        path = Path(values.get("hydra.sweep.dir", ""), name)
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a regular file; remove it, or choose another folder")


def values_by_key(overrides: list[str]) -> dict[str, str]:
    """What KEY=VALUE gives each key, as text."""
    values = {}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        values[key] = value
    return values


def option_meant(command: str, word: str, args: list[str]) -> str:
    """What to type in place of an unknown option: `--epochs 5` elsewhere is train.epochs=5."""
    name, equals, value = word.lstrip("-").partition("=")
    following = args[args.index(word) + 1 :]
    if not equals and following and "=" not in following[0] and not following[0].startswith("-"):
        value = following[0]
    said = vocabulary.meant(command, name.replace("-", "_"))
    if not said:
        return f"see fer {command} --help"
    return said.replace("?", f"={value or 'VALUE'}?")


def refuse_twice(overrides: list[str]) -> None:
    """Refuse a key that is typed twice: only the user knows which value was meant."""
    first: dict[str, str] = {}
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key in first:
            raise UserError(
                f"{key}: typed twice, {first[key]} and {override}; leave one of them out"
            )
        first[key] = override


def better_key(error: Exception, command: str, user_dir: str | None) -> Exception:
    """The error about an unknown key, with the key that was probably meant, perhaps of another
    group.
    """
    if not isinstance(error, config.UnknownKeyError):
        return error
    if error.key in vocabulary.keys(command, user_dir):  # of another choice of its group
        return error
    meant = vocabulary.meant(command, error.key, user_dir)
    return UserError(f"{error.key}: no such key; {meant}") if meant else error


def rewrite(command: str, groups: dict[str, list[str]], override: str, options: Namespace) -> str:
    """An override as Hydra should see it: paths quoted, and unknown keys allowed, since our own
    checks have better messages.
    """
    key, equals, value = override.partition("=")
    key = key.lstrip("+")
    if key.startswith(("~", "hydra")) or "@" in key:
        return override
    if not (key and equals):
        meant = vocabulary.meant_override(command, override, options.config_dir)
        remedy = f"did you mean {meant}?" if meant else option_meant(command, override, [override])
        raise UserError(f"{override}: not of the form KEY=VALUE; {remedy}")
    values = value.split(",") if options.multirun else [value]
    if key in groups:
        for choice in values:
            check_choice(command, key, choice, groups[key])
        return f"{key}={value}"
    group = key.partition(".")[0]
    if group not in groups and (config_dir() / group).is_dir():
        why = "comes from the checkpoint" if command in vocabulary.FROM_RUN else "no such key here"
        raise UserError(f"{key}: {why}; leave it out")
    path = path_key(command, key, group if group in groups else "", options)
    if path is None:
        return f"++{key}={value}"
    if not value:
        raise UserError(f"{override}: needs a path; give one, or leave {key} out")
    if value == "null":
        return f"++{key}={value}"
    if path.listed and value.startswith("[") and value.endswith("]"):
        return f"++{key}={quoted_list(value)}"
    return f"++{key}={','.join(map(quoted, values))}"


def check_choice(command: str, group: str, choice: str, names: list[str]) -> None:
    """Refuse a choice that the group does not have, unless it is a word of Hydra's grammar."""
    if choice in names:
        return
    instead = vocabulary.meant_choice(command, group, choice)
    if not instead and re.fullmatch(r"[\w-]*", choice):
        instead = nearest(choice, names)
    if instead:
        raise UserError(f"{group}={choice}: no such choice; {instead}")


def path_key(command: str, key: str, group: str, options: Namespace) -> signatures.PathKey | None:
    """The PathKey of a key of the command or of `group`; None if it is not a path. The command line
    may also set the group's `_target_`.
    """
    target = values_by_key(options.overrides).get(f"{group}._target_")
    return signatures.path_keys(command, group, options.config_dir, target).get(key)


def quoted(path: str) -> str:
    """A path as one of Hydra's quoted strings, in which OmegaConf resolves nothing. One that is
    typed in quotes stays.
    """
    if path.startswith(("'", '"')):
        return path
    text = path.replace("${", "\\${").replace("'", "\\'")
    return f"'{text}\\'" if text.endswith("\\") else f"'{text}'"


def quoted_list(paths: str) -> str:
    """A list of paths, `[a,b]`, each quoted: a run may be called 3. A list with quotes in it stays
    as it is typed.
    """
    if re.search("['\"]", paths):
        return paths
    items = [item.strip() for item in paths[1:-1].split(",")]
    return f"[{','.join(quoted(item) for item in items if item)}]"


def values_and_overrides(
    command: str, groups: dict[str, list[str]], composed: DictConfig
) -> tuple[dict[str, Any], dict[str, str]]:
    """The composed values, and the overrides, KEY → KEY=VALUE; in a sweep those of this job."""
    words: list[str] = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # type: ignore[assignment]
    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    overrides = {override.lstrip("+~").partition("=")[0]: override for override in words}
    if "experiment" in overrides:
        values |= typed_groups(command, groups, overrides)
    for group in groups:
        if f"{group}._target_" in overrides and group not in overrides:
            keep_typed_keys(values, group, overrides)
    return values, {key: override.lstrip("+") for key, override in overrides.items()}


def typed_groups(
    command: str, groups: dict[str, list[str]], overrides: dict[str, str]
) -> dict[str, Any]:
    """The groups that are typed beside an experiment, composed without it: they replace all keys
    that it sets in them.
    """
    others = [override for key, override in overrides.items() if key != "experiment"]
    composed = (
        GlobalHydra.instance().config_loader().load_configuration(command, others, RunMode.RUN)
    )
    typed = [group for group in groups if group in overrides and group != "experiment"]
    return {group: OmegaConf.to_container(composed[group]) for group in typed}


def keep_typed_keys(values: dict[str, Any], group: str, overrides: dict[str, str]) -> None:
    """Keep only the typed keys of a group whose `_target_` is typed and whose choice is not: those
    of its default choice belong to another class.
    """
    keys = [key for key in overrides if key.startswith(f"{group}.")]
    values[group] = config.pick(values, keys)[group]
    if group == "model" and "name" in values and "name" not in overrides:
        values["name"] = str(values[group]["_target_"]).rpartition(".")[2]


def as_user_error(error: Exception, user_dir: str | None = None) -> Exception:
    """An error of Hydra or of the system as a UserError; any other error stays as it is.

    user_dir: the user's own folder of configs, if Hydra was reading it; a file there may make Hydra
    raise anything.
    """
    if isinstance(error, UserError):
        return error
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    line = " ".join(str(cause).strip().partition("\n")[0].split())
    if isinstance(error, MissingConfigException):
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        if choice in PLUGINS.get(group, ()):
            remedy = "pip install 'fer-trainer[sweeps]'"
            return UserError(f"{group}={choice}: a package is missing; {remedy}")
        remedy = "name one, without brackets"
        if error.options:
            remedy = nearest(choice, error.options)
        return UserError(f"{group}={choice}: no such choice; {remedy}")
    if isinstance(error, OverrideParseException):
        return UserError(f"{error.override.lstrip('+')}: not a value ({line}); quote it")
    if ambiguous := re.match(r"Ambiguous value for argument '\+*([^']+)'", line):
        return UserError(
            f"{ambiguous[1]}: several values; add -m to try each, or write a list as [a,b]"
        )
    if isinstance(error, HydraException | OmegaConfBaseException):
        key = getattr(cause, "full_key", None)  # of a value that OmegaConf cannot resolve
        return UserError(f"{key}: {line}" if key else line)
    if user_dir:
        reason = " ".join(str(error).split())
        return UserError(f"--config-dir {user_dir}: a file there is not valid YAML ({reason})")
    if isinstance(error, OSError):  # a disk or a name
        said = f"{error.filename or 'output'}: {error.strerror or error}"
        return UserError(said).with_traceback(error.__traceback__)
    return error
