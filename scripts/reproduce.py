"""The runs and tables of scripts/reproduce; see there.

docs/systems.md is the record: a row that has no run here keeps the figures that it has there.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import mean, median, stdev

import hydra
import numpy as np
import pandas as pd
import torch
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf

from fer import UserError, api, config, config_dir
from fer.files import write_text

ROOT = Path(__file__).parents[1]
COLUMNS = [
    "row",
    "command",
    "PublicTest",
    "with flips",
    "without copies",
    "macro F1",
    "seeds",
    "best epoch",
    "epochs",
    "seconds",
    "images/s",
    "machine",
    "format",
]
NOT_RUN = "not run"
TRAINING_FACES, VALIDATION_FACES = 28_709, 3_589
TIMED_FACES = 64  # to estimate how long a run takes


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    of: the row whose runs it evaluates, if it has none of its own. tta: views that are
    averaged. ensemble: the mean over the seeds' networks, which need these seeds. parameters,
    published, chosen: for README's table, which lists the rows that have a title.
    """

    name: str
    title: str = ""
    words: str = ""
    parameters: str = ""
    published: str = ""
    chosen: str = ""
    of: str = ""
    tta: str = "none"
    ensemble: bool = False
    seeds: tuple[int, ...] = (0,)

    @property
    def trained(self) -> str:
        """The row whose runs it needs."""
        return self.of or self.name

    @property
    def experiment(self) -> str:
        return f"experiment={self.trained}"

    def training_words(self) -> list[str]:
        return [self.experiment, *self.words.split()]


USAGE = "data.split=usage"  # instead of the source's own held-out faces: one protocol for all
ROWS = [
    Row(
        "vgg16_staged",
        "A, plain VGG16, staged augmentation",
        USAGE,
        "39,916,231",
        "",
        "crop size, degrees, when each stage comes, patience, batch, epochs",
    ),
    Row(
        "vgg16_staged_tencrop",
        "A, mean over ten crops",
        USAGE,
        parameters="39,916,231",
        chosen="as above",
        of="vgg16_staged",
        tta="tencrop",
    ),
    Row(
        "vgg16_staged_ensemble",
        "A, ensemble of three",
        USAGE,
        parameters="3 × 39,916,231",
        published="0.686, an ensemble of several, Kaggle",
        chosen="as above, number of networks",
        of="vgg16_staged",
        ensemble=True,
        seeds=(0, 1, 2),
    ),
    Row(
        "dnn_wide",
        "A's DNN",
        USAGE,
        "43,032,583",
        "0.402, Kaggle",
        "normalization, batch, epochs",
    ),
    Row("leaky_bn", "B, LeakyReLU then BatchNorm", "", "15,140,551", "", "the whole recipe"),
    Row(
        "prelu_cnn",
        "C, PReLU, average pooling",
        USAGE,
        "4,845,063",
        "about 0.62, held-out tenth",
        "dropout, normalization, first weights",
    ),
    Row(
        "prelu_cnn_plain",
        "C on equal terms, CNN",
        USAGE,
        "4,845,063",
        "0.56, held-out tenth",
        "as above",
    ),
    Row(
        "prelu_dnn_plain",
        "C on equal terms, DNN",
        USAGE,
        "4,469,767",
        "0.27, held-out tenth",
        "as above",
    ),
    Row(
        "compact_cnn",
        "D, compact CNN",
        "",
        "1,396,871",
        "0.63; 0.638, Kaggle",
        "dropout, optimizer, rate, batch, epochs, augmentation",
    ),
    Row("compact_cnn_plain", "D without augmentation", "", "1,396,871", "0.59", "as above"),
    Row("compact_dnn", "D's DNN", "", "1,446,407", "", "as above"),
    Row(
        "bn_cnn_small",
        "E.1, BatchNorm everywhere, 2×2 kernels",
        "",
        "2,649,225 (2,659,851 as Keras counts)",
        "0.60936",
        "dropout, optimizer, rate, batch, epochs, augmentation's sizes",
    ),
    Row("bn_cnn_small_plain", "E.1 without augmentation", "", "2,649,225", "0.60", "as above"),
    Row(
        "cnn_small_plain",
        "E.1 without augmentation and BatchNorm",
        "",
        "2,638,599",
        "0.56",
        "as above",
    ),
    Row("bn_cnn_wide", "E.2, wide", "", "39,630,891 (39,782,273)", "0.64140", "as E.1"),
    Row(
        "bn_cnn_deep",
        "E.3, VGG16's convolutions",
        "",
        "16,309,065 (16,326,603)",
        "0.65254",
        "as E.1",
    ),
    Row(
        "vgg_4x2",
        "VGG, 4 stages, ten crops of each face in the batch",
        "",
        "29,890,759",
        "0.7328, selected on PrivateTest",
        "nothing",
    ),
    Row(
        "resnet18_tricks",
        "ResNet18, stem for CIFAR, five crops of each face in the batch",
        "",
        "11,171,271",
        "0.7370, selected on PrivateTest",
        "nothing",
    ),
    Row(
        "ferplus_vgg13",
        "FER+ VGG13, original labels here",
        "",
        "8,756,679",
        "0.8499, on FER+ labels",
        "the whole recipe",
    ),
    Row("speedrun_cpu", seeds=(0, 1, 2)),
    Row("speedrun_cuda"),
    Row("builtin"),
    Row("best_single"),
    Row("best_ensemble", ensemble=True, seeds=(0, 1, 2, 3, 4, 5, 6, 7)),
]
BY_NAME = {row.name: row for row in ROWS}
# Most informative first: quick rows that say most about a system before those that take hours.
ORDER = [
    "compact_cnn",
    "bn_cnn_deep",
    "leaky_bn",
    "bn_cnn_small",
    "vgg16_staged",
    "ferplus_vgg13",
    "bn_cnn_wide",
    "compact_dnn",
    "compact_cnn_plain",
    "bn_cnn_small_plain",
    "cnn_small_plain",
    "prelu_cnn_plain",
    "prelu_dnn_plain",
    "dnn_wide",
    "best_single",
    "speedrun_cuda",
    "resnet18_tricks",
    "vgg_4x2",
    "prelu_cnn",
    "best_ensemble",
    "speedrun_cpu",
    "builtin",
]


