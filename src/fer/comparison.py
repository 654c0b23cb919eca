"""fer report of several runs: one row and one curve a recipe, over its seeds, and what sets the
recipes apart.

A run is called by what was typed: `optim=adam`, or `vgg13` for `model=vgg13`. Knows run folders and
pages; no network runs here.
"""

import textwrap
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
from fer.run import read_history, tell_if_replaced, typed_words
from fer.text import aligned

NAME = 60  # characters at most of a recipe's name and of a value in a table


@dataclass(frozen=True)
class Run:
    folder: Path
    checkpoint: Checkpoint
    history: pd.DataFrame
    typed: list[str] | None  # KEY=VALUE; None where it is not known

    @classmethod
    def open(cls, folder: Path, trust: list[str]) -> "Run":
        checkpoint = Checkpoint.open(folder / "best.pt", trust)
        history = read_history(folder, checkpoint.classes)
        return cls(folder, checkpoint, history, typed_words(folder))

    @property
    def settings(self) -> config.TrainConfig:
        return self.checkpoint.settings

    @cached_property
    def best(self) -> pd.Series:
        """The row of the most accurate epoch."""
        return self.history.loc[self.history["val_accuracy"].idxmax()]

    @cached_property
    def judges(self) -> tuple:
        """What the accuracy was measured on: equal where accuracies compare."""
        found = self.checkpoint.contents.get("validation", {})
        return found.get("images"), str(found.get("labels", torch.empty(0)).tolist())

    @cached_property
    def confusion(self) -> torch.Tensor | None:
        """Of the validation faces; None of a checkpoint that keeps no predictions."""
        found = self.checkpoint.contents.get("validation")
        if not found:
            return None
        logits = found["logits"]
        return metrics.confusion(logits.argmax(1), found["labels"].long(), logits.shape[1])


@dataclass(frozen=True)
class Recipe:
    """Runs that differ in nothing but the seed."""

    name: str
    runs: list[Run]

    def over_seeds(self, column: str) -> list[float]:
        """The best epoch's value of a column of the history, of each run."""
        return [float(run.best[column]) for run in self.runs]

    @cached_property
    def confusion(self) -> torch.Tensor | None:
        """The sum over the runs, where all have one of the same classes."""
        found = [run.confusion for run in self.runs]
        known = [matrix for matrix in found if matrix is not None]
        if len(known) < len(found) or len({matrix.shape for matrix in known}) > 1:
            return None
        return torch.stack(known).sum(0)


def compare(folders: list[Path], out: Path, kind: str, trust: list[str]) -> None:
    """Write the page of several runs, and say what is on it."""
    runs = [Run.open(folder, trust) for folder in folders]
    apart: tuple[str, ...] = ()
    if len({run.judges for run in runs}) > 1:
        apart = (
            "Not all have the same validation faces and labels: their accuracies do not compare.",
        )
    recipes = group(runs)
    differing = differences(recipes)
    table = summed_up(recipes)
    tell_if_replaced(out / "index.html")
    write_text(out / "comparison.csv", table.to_csv(index=False))
    write_text(out / "runs.csv", each_run(recipes).to_csv(index=False))
    histories = {recipe.name: [run.history for run in recipe.runs] for recipe in recipes}
    rows = [list(table), *([*map(shown, table, row)] for row in table.itertuples(index=False))]
    spread = any(len(recipe.runs) > 1 for recipe in recipes)
    band = (
        ("Lines are means over the seeds, bands reach from the lowest to the highest.",)
        if spread
        else ()
    )
    parts = [
        Part("Runs", table=rows),
        Part("Loss and accuracy", band, "curves", partial(plots.compare, histories)),
        *confusions_and_recalls(recipes),
        Part("Where their settings differ", table=differing),
    ]
    title = (
        f"{len(recipes)} recipes, {len(runs)} runs"
        if len(recipes) < len(runs)
        else f"{len(runs)} runs"
    )
    write_page(out, title, apart, parts, kind)
    for line in aligned([row[:TOLD] for row in rows]):
        print(line)
    print(*apart, sep="\n", end="\n" if apart else "")
    for recipe in recipes:
        if len(recipe.runs) > 1:
            accuracies = recipe.over_seeds("val_accuracy")
            middle, deviation = mean(accuracies), stdev(accuracies)
            print(f"{len(accuracies)} seeds: {middle:.4f} ± {deviation:.4f} (sd) of {recipe.name}")
    print(f"they differ in {', '.join(differing[0][1:]) or 'nothing'}")
    print(f"open:\n  {out / 'index.html'}\n  {out / 'comparison.csv'}")


