"""The report of several runs: for each recipe a row and a curve over its seeds, and the settings in
which the recipes differ.

A recipe is named by the words that the user typed, such as `optim=adam`, or by the run's name.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd
import torch

from fer import config, metrics, plots
from fer.checkpoint import Checkpoint
from fer.files import write_text
from fer.layer_table import build, totals
from fer.page import Part, write_page
from fer.run import overrides_of_run, read_history, tell_if_replaced
from fer.text import aligned, counted, percent

LABEL_LENGTH = 60  # characters of a name or a value that fit into tables and pictures
TERMINAL_COLUMNS = 5  # columns of the table that fit into a terminal


@dataclass(frozen=True)
class Run:
    folder: Path
    checkpoint: Checkpoint
    history: pd.DataFrame
    overrides: list[str] | None  # the words KEY=VALUE that were typed for it; None if unknown

    @classmethod
    def open(cls, folder: Path, trust: list[str]) -> "Run":
        checkpoint = Checkpoint.open(folder / "best.pt", trust)
        history = read_history(folder, checkpoint.classes)
        return cls(folder, checkpoint, history, overrides_of_run(folder))

    @property
    def settings(self) -> config.TrainConfig:
        return self.checkpoint.settings

    @cached_property
    def best(self) -> pd.Series:
        """The row of the epoch with the highest validation accuracy."""
        return self.history.loc[self.history["val_accuracy"].idxmax()]

    @cached_property
    def validated_on(self) -> tuple:
        """The validation faces and labels. Accuracies are comparable only if these are equal."""
        validation = self.checkpoint.contents.get("validation", {})
        labels = validation.get("labels", torch.empty(0))
        return validation.get("images"), str(labels.tolist())

    @cached_property
    def confusion(self) -> torch.Tensor | None:
        """Confusion matrix of the validation faces; None if the checkpoint has no predictions."""
        validation = self.checkpoint.contents.get("validation")
        if not validation:
            return None
        logits, labels = validation["logits"], validation["labels"].long()
        return metrics.confusion(logits.argmax(1), labels, logits.shape[1])


@dataclass(frozen=True)
class Recipe:
    """Runs that differ only in the seed.

    label: the name, shortened to LABEL_LENGTH characters; no two recipes have the same label.
    """

    name: str
    label: str
    runs: list[Run]

    def over_seeds(self, column: str) -> list[float]:
        """The value of a history column at the best epoch of each run."""
        return [float(run.best[column]) for run in self.runs]

    @cached_property
    def confusion(self) -> torch.Tensor | None:
        """The sum of the runs' confusion matrices; None if a run has none."""
        matrices = [run.confusion for run in self.runs]
        known = [matrix for matrix in matrices if matrix is not None]
        if len(known) < len(matrices) or len({matrix.shape for matrix in known}) > 1:
            return None
        return torch.stack(known).sum(0)


def compare(folders: list[Path], out: Path, kind: str, trust: list[str]) -> None:
    """Write the page that compares several runs, and print its main table."""
    runs = [Run.open(folder, trust) for folder in folders]
    recipes = group(runs)
    notes = incomparable(runs)
    table = summary_table(recipes)
    differing = differences(recipes)

    tell_if_replaced(out / "index.html")
    write_text(out / "comparison.csv", table.to_csv(index=False))
    write_text(out / "runs.csv", run_table(recipes).to_csv(index=False))
    rows = displayed_rows(recipes, table)
    parts = [
        Part("Runs", table=rows),
        curves_part(recipes),
        *confusion_parts(recipes),
        Part("Where their settings differ", table=displayed_differences(recipes, differing)),
    ]
    title = counted(len(runs), "run")
    if len(recipes) < len(runs):
        title = f"{counted(len(recipes), 'recipe')}, {title}"
    write_page(out, title, notes, parts, kind)

    for line in aligned([row[:TERMINAL_COLUMNS] for row in rows]):
        print(line)
    for line in [*notes, *seed_lines(recipes)]:
        print(line)
    print(f"they differ in {', '.join(differing) or 'nothing'}")
    print(f"open:\n  {out / 'index.html'}\n  {out / 'comparison.csv'}")


def incomparable(runs: list[Run]) -> tuple[str, ...]:
    """A warning if not all runs were validated on the same faces and labels."""
    if len({run.validated_on for run in runs}) == 1:
        return ()
    return (
        "Accuracies are not comparable: not all runs have the same validation faces and labels.",
    )


def group(runs: list[Run]) -> list[Recipe]:
    """The recipes of the runs, in the order of their first runs. A run with the same seed as
    another one of its recipe becomes a recipe of its own.
    """
    groups = []
    for positions in config.over_seeds([run.settings for run in runs]):
        groups.append([runs[i] for i in positions])
    grouped_runs = {id(run) for group in groups for run in group}
    groups += [[run] for run in runs if id(run) not in grouped_runs]
    groups.sort(key=lambda group: runs.index(group[0]))
    names = recipe_names([group[0] for group in groups])
    labels = shortened(names)
    recipes = []
    for name, label, runs_of_recipe in zip(names, labels, groups, strict=True):
        recipes.append(Recipe(name, label, runs_of_recipe))
    return recipes