@dataclass(eq=False)
class Training:
    """One run of a row, in its folder."""

    row: Row
    seed: int
    folder: Path
    words: list[str] = field(default_factory=list)  # besides the recipe's

    @property
    def done(self) -> bool:
        return is_done(self.folder)

    def command(self) -> list[str]:
        fer_train = [sys.executable, "-m", "fer", "train"]
        if (self.folder / "last.pt").is_file():
            return [*fer_train, f"resume={self.folder}"]
        own = [f"seed={self.seed}", f"run={self.folder}", f"name={self.folder.name}"]
        return [*fer_train, *self.all_words(), *own]

    def all_words(self) -> list[str]:
        """The overrides on which its result depends, but for the seed."""
        row_words = self.row.training_words()
        if any(word.startswith("data=") for word in self.words):
            row_words = [word for word in row_words if word != USAGE]  # a key of FER2013
        return [*row_words, *self.words]


def is_done(folder: Path) -> bool:
    """Has the run in the folder reached its last epoch, or run out of patience?"""
    if not all((folder / name).is_file() for name in ("history.csv", "config.yaml", "best.pt")):
        return False
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["train"]
    accuracies = pd.read_csv(folder / "history.csv")["val_accuracy"]
    if len(accuracies) >= settings["epochs"]:
        return True
    patience = settings["patience"]
    return patience is not None and len(accuracies) - 1 - accuracies.argmax() >= patience


def refuse_other_recipes(trainings: list[Training]) -> None:
    """Refuse run folders that were trained with other settings: their figures are not the rows'."""
    for training in trainings:
        file = training.folder / "config.yaml"
        if not file.is_file():
            continue
        saved = config.parse(file.read_text(encoding="utf-8"), str(file))
        wanted = settings_of(training.all_words()).model_dump()
        different = config.difference(config.check("train", saved).model_dump(), wanted)
        ignored = config.not_of_the_recipe(wanted["data"]) | {"name"}
        lines = [line for key, line in different.items() if key not in ignored]
        if lines:
            raise UserError(
                f"{training.folder}: was trained with other settings ({lines[0]}); remove it, or "
                "name another folder with --runs"
            )


# Training