TOLD = 5  # columns of the table that a terminal has room for


def group(runs: list[Run]) -> list[Recipe]:
    """The runs by recipe, in the order of the first of each. Of two runs with one seed each stands
    alone.
    """
    settings = [run.settings for run in runs]
    together = [[runs[i] for i in positions] for positions in config.over_seeds(settings)]
    grouped = {id(run) for own in together for run in own}
    together += [[run] for run in runs if id(run) not in grouped]
    together.sort(key=lambda own: runs.index(own[0]))
    return [Recipe(name, own) for name, own in zip(names(together), together, strict=True)]


def summed_up(recipes: list[Recipe]) -> pd.DataFrame:
    """A row a recipe: means over its seeds, and the deviation of the accuracy where there are
    several.
    """
    rows = []
    for recipe in recipes:
        size = totals(build(recipe.runs[0].settings.model))
        accuracies = recipe.over_seeds("val_accuracy")
        seconds = [run.history["seconds"].median() for run in recipe.runs]
        rows.append(
            {
                "run": recipe.name,
                "val_accuracy": round(mean(accuracies), 4),
                "sd": round(stdev(accuracies), 4) if len(accuracies) > 1 else np.nan,
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


def shown(column: str, value: Any) -> str:
    """A cell of that table as text."""
    if column == "run":
        return str(value)
    if column in ("val_accuracy", "sd", "val_macro_f1"):
        return "–" if np.isnan(value) else f"{value:.4f}"
    return f"{value:,g}" if column in ("best_epoch", "seconds_per_epoch") else f"{value:,}"


def each_run(recipes: list[Recipe]) -> pd.DataFrame:
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


def confusions_and_recalls(recipes: list[Recipe]) -> list[Part]:
    """What each recipe takes for what, and what it finds of each class, side by side; none where
    predictions are not kept or classes differ.
    """
    matrices = {recipe.name: recipe.confusion for recipe in recipes}
    known = {name: matrix for name, matrix in matrices.items() if matrix is not None}
    names = {tuple(recipe.runs[0].checkpoint.classes) for recipe in recipes}
    if len(known) < len(recipes) or len(names) > 1:
        return []
    classes = names.pop()
    recalls = {name: metrics.per_class(matrix)[1] for name, matrix in known.items()}
    data = pd.DataFrame(recalls, index=pd.Index(classes, name="class")).T.rename_axis("run")
    rows = [
        ["run", *classes],
        *([name, *(f"{share:.0%}" for share in own)] for name, own in recalls.items()),
    ]
    counts = {name: matrix.numpy() for name, matrix in known.items()}
    return [
        Part("Confusion", (), "confusions", partial(plots.confusions, counts, classes)),
        Part(
            "Recall of each class",
            (
                "The share of a class's validation faces that was labelled right, at the best "
                "epoch.",
            ),
            "recalls",
            partial(plots.recall_dots, recalls, classes),
            data.round(4).reset_index(),
            rows,
        ),
    ]


def differences(recipes: list[Recipe]) -> list[list[str]]:
    """A table of the settings in which recipes differ, its header first; long values are shortened.

    Where the choice of a group differs, it is one column, by its name: keys that only one of the
    choices has say nothing more.
    """
    flat = [flattened(recipe.runs[0]) for recipe in recipes]
    keys = list(dict.fromkeys(key for own in flat for key in own))
    groups = {key for key in config.GROUPS if len({own[key] for own in flat}) > 1}
    listed = []
    for key in keys:
        differs = len({own.get(key) for own in flat}) > 1
        everywhere = all(key in own for own in flat)
        if differs and (everywhere or key.partition(".")[0] not in groups):
            listed.append(key)
    rows = [
        [recipe.name, *(own.get(key, "–") for key in listed)]
        for recipe, own in zip(recipes, flat, strict=True)
    ]
    return [["run", *listed], *rows]


def flattened(run: Run) -> dict[str, str]:
    """Dotted key → value, as text, of all that makes the recipe; of each group also its choice, as
    it was typed, or else what it makes.
    """
    typed = dict(word.split("=", 1) for word in run.typed or [])
    skipped = config.not_of_the_recipe(run.settings.data) | {"name"}
    found: dict[str, str] = {}

    def walk(key: str, value: Any) -> None:
        if key in config.GROUPS:
            found[key] = typed.get(key, str(value["_target_"]).rpartition(".")[2])
        if isinstance(value, dict) and not key.startswith("curves."):
            for name, inner in value.items():
                if name != "_target_":
                    walk(f"{key}.{name}" if key else name, inner)
        elif key not in skipped:
            found[key] = textwrap.shorten(str(value), NAME, placeholder=" …")

    walk("", run.settings.model_dump())
    return found


def names(recipes: list[list[Run]]) -> list[str]:
    """What to call each recipe: the words that were typed for it and not for all, or else its run's
    name; more where these do not tell them apart.
    """
    typed = [words(own[0]) for own in recipes]
    common = (
        set.intersection(*({*own} for own in typed if own is not None)) if any(typed) else set()
    )
    found = []
    for own, said in zip(recipes, typed, strict=True):
        name = own[0].settings.name
        telling = [word for word in said or [] if word not in common]
        plain = [word for word in telling if not names_the_run(word, own[0].settings)]
        named = [name] if len(plain) < len(telling) or not plain else []
        found.append(shortened(" ".join([*named, *plain])))
    return told_apart(found, recipes)


def words(run: Run) -> list[str] | None:
    """KEY=VALUE, as typed for the recipe."""
    if run.typed is None:
        return None
    skipped = config.not_of_the_recipe(run.settings.data)
    return [word for word in run.typed if word.partition("=")[0] not in skipped]


def names_the_run(word: str, settings: config.TrainConfig) -> bool:
    """Does the run's name say what the word does?"""
    key, _, value = word.partition("=")
    if key == "model" and settings.model.get("name") == settings.name:
        return True
    return key in ("model", "experiment", "model.name", "name") and value == settings.name


def told_apart(found: list[str], recipes: list[list[Run]]) -> list[str]:
    """The names, those that stand several times with the settings in which their recipes differ, or
    else the folder.
    """
    flat = [flattened(own[0]) for own in recipes]
    for more in ("settings", "folder"):
        times = Counter(found)
        longer = list(found)
        for i, name in enumerate(found):
            if times[name] == 1:
                continue
            if more == "folder":
                longer[i] = f"{name} ({recipes[i][0].folder})"
                continue
            others = [flat[j] for j in range(len(found)) if j != i and found[j] == name]
            apart = {
                key: value
                for key, value in flat[i].items()
                if any(own.get(key) != value for own in others)
            }
            if any(key.startswith(("model.", "curves.")) for key in apart) and len(apart) > 3:
                apart = {
                    key: value for key, value in apart.items() if not key.startswith("model.")
                } or apart
            longer[i] = shortened(
                " ".join([name, *(f"{key}={value}" for key, value in apart.items())])
            )
        found = longer
    return found


def shortened(text: str) -> str:
    return textwrap.shorten(text, NAME, placeholder=" …") or text[:NAME]