def summary_table(recipes: list[Recipe]) -> pd.DataFrame:
    """A row for each recipe: means over its seeds, and with several seeds the standard deviation of
    the accuracy.
    """
    rows = []
    for recipe in recipes:
        size = totals(build(recipe.runs[0].settings.model))
        accuracies = recipe.over_seeds("val_accuracy")
        deviation = round(stdev(accuracies), 4) if len(accuracies) > 1 else np.nan
        seconds = [run.history["seconds"].median() for run in recipe.runs]
        rows.append(
            {
                "run": recipe.name,
                "val_accuracy": round(mean(accuracies), 4),
                "sd": deviation,
                "val_macro_f1": round(mean(recipe.over_seeds("val_macro_f1")), 4),
                "seeds": len(recipe.runs),
                "best_epoch": round(mean(recipe.over_seeds("epoch")), 1),
                "epochs": max(len(run.history) for run in recipe.runs),
                "seconds_per_epoch": round(mean(seconds), 1),
                "parameters": size["parameters"],
                "multiply_adds": size["multiply-adds"],
            }
        )
    return pd.DataFrame(rows)


def displayed_rows(recipes: list[Recipe], table: pd.DataFrame) -> list[list[str]]:
    """The table as text, header first; recipes have their labels."""
    columns = list(table.columns[1:])
    rows = [["run", *columns]]
    for recipe, values in zip(recipes, table[columns].itertuples(index=False), strict=True):
        cells = [displayed(column, value) for column, value in zip(columns, values, strict=True)]
        rows.append([recipe.label, *cells])
    return rows


def displayed(column: str, value: Any) -> str:
    if np.isnan(value):
        return "–"
    if column in ("val_accuracy", "sd", "val_macro_f1"):
        return f"{value:.4f}"
    if column in ("best_epoch", "seconds_per_epoch"):
        return f"{value:,g}"
    return f"{value:,}"


def run_table(recipes: list[Recipe]) -> pd.DataFrame:
    """A row for each run."""
    rows = []
    for recipe in recipes:
        for run in recipe.runs:
            rows.append(
                {
                    "run": str(run.folder),
                    "recipe": recipe.name,
                    "seed": run.settings.seed,
                    "val_accuracy": round(run.best["val_accuracy"], 4),
                    "val_macro_f1": round(run.best["val_macro_f1"], 4),
                    "best_epoch": int(run.best["epoch"]),
                    "epochs": len(run.history),
                }
            )
    return pd.DataFrame(rows)


def seed_lines(recipes: list[Recipe]) -> list[str]:
    """A line for each recipe with several seeds: mean and standard deviation."""
    lines = []
    for recipe in recipes:
        accuracies = recipe.over_seeds("val_accuracy")
        if len(accuracies) > 1:
            spread = f"{mean(accuracies):.4f} ± {stdev(accuracies):.4f} (sd)"
            lines.append(f"{len(accuracies)} seeds: {spread} of {recipe.label}")
    return lines


def curves_part(recipes: list[Recipe]) -> Part:
    """Loss and accuracy of all recipes over epochs."""
    histories = {recipe.label: [run.history for run in recipe.runs] for recipe in recipes}
    lines: tuple[str, ...] = ()
    if any(len(recipe.runs) > 1 for recipe in recipes):
        lines = ("Lines are means over the seeds; bands extend from the lowest to the highest.",)
    return Part("Loss and accuracy", lines, "curves", partial(plots.compare, histories))


def confusion_parts(recipes: list[Recipe]) -> list[Part]:
    """Confusion matrices and recalls of all recipes side by side; nothing if a recipe has no
    predictions or if the classes differ.
    """
    matrices = {}
    for recipe in recipes:
        if recipe.confusion is not None:
            matrices[recipe.label] = recipe.confusion
    class_lists = {tuple(recipe.runs[0].checkpoint.classes) for recipe in recipes}
    if len(matrices) < len(recipes) or len(class_lists) > 1:
        return []
    classes = class_lists.pop()
    counts = {label: matrix.numpy() for label, matrix in matrices.items()}
    recalls = {label: metrics.per_class(matrix)[1] for label, matrix in matrices.items()}
    data = pd.DataFrame(recalls, index=pd.Index(classes, name="class")).T.rename_axis("run")
    rows = [["run", *classes]]
    for label, shares in recalls.items():
        rows.append([label, *map(percent, shares)])
    confusion = Part("Confusion", (), "confusions", partial(plots.confusions, counts, classes))
    recall = Part(
        "Recall of each class",
        ("The share of each class's validation faces that are predicted correctly, best epoch.",),
        "recalls",
        partial(plots.recall_dots, recalls, classes),
        data.round(4).reset_index(),
        rows,
    )
    return [confusion, recall]