def train_all(trainings: list[Training], jobs: int, deadline: float, on_cpu: bool) -> list[str]:
    """Start the runs that are not done, `jobs` at a time, until the deadline (time.monotonic).
    Returns a line for each that failed.

    On a CPU each is timed first, and one that would not end in time is left out.
    """
    waiting = [training for training in trainings if not training.done]
    for training in trainings:
        if training.done:
            print(f"{training.folder}: done")
    running: dict[Training, subprocess.Popen] = {}
    failures = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs and time.monotonic() < deadline:
                training = waiting.pop(0)
                if not on_cpu or fits(training, deadline):
                    running[training] = start(training, jobs)
            if time.monotonic() >= deadline:
                stop(running)
                for training in waiting:
                    print(f"{training.folder}: not started, the time is up")
                waiting = []
            for training, process in [*running.items()]:
                if process.poll() is None:
                    continue
                del running[training]
                line = ending(training, process.returncode)
                print(line, flush=True)
                if process.returncode not in (0, 128 + signal.SIGTERM):
                    failures.append(line)
            time.sleep(0.2)
    except BaseException:
        stop(running)
        raise
    return failures


def start(training: Training, jobs: int) -> subprocess.Popen:
    training.folder.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    arguments = training.command()[3:]  # after python -m fer
    print(f"{training.folder}: {shlex.join(['fer', *arguments])}", flush=True)
    with log_of(training).open("a", encoding="utf-8") as log:
        return subprocess.Popen(
            training.command(),
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C must not reach it: a second signal ends it unsaved
        )


def stop(running: dict[Training, subprocess.Popen]) -> None:
    """Have the processes save and end."""
    for process in running.values():
        process.send_signal(signal.SIGTERM)
    for training, process in running.items():
        process.wait()
        if training.done:  # it had just ended
            print(f"{training.folder}: done", flush=True)
        else:
            print(f"{training.folder}: stopped, and saved; the same command resumes it", flush=True)
    running.clear()


def log_of(training: Training) -> Path:
    return training.folder.with_name(f"{training.folder.name}.log")


def ending(training: Training, code: int) -> str:
    if code == 0:
        return f"{training.folder}: done"
    lines = log_of(training).read_text(encoding="utf-8").splitlines() or [""]
    return f"{training.folder}: ended with code {code}: {lines[-1]}"


def fits(training: Training, deadline: float) -> bool:
    """Print how long the run would take here; can it end before the deadline?"""
    try:
        seconds = estimate(training)
    except UserError as error:
        print(f"{training.folder}: {error}", flush=True)
        return True  # the run itself will say why it fails
    left = deadline - time.monotonic()
    verdict = "" if seconds <= left else f"; left out, {max(0, left / 60):.0f} minutes are left"
    print(f"{training.folder}: about {duration(seconds)} here{verdict}", flush=True)
    return seconds <= left


def estimate(training: Training) -> float:
    """Seconds that the run, or what is left of it, would take, from the second of two epochs
    of 64 faces.
    """
    words = training.all_words()
    epochs = epochs_left(training)
    with tempfile.TemporaryDirectory() as place:
        trial = [*trial_words(words), f"run={place}/run"]
        command = [sys.executable, "-m", "fer", "train", *trial]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError((done.stderr.splitlines() or ["no message"])[-1].removeprefix("fer: "))
        row = pd.read_csv(Path(place) / "run" / "history.csv").iloc[-1]
    training_seconds = TIMED_FACES / row["images_per_second"]
    validation_seconds = max(row["seconds"] - training_seconds, 0)
    faces = training_faces(settings_of(words).data)
    validation_faces = min(VALIDATION_FACES, faces)
    seconds = faces * training_seconds + validation_faces * validation_seconds
    return epochs * seconds / TIMED_FACES


def trial_words(words: list[str]) -> list[str]:
    """The words of a run, changed to two epochs of 64 faces."""
    trial = {
        "data.limit": TIMED_FACES,
        "train.batch_size": TIMED_FACES,
        "train.epochs": 2,
        "train.patience": "null",
        "schedule.warmup": 0,  # which may be longer
    }
    kept = [word for word in words if word.partition("=")[0] not in trial]
    return [*kept, *(f"{key}={value}" for key, value in trial.items())]


def epochs_left(training: Training) -> int:
    """The epochs that it still has to do."""
    epochs = settings_of(training.all_words()).train.epochs
    history = training.folder / "history.csv"
    return epochs - len(pd.read_csv(history)) if history.is_file() else epochs


