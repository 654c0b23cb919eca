"""fer inspect: data in; counts, mean faces, samples, gray values, blank faces and copies within and
across splits out.

Looked at are the splits that have labels and are not shut. Of the others only the size is told: a
copy of one of their faces among labelled ones would give its answer away. Knows of no run and no
network.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fer import config, plots
from fer.data.copies import BLOCK, exact_copies, merge, near_copies
from fer.data.faces import SIZE, Data, Faces
from fer.progress import Steps
from fer.run import make_folder, write_text

# Gray levels of standard deviation: FER2013's 15 images below it show nothing, the next, 9.1, is a
# dark face.
BLANK = 5
GRID = 8  # groups, and faces of each, in the picture of duplicates


def run(cfg: config.InspectConfig, typed: list[str]) -> None:
    data = config.build("data", cfg.data)
    if data.absent:
        print(f"no faces of {', '.join(data.absent)} to train on")
    splits = choose(data)
    out = make_folder(Path(cfg.out))
    images = torch.cat([split.images for split in splits.values()])
    with Steps(2) as bar:
        bar.begin("looking for copies")
        faces = describe(splits, images, data.classes, cfg.near)
        bar.begin("drawing")
        pictures = write_results(cfg, out, splits, images, faces, data.classes)
    print(*summary(faces, cfg.near), "open:", *(f"  {path}" for path in pictures), sep="\n")


def write_results(
    cfg: config.InspectConfig,
    out: Path,
    splits: dict[str, Faces],
    images: torch.Tensor,
    faces: pd.DataFrame,
    names: Sequence[str],
) -> list[Path]:
    """Tables and pictures of what `describe` found; returns the pictures."""
    counts = count(faces, ["split", "label"])
    write_text(out / "counts.csv", counts.round(4).to_csv())
    blank = faces[faces["deviation"] < BLANK]
    write_text(
        out / "blank.csv",
        blank.round(4).to_csv(index=False, columns=["split", "id", "label", "deviation"]),
    )
    copies = faces[faces.duplicated("group", keep=False)].sort_values("group", kind="stable")
    table = copies.assign(group=copies["group"].rank(method="dense").astype(int))
    write_text(
        out / "duplicates.csv",
        table.to_csv(index=False, columns=["group", "kind", "split", "id", "label"]),
    )

    generator, suffix = np.random.default_rng(cfg.seed), cfg.format
    classes = faces.groupby("label", observed=True).indices
    means = np.stack([images.numpy()[rows].mean(0) for rows in classes.values()])
    means = (
        255 * (means - means.min()) / max(np.ptp(means), 1)
    )  # of little contrast as they are; all stretched alike
    captions = [f"{name}\nn = {len(rows):,}" for name, rows in classes.items()]
    samples = [generator.permutation(rows)[: cfg.samples].tolist() for rows in classes.values()]
    groups = disputed(copies)
    groups = [groups[i][:GRID] for i in generator.permutation(len(groups))[:GRID]]
    sizes = {name: counts.loc[name, "faces"] for name in splits}
    return [
        plots.class_counts(sizes, names, out / f"counts.{suffix}"),
        plots.faces(means, captions, out / f"mean_faces.{suffix}", columns=len(means)),
        draw_rows(images, faces, samples, out / f"samples.{suffix}"),
        plots.gray_values(
            {n: split.images.numpy() for n, split in splits.items()},
            faces,
            out / f"pixels.{suffix}",
        ),
        draw_rows(images, faces, groups, out / f"duplicates.{suffix}"),
    ]


def choose(data: Data) -> dict[str, Faces]:
    """The splits that may be looked at, each under its first name; prints what becomes of the
    others.
    """
    chosen: dict[str, Faces] = {}
    for name, faces in data.splits.items():
        if name in data.shut or not faces.labelled:
            why = "holds, or may hold, PrivateTest" if name in data.shut else "has no labels"
            print(f"{name}: {len(faces):,} faces, not looked at: it {why}")
        elif not any(
            faces is other for other in chosen.values()
        ):  # PublicTest validates under two names
            chosen[name] = faces
    return chosen


def describe(
    splits: dict[str, Faces], images: Tensor, classes: Sequence[str], near: float | None
) -> pd.DataFrame:
    """A row a face, of all splits: split, id, label; mean and deviation of its gray values; `same`
    and `group`, the first row equal to it and the first of its group of copies; kind, `exact` where
    another row equals it, else `near`.
    """
    same = exact_copies(images)
    distinct = np.flatnonzero(same == np.arange(len(same)))
    pairs = (
        np.empty((0, 2), np.int64)
        if near is None
        else distinct[near_copies(images[distinct], near)]
    )
    parts = np.array_split(
        images.numpy(), len(images) // BLOCK + 1
    )  # whole, the deviation would take 600 MB
    labels = torch.cat([split.labels for split in splits.values()])
    return pd.DataFrame(
        {
            "split": pd.Categorical(
                [name for name, split in splits.items() for _ in split.ids], list(splits)
            ),
            "id": [name for split in splits.values() for name in split.ids],
            "label": pd.Categorical.from_codes(labels, list(classes)),
            "mean": np.concatenate([part.mean((1, 2, 3)) for part in parts]),
            "deviation": np.concatenate([part.std((1, 2, 3)) for part in parts]),
            "same": same,
            "group": merge(len(same), pairs)[same],
            "kind": np.where(np.bincount(same)[same] > 1, "exact", "near"),
        }
    )


def count(faces: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """A row for each value of the columns `by`: faces, blank ones, and mean and deviation of all
    their gray values.
    """
    columns = faces.assign(
        blank=faces["deviation"] < BLANK, square=faces["deviation"] ** 2 + faces["mean"] ** 2
    )
    sums = {
        "faces": ("id", "size"),
        "blank": ("blank", "sum"),
        "mean": ("mean", "mean"),
        "square": ("square", "mean"),
    }
    found = columns.groupby(by, observed=False).agg(**sums)
    return found.assign(deviation=(found.pop("square") - found["mean"] ** 2).clip(0) ** 0.5)


def disputed(copies: pd.DataFrame) -> list[list[int]]:
    """The groups whose labels conflict, as positions: first one face of each label, then the
    others.
    """
    copies = copies[copies.groupby("group")["label"].transform("nunique") > 1]
    turn = copies.groupby(["group", "label"], observed=True).cumcount().sort_values(kind="stable")
    return [rows.tolist() for rows in turn.groupby(copies["group"]).groups.values()]


def draw_rows(images: Tensor, faces: pd.DataFrame, rows: Sequence[list[int]], path: Path) -> Path:
    """A picture with each of `rows`, lists of positions, in a row of its own, white where it ends
    early.
    """
    columns = max(map(len, rows), default=1)
    cells = [i for row in rows for i in [*row, *[-1] * (columns - len(row))]]
    white = np.full((1, SIZE, SIZE), 255)
    shown = [white if i < 0 else images[i].numpy() for i in cells]
    named = zip(cells, faces.iloc[cells].itertuples(), strict=True)
    captions = ["" if i < 0 else f"{face.label}\n{face.split} {face.id[-9:]}" for i, face in named]
    return plots.faces(shown, captions, path, columns)


def summary(faces: pd.DataFrame, near: float | None) -> list[str]:
    """The findings in words."""
    splits = count(faces, ["split"])
    lines = [
        "{}: {:,} faces, {} blank, gray values {:.1f} ± {:.1f}".format(*row)
        for row in splits.itertuples()
    ]
    for kind, key in (("exact", "same"), ("exact and near", "group"))[: 2 if near else 1]:
        groups = faces.groupby(key)
        several, conflicts = (groups["id"].size() > 1).sum(), (groups["label"].nunique() > 1).sum()
        extra = f"{len(faces) - len(groups):,} extra, in {several:,} groups"
        lines.append(f"{kind} copies: {extra}, {conflicts:,} of them with conflicting labels")
        for earlier, later in combinations(splits.index, 2):
            copied, others = leaked(faces, key, earlier, later)
            own = f"{copied:,} of {splits['faces'][later]:,} {later} faces stand in {earlier} too"
            lines.append(f"  {own}, {others:,} of them only with another label")
    return lines


def leaked(faces: pd.DataFrame, key: str, earlier: str, later: str) -> tuple[int, int]:
    """How many faces of `later` have copies (rows with the same `key`) in `earlier`, and how many
    of these have none with their own label.
    """
    there, here = (faces.loc[faces["split"] == name, [key, "label"]] for name in (earlier, later))
    here = here[here[key].isin(there[key])]
    return len(here), len(here) - len(here.merge(there.drop_duplicates()))