def differences(recipes: list[Recipe]) -> dict[str, list[str]]:
    """The settings in which recipes differ, {key: its value in each recipe}.

    If the choice of a group differs, such as the optimizer, the choice is listed, but not the keys
    that only one of the choices has.
    """
    settings = [recipe_settings(recipe.runs[0]) for recipe in recipes]
    keys = list(dict.fromkeys(key for values in settings for key in values))
    differing: dict[str, list[str]] = {}
    for key in keys:
        values_of_key = [values.get(key, "–") for values in settings]
        if len(set(values_of_key)) == 1:
            continue
        group = key.partition(".")[0]
        choice_differs = group in differing and group != key
        every_recipe_has_it = all(key in values for values in settings)
        if every_recipe_has_it or not choice_differs:
            differing[key] = values_of_key
    return differing


def displayed_differences(
    recipes: list[Recipe], differing: dict[str, list[str]]
) -> list[list[str]]:
    """The differences as a table, header first; long values are cut."""
    rows = [["run", *differing]]
    for position, recipe in enumerate(recipes):
        cells = [cut(values_of_key[position]) for values_of_key in differing.values()]
        rows.append([recipe.label, *cells])
    return rows


def recipe_settings(run: Run) -> dict[str, str]:
    """The settings that make the recipe, as text, {dotted key: value}. A group's own key has its
    choice from the command line, or else the class that it instantiates.
    """
    choices = dict(word.split("=", 1) for word in run.overrides or [])
    skipped = config.not_of_the_recipe(run.settings.data) | {"name"}
    values: dict[str, str] = {}

    def collect(key: str, value: Any) -> None:
        if key in config.GROUPS:
            class_name = str(value["_target_"]).rpartition(".")[2]
            values[key] = choices.get(key, class_name)
        if isinstance(value, dict) and not key.startswith("curves."):
            for name, inner in value.items():
                if name != "_target_":
                    collect(f"{key}.{name}" if key else name, inner)
        elif key not in skipped:
            values[key] = str(value)

    collect("", run.settings.model_dump())
    return values


def recipe_names(runs: list[Run]) -> list[str]:
    """A name for the recipe of each run: the words that were typed for it but not for all runs, or
    else the run's name. Settings and folders are added where names would be equal.
    """
    recipes = [recipe_words(run) for run in runs]
    known = [set(words) for words in recipes if words is not None]
    common = set.intersection(*known) if known else set()
    names = []
    for run, words in zip(runs, recipes, strict=True):
        distinctive = [word for word in words or [] if word not in common]
        parts = [word for word in distinctive if not repeats_the_name(word, run.settings)]
        if len(parts) < len(distinctive) or not parts:
            parts = [run.settings.name, *parts]
        names.append(" ".join(parts))
    names = with_settings(names, runs)
    return with_folders(names, runs)


def recipe_words(run: Run) -> list[str] | None:
    """The words KEY=VALUE that were typed and belong to the recipe; None if unknown."""
    if run.overrides is None:
        return None
    skipped = config.not_of_the_recipe(run.settings.data)
    return [word for word in run.overrides if word.partition("=")[0] not in skipped]


def repeats_the_name(word: str, settings: config.TrainConfig) -> bool:
    """Whether the word KEY=VALUE says only what the run's name says."""
    key, _, value = word.partition("=")
    if key == "model" and settings.model.get("name") == settings.name:
        return True
    return key in ("model", "experiment", "model.name", "name") and value == settings.name


def with_settings(names: list[str], runs: list[Run]) -> list[str]:
    """The names; those that occur more than once are followed by the settings in which their
    recipes differ.
    """
    settings = [recipe_settings(run) for run in runs]
    longer = []
    for position, name in enumerate(names):
        namesakes = []
        for other, other_name in enumerate(names):
            if other != position and other_name == name:
                namesakes.append(settings[other])
        differing = {}
        for key, value in settings[position].items():
            if any(namesake.get(key) != value for namesake in namesakes):
                differing[key] = value
        if len(differing) > 3:  # another network: its many keys say less than the others
            without_model = {
                key: value for key, value in differing.items() if not key.startswith("model.")
            }
            differing = without_model or differing
        longer.append(" ".join([name, *(f"{key}={value}" for key, value in differing.items())]))
    return longer


def with_folders(names: list[str], runs: list[Run]) -> list[str]:
    """The names; those that occur more than once are followed by the run's folder."""
    counts = Counter(names)
    longer = []
    for name, run in zip(names, runs, strict=True):
        longer.append(f"{name} ({run.folder})" if counts[name] > 1 else name)
    return longer


def shortened(names: list[str]) -> list[str]:
    """The names in LABEL_LENGTH characters at most, all different. Of a long name the beginning and
    the end remain; if that makes two equal, a number is added.
    """
    counts: Counter[str] = Counter()
    labels = []
    for name in names:
        label = name
        if len(name) > LABEL_LENGTH:
            half = (LABEL_LENGTH - 3) // 2
            label = f"{name[:half].rstrip()} … {name[-half:].lstrip()}"
        counts[label] += 1
        if counts[label] > 1:
            number = f" #{counts[label]}"
            label = label[: LABEL_LENGTH - len(number)] + number
        labels.append(label)
    return labels


def cut(text: str) -> str:
    """The text in LABEL_LENGTH characters at most."""
    return text if len(text) <= LABEL_LENGTH else f"{text[: LABEL_LENGTH - 1]}…"