def training_faces(data: dict) -> int:
    """At most how many faces the data has to train on."""
    limits = [data.get("limit"), data.get("images")]  # the latter: of data=demo
    return min([TRAINING_FACES, *(limit for limit in limits if limit is not None)])


def settings_of(words: list[str]) -> config.TrainConfig:
    """The checked settings of a training with these overrides."""
    words = [word for word in words if not word.startswith("data.path=")]  # may hold any character
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            composed = hydra.compose("train", [*words, "name=x"])
        except HydraException as error:
            raise UserError(str(error).splitlines()[0]) from None
    return config.check("train", OmegaConf.to_container(composed, resolve=True))


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


# Measuring


def measured(row: Row, folders: list[Path], words: list[str]) -> dict[str, str]:
    """The row of docs/systems.md, from finished run folders that differ in their seed alone."""
    runs = [Run(folder) for folder in folders]
    if row.ensemble:
        plain = [accuracy(runs[0].labels, mean_of([run.probabilities() for run in runs]))]
        flips = [accuracy(runs[0].labels, mean_of([run.probabilities("flip") for run in runs]))]
        right = mean_of([run.probabilities() for run in runs]).argmax(1) == runs[0].labels
        fresh = [right[runs[0].fresh].mean()]
        f1 = ""
    else:
        plain = [accuracy(run.labels, run.probabilities(row.tta)) for run in runs]
        flips = [accuracy(run.labels, run.probabilities("flip")) for run in runs]
        rights = [run.probabilities(row.tta).argmax(1) == run.labels for run in runs]
        fresh = [right[run.fresh].mean() for run, right in zip(runs, rights, strict=True)]
        f1 = spread([run.best["val_macro_f1"] for run in runs], digits=3)
    if row.tta != "none":
        flips, f1 = [], ""
    return {
        "row": row.name,
        "command": " ".join([*row.training_words(), *words]),
        "PublicTest": spread(plain),
        "with flips": spread(flips),
        "without copies": spread(fresh),
        "macro F1": f1,
        "seeds": ", ".join(str(run.seed) for run in runs),
        "best epoch": numbers([run.best["epoch"] for run in runs]),
        "epochs": numbers([len(run.history) for run in runs]),
        "seconds": f"{mean(run.history['seconds'].sum() for run in runs):,.0f}",
        "images/s": f"{median(run.history['images_per_second'].median() for run in runs):,.0f}",
        "machine": runs[0].machine,
        "format": runs[0].environment["number_format"],
    }


class Run:
    """A finished run folder and its validation faces."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.history = api.history(folder)
        self.best = self.history.loc[self.history["val_accuracy"].idxmax()]
        self.classifier = api.load(folder)
        self.faces = self.classifier.faces()
        self.labels = self.faces.labels.numpy()
        self.fresh = ~self.faces.among(self.classifier.faces("train")).numpy()
        self.seed = self.classifier.checkpoint.settings.seed
        documents = (folder / "environment.yaml").read_text(encoding="utf-8")
        self.environment = [*yaml.safe_load_all(documents)][-1]
        self.probabilities = cache(self._probabilities)

    def _probabilities(self, tta: str = "none") -> np.ndarray:
        """float64 N×classes, of the validation faces."""
        saved = self.classifier.checkpoint.contents["validation"]
        if tta == "none" and saved["images"] == self.faces.hash:  # what training itself measured
            return saved["logits"].double().softmax(1).numpy()
        return self.classifier.probabilities(self.faces.images, tta)  # type: ignore[arg-type]

    @property
    def machine(self) -> str:
        device = self.environment["device"]
        if device == "cpu":
            threads = self.environment["threads"]
            plural = "" if threads == 1 else "s"
            device = f"{threads} thread{plural} of an {self.environment['cpu']}"
        return f"{device}, torch {self.environment['torch']}"


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float((probabilities.argmax(1) == labels).mean())


def mean_of(parts: list[np.ndarray]) -> np.ndarray:
    return np.mean(parts, axis=0)


def spread(values: list[float], digits: int = 4) -> str:
    """Mean ± standard deviation over the seeds."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def numbers(values: list[float]) -> str:
    low, high = int(min(values)), int(max(values))
    return str(low) if low == high else f"{low} to {high}"


# Writing


def between(name: str) -> re.Pattern:
    """The part of a page that scripts/reproduce writes."""
    return re.compile(f"(?<=<!-- {name}: begin -->\n).*?(?=<!-- {name}: end -->)", re.S)


def records(text: str) -> dict[str, dict[str, str]]:
    """The rows of the table in docs/systems.md, by name."""
    part = between("measured").search(text)
    if not part:
        raise UserError("docs/systems.md: has no part <!-- measured: begin -->; put it back")
    found = {}
    for line in part[0].strip().splitlines()[2:]:
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        record = dict(zip(COLUMNS, cells, strict=True))
        found[record["row"]] = record
    return found


def measured_table(found: dict[str, dict[str, str]]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in ROWS:
        default = dict.fromkeys(COLUMNS, "") | {"row": row.name, "PublicTest": NOT_RUN}
        default["command"] = " ".join(row.training_words())
        record = default | found.get(row.name, {})
        record |= {key: f"`{record[key]}`" for key in ("row", "command")}
        lines.append(f"| {' | '.join(record[column] for column in COLUMNS)} |")
    return "\n".join(lines) + "\n"


def readme_table(found: dict[str, dict[str, str]]) -> str:
    lines = [
        "| system | experiment | parameters | published | ours, PublicTest "
        "| not given, chosen here |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        if row.title:
            ours = found.get(row.name, {}).get("PublicTest", NOT_RUN)
            cells = [row.title, f"`{row.trained}`", row.parameters, row.published, ours, row.chosen]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def heading(record: dict[str, str], seeds: tuple[int, ...]) -> str:
    """The lines of an experiment's YAML that say what it reached."""
    sweep, seed = "", ""
    count = len(record["seeds"].split(",")) if record["seeds"] else len(seeds)
    if count > 1:
        listed = record["seeds"].replace(" ", "") or ",".join(map(str, seeds))
        sweep, seed = "-m ", f" seed={listed}"
    result = NOT_RUN
    if record["PublicTest"] != NOT_RUN:
        minutes = max(1, round(float(record["seconds"].replace(",", "")) / 60))
        unit = "minute" if minutes == 1 else "minutes"
        what = f"{count} seed" + "s" * (count > 1)
        result = f"PublicTest {record['PublicTest']} ({what}), {minutes} {unit} on "
        result += record["machine"].partition(", ")[0]
    return f"# Command: fer train {sweep}{record['command']}{seed}\n# Result:  {result}\n"


HEADING = re.compile(r"# Command: .*\n# Result:  .*\n")


def write_pages(found: dict[str, dict[str, str]], root: Path) -> None:
    """README's table, that of docs/systems.md, and the headings of the experiments."""
    for path, name, table in (
        (root / "README.md", "systems", readme_table(found)),
        (root / "docs" / "systems.md", "measured", measured_table(found)),
    ):
        text = path.read_text(encoding="utf-8")
        new, count = between(name).subn(lambda _, table=table: table, text)
        if count != 1:
            raise UserError(f"{path}: has no part <!-- {name}: begin -->; put it back")
        write_text(path, new)
    whole = records((root / "docs" / "systems.md").read_text(encoding="utf-8"))
    for row in ROWS:
        path = root / "configs" / "experiment" / f"{row.name}.yaml"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            lines = heading(whole[row.name], row.seeds)
            write_text(path, HEADING.sub(lambda _, lines=lines: lines, text))


def write_submissions(private: str, folders: dict[str, list[Path]], out: Path) -> None:
    """A submission for the faces without labels in the folder `private`: one of each row's
    networks, and one of each ensemble.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, members in folders.items():
        row = BY_NAME[name]
        tta = "flip" if row.tta == "none" else row.tta
        groups = [members] if row.ensemble else [[member] for member in members]
        for group in groups:
            # The row's name, not the folder's: several rows may evaluate one training.
            seed = group[0].name.removeprefix(row.trained)
            file = out / f"{name if row.ensemble else name + seed}.csv"
            checkpoints = ",".join(shlex.quote(str(member)) for member in group)
            command = [sys.executable, "-m", "fer", "predict", f"ckpt=[{checkpoints}]"]
            command += ["data=fer2013", f"data.path={private}", f"tta={tta}", f"out={file}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"--private {private}: {done.stderr.splitlines()[-1]}")
            print(f"{file}: written")


# The command


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/reproduce",
        description="Train the published systems and write their figures into the pages. Words "
        "KEY=VALUE go to every run; with other keys than data.path and device the figures are "
        "printed and not written, since they are not the recipe's.",
    )
    parser.add_argument("rows", nargs="*", metavar="SYSTEM|KEY=VALUE", help=", ".join(BY_NAME))
    parser.add_argument("--data", default="data", help="the folder of FER2013, or its CSV file")
    parser.add_argument("--runs", default="runs/systems", help="the folder of the runs")
    parser.add_argument("--seeds", help="such as 0,1,2; by default those of the figure")
    parser.add_argument("--jobs", type=int, help="runs at a time; 3 on a GPU, else 1")
    parser.add_argument("--minutes", type=float, help="time for the runs")
    parser.add_argument("--private", metavar="FOLDER", help="write submissions for its test.csv")
    parsed = parser.parse_intermixed_args(given)
    parsed.words = [word for word in parsed.rows if "=" in word]
    parsed.rows = [word for word in parsed.rows if "=" not in word]
    unknown = [name for name in parsed.rows if name not in BY_NAME]
    if unknown:
        parser.error(f"{unknown[0]}: no such system; there are {', '.join(BY_NAME)}")
    if parsed.seeds and not re.fullmatch(r"\d+(,\d+)*", parsed.seeds):
        parser.error(f"--seeds {parsed.seeds}: should be whole numbers, such as 0,1,2")
    if parsed.jobs is not None and parsed.jobs < 1:
        parser.error(f"--jobs {parsed.jobs}: should be 1 or more")
    if parsed.minutes is not None and not parsed.minutes > 0:
        parser.error(f"--minutes {parsed.minutes}: should be more than 0")
    if parsed.private and not Path(parsed.private).is_dir():
        parser.error(f"--private {parsed.private}: no such folder")
    return parsed


def planned(
    names: list[str], seeds: str | None, found: dict[str, dict[str, str]]
) -> Iterator[tuple[Row, int]]:
    """The runs that the named rows need, in order: rows without a figure first. Without
    `seeds`, those that a row needs and those of its figure, which one of fewer seeds would replace.
    """
    needed: dict[str, set[int]] = {}
    for name in names:
        row = BY_NAME[name]
        recorded = found.get(name, {}).get("seeds", "")
        wanted = {int(seed) for seed in (seeds or recorded).split(",") if seed}
        if not seeds:
            wanted |= set(row.seeds)
        needed.setdefault(row.trained, set()).update(wanted)

    def rank(name: str) -> tuple[bool, int]:
        has_figure = found.get(name, {}).get("PublicTest", NOT_RUN) != NOT_RUN
        return has_figure, ORDER.index(name)

    for name in sorted(needed, key=rank):
        for seed in sorted(needed[name]):
            yield BY_NAME[name], seed


def main(given: list[str], root: Path = ROOT) -> int:
    args = arguments(given)
    names = args.rows or list(BY_NAME)
    page = root / "docs" / "systems.md"
    found = records(page.read_text(encoding="utf-8"))
    on_cpu = not torch.cuda.is_available() or "device=cpu" in args.words
    words = [*args.words]
    if not any(word.startswith(("data=", "data.path=")) for word in words):
        words.append(f"data.path={args.data}")
    out = Path(args.runs)
    trainings = [
        Training(row, seed, out / f"{row.name}_{seed}", words)
        for row, seed in planned(names, args.seeds, found)
    ]
    refuse_other_recipes(trainings)
    deadline = time.monotonic() + (args.minutes * 60 if args.minutes else float("inf"))
    failures = train_all(trainings, args.jobs or (1 if on_cpu else 3), deadline, on_cpu)

    folders = {}
    new = {}
    for name in names:
        row = BY_NAME[name]
        own = [t.folder for t in trainings if t.row.name == row.trained and t.done]
        enough = len(own) >= 2 if row.ensemble else own
        if enough:
            folders[name] = own
            new[name] = measured(row, own, args.words)
    for record in new.values():
        print(", ".join(f"{key} {value}" for key, value in record.items() if value))
    changed = [word for word in args.words if word.partition("=")[0] not in ("device", "data.path")]
    if new and not changed:
        write_pages(found | new, root)
        print(f"written: {root / 'README.md'}, {page}, configs/experiment/")
    elif new:
        print(f"not written into the pages: {' '.join(changed)} is not the recipe's")
    if args.private:
        write_submissions(args.private, folders, out / "submissions")
    return 1 if failures else 0


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C, or its trainings would go on alone
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"scripts/reproduce: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes it")
