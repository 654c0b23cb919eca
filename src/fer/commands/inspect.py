"""fer inspect: data in; counts, mean faces, samples, gray values, blank faces and copies within and
across splits out.

Copies are looked for in every split. Faces and labels are shown only of splits that have labels and
are not sealed. Knows no run and no network.
"""

import contextlib
from collections.abc import Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fer import UserError, config, plots
from fer.data.copies import BLOCK, Pairs, exact_copies, merge, near_copies
from fer.data.faces import Data, Faces
from fer.progress import Steps
from fer.run import output_folders, refuse_overwriting, write_text
from fer.text import counted, wrapped

# Gray levels of standard deviation: FER2013's 15 images below it show nothing, the next, 9.1, is a
# dark face.
BLANK = 5
PAIRS = "pairs.csv"
TABLES = ("counts.csv", "blank.csv", "duplicates.csv", PAIRS)
TURNED_KINDS = ("mirrored", "rotated", "mirrored and rotated")
NO_PAIRS = Pairs(np.empty((0, 2), np.int64), np.empty(0, np.str_), np.empty(0, np.float32))
GRID = 8  # groups, and faces of each, in the picture of duplicates


def run(cfg: config.InspectConfig, given_keys: list[str]) -> None:
    data = read_data(cfg.data)
    if "train" in data.splits and data.missing_classes:
        print(f"no faces of {', '.join(data.missing_classes)} to train on")
    if data.enlarged:
        print(data.enlarged)
    if data.not_read:
        print(wrapped(f"data: {data.not_read}"))
    shown = shown_splits(data)
    splits = distinct_splits(data)
    out = Path(cfg.out)
    refuse_overwriting(*(out / name for name in TABLES))
    images = torch.cat([split.images for split in splits.values()])
    with output_folders(out), Steps(2) as bar:
        bar.begin("looking for copies")
        faces, pairs = describe(splits, images, data.classes, cfg.near, {*shown})
        bar.begin("drawing")
        if shown:
            pictures = write_results(cfg, out, shown, images, faces, pairs, data.classes)
        else:
            unlabeled = {name: split for name, split in splits.items() if name not in data.sealed}
            pictures = write_without_labels(cfg, out, unlabeled, images, faces, pairs)
    described = [*shown] or [name for name in splits if name not in data.sealed]
    lines = summary(faces, cfg.near, described)
    print(*lines, "open:", *(f"  {path}" for path in pictures), f"  {out / PAIRS}", sep="\n")


def read_data(node: dict) -> Data:
    """The data; a file of faces without labels, on which nothing can be trained, as one split."""
    try:
        return config.build("data", node)
    except UserError:
        with contextlib.suppress(UserError):
            if node.get("split") == "auto":
                data = config.build("data", node | {"split": "none"})
                if data.only_split and (data.splits[data.only_split].labels == -1).all():
                    return data
        raise


def write_without_labels(
    cfg: config.InspectConfig,
    out: Path,
    splits: dict[str, Faces],
    images: torch.Tensor,
    faces: pd.DataFrame,
    pairs: pd.DataFrame,
) -> list[Path]:
    """The results for data whose labels may not be shown: tables of copies and, for `splits`, which
    are not sealed, blank faces and pictures. Returns the pictures.
    """
    open_faces = of_splits(faces, splits)
    blank = open_faces[open_faces["deviation"] < BLANK]
    write_text(
        out / "blank.csv", blank.round(4).to_csv(index=False, columns=["split", "id", "deviation"])
    )
    write_copies(out, faces, pairs)
    if open_faces.empty:
        return []
    generator, suffix = np.random.default_rng(cfg.seed), cfg.format
    rows = generator.permutation(open_faces.index.to_numpy())[: cfg.samples * GRID]
    samples = [part.tolist() for part in np.split(rows, range(GRID, len(rows), GRID))]
    pixels = {name: split.images.numpy() for name, split in splits.items()}
    return [
        draw_rows(images, faces, samples, out / f"samples.{suffix}"),
        plots.gray_values(pixels, open_faces, out / f"pixels.{suffix}"),
    ]


def write_copies(out: Path, faces: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Write duplicates.csv and pairs.csv; returns the rows of faces that have copies."""
    copies = faces[faces.duplicated("group", keep=False)].sort_values("group", kind="stable")
    table = copies.assign(group=copies["group"].rank(method="dense").astype(int))
    write_text(
        out / "duplicates.csv",
        table.to_csv(index=False, columns=["group", "kind", "split", "id", "label"]),
    )
    write_text(out / PAIRS, pairs.round(3).to_csv(index=False))
    return copies


def write_results(
    cfg: config.InspectConfig,
    out: Path,
    shown: dict[str, Faces],
    images: torch.Tensor,
    faces: pd.DataFrame,
    pairs: pd.DataFrame,
    names: Sequence[str],
) -> list[Path]:
    """Tables and pictures of what `describe` found; returns the pictures. shown: the splits whose
    faces and labels are shown.
    """
    open_faces = of_splits(faces, shown)
    counts = count(open_faces, ["split", "label"])
    write_text(out / "counts.csv", counts.round(4).to_csv())
    blank = open_faces[open_faces["deviation"] < BLANK]
    write_text(
        out / "blank.csv",
        blank.round(4).to_csv(index=False, columns=["split", "id", "label", "deviation"]),
    )
    copies = of_splits(write_copies(out, faces, pairs), shown)

    generator, suffix = np.random.default_rng(cfg.seed), cfg.format
    classes = faces.groupby("label", observed=True).indices
    means = np.stack([images.numpy()[rows].mean(0) for rows in classes.values()])
    # Their contrast is low; all are stretched alike.
    means = 255 * (means - means.min()) / max(np.ptp(means), 1)
    captions = [f"{name}\nn = {len(rows):,}" for name, rows in classes.items()]
    samples = [generator.permutation(rows)[: cfg.samples].tolist() for rows in classes.values()]
    groups = disputed(copies)
    groups = [groups[i][:GRID] for i in generator.permutation(len(groups))[:GRID]]
    sizes = {name: counts.loc[name, "faces"] for name in shown}
    return [
        plots.class_counts(sizes, names, out / f"counts.{suffix}"),
        plots.faces(means, captions, out / f"mean_faces.{suffix}", columns=len(means)),
        draw_rows(images, faces, samples, out / f"samples.{suffix}"),
        plots.gray_values(
            {name: split.images.numpy() for name, split in shown.items()},
            open_faces,
            out / f"pixels.{suffix}",
        ),
        draw_rows(images, faces, groups, out / f"duplicates.{suffix}"),
    ]


def shown_splits(data: Data) -> dict[str, Faces]:
    """The splits whose faces and labels may be shown, each under its first name; prints a line for
    each of the others.
    """
    chosen: dict[str, Faces] = {}
    for name, faces in data.splits.items():
        if name in data.sealed or not faces.labeled:
            if data.only_split and name not in data.sealed:
                continue  # is shown as it is
            why = "holds, or may hold, PrivateTest" if name in data.sealed else "has no labels"
            print(f"{name}: {counted(len(faces), 'face')}; it {why}, so only copies are shown")
        elif not any(faces is other for other in chosen.values()):  # PublicTest has two names
            chosen[name] = faces
    return chosen


def distinct_splits(data: Data) -> dict[str, Faces]:
    """All splits, each under its first name: PublicTest validates under two."""
    splits: dict[str, Faces] = {}
    for name, faces in data.splits.items():
        if not any(faces is other for other in splits.values()):
            splits[name] = faces
    return splits


def of_splits(faces: pd.DataFrame, names: Collection[str]) -> pd.DataFrame:
    """The rows of some splits."""
    chosen = faces[faces["split"].isin([*names])]
    return chosen.assign(split=chosen["split"].cat.remove_unused_categories())


def describe(
    splits: dict[str, Faces],
    images: Tensor,
    classes: Sequence[str],
    near: float | None,
    shown: Collection[str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row a face, of all splits: split, id, label (none where the split is not `shown`); mean and
    deviation of its gray values; `same` and `group`, the first row equal to it and the first of its
    group of copies; kind, `exact` where another row equals it, else what makes it a copy. And a row
    for each pair of copies.
    """
    same = exact_copies(images)
    distinct = np.flatnonzero(same == np.arange(len(same)))
    pairs = NO_PAIRS
    if near is not None:
        positions, kinds, correlations = near_copies(images[distinct], near)
        pairs = Pairs(distinct[positions], kinds, correlations)
    # In parts: the deviation of all would take 600 MB.
    parts = np.array_split(images.numpy(), len(images) // BLOCK + 1)
    labels = [
        split.labels if name in shown else torch.full_like(split.labels, -1)
        for name, split in splits.items()
    ]
    kind = np.full(len(same), "near", dtype=object)
    for (i, j), name in zip(pairs.positions, pairs.kinds, strict=True):
        kind[[i, j]] = name
    kind[np.bincount(same, minlength=len(same))[same] > 1] = "exact"
    faces = pd.DataFrame(
        {
            "split": pd.Categorical(
                [name for name, split in splits.items() for _ in split.ids], list(splits)
            ),
            "id": [name for split in splits.values() for name in split.ids],
            "label": pd.Categorical.from_codes(torch.cat(labels), list(classes)),
            "mean": np.concatenate([part.mean((1, 2, 3)) for part in parts]),
            "deviation": np.concatenate([part.std((1, 2, 3)) for part in parts]),
            "same": same,
            "group": merge(len(same), pairs.positions)[same],
            "kind": kind,
        }
    )
    return faces, table_of_pairs(faces, pairs)


def table_of_pairs(faces: pd.DataFrame, pairs: Pairs) -> pd.DataFrame:
    """A row a pair of copies, by split and id: exact ones, each with the first, then near ones."""
    copies = np.flatnonzero(faces["same"] != np.arange(len(faces)))
    exact = np.stack([faces["same"].to_numpy()[copies], copies], 1)
    first, second = np.concatenate([exact, pairs.positions]).T
    table = {"kind": ["exact"] * len(copies) + pairs.kinds.tolist()}
    table["correlation"] = [1.0] * len(copies) + pairs.correlations.tolist()
    for ending, rows in (("", first), ("_of_copy", second)):
        for column in ("split", "id"):
            table[column + ending] = faces[column].to_numpy()[rows]
    return pd.DataFrame(table)


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
    statistics = columns.groupby(by, observed=False).agg(**sums)
    square = statistics.pop("square")
    return statistics.assign(deviation=(square - statistics["mean"] ** 2).clip(0) ** 0.5)


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
    white = np.full(images.shape[1:], 255)
    shown = [white if i < 0 else images[i].numpy() for i in cells]
    named = zip(cells, faces.iloc[cells].itertuples(), strict=True)
    captions = ["" if i < 0 else caption(face) for i, face in named]
    return plots.faces(shown, captions, path, columns)


def caption(face: Any) -> str:
    """The label, where it may be shown, the split and the id of a row of faces."""
    label = "" if pd.isna(face.label) else f"{face.label}\n"
    return f"{label}{face.split} {face.id[-9:]}"


def summary(faces: pd.DataFrame, near: float | None, shown: Collection[str]) -> list[str]:
    """The findings in words. shown: the splits of which more than copies may be shown."""
    splits = count(faces, ["split"])
    lines = []
    for row in splits.itertuples():
        if row.Index in shown:
            grays = f"gray values {row.mean:.1f} ± {row.deviation:.1f}"
            lines.append(f"{row.Index}: {counted(row.faces, 'face')}, {row.blank} blank, {grays}")
    kinds = [("exact", "same")]
    if near is not None:
        kinds.append(("exact and near", "group"))
    for kind, key in kinds:
        groups = faces.groupby(key)
        several, conflicts = (groups["id"].size() > 1).sum(), (groups["label"].nunique() > 1).sum()
        line = f"{kind} copies: {len(faces) - len(groups):,} extra, in {counted(several, 'group')}"
        if faces["label"].notna().any():
            line += f", {conflicts:,} of them with conflicting labels"
        lines.append(line)
        for earlier, later in combinations(splits.index, 2):
            copied, others = leaked(faces, key, earlier, later)
            are = "is" if copied == 1 else "are"
            of_all = f"{copied:,} of {splits['faces'][later]:,} {later} faces"
            line = f"  {of_all} {are} also in {earlier}"
            if earlier in shown and later in shown:
                line += f", {others:,} of them only with another label"
            lines.append(line)
    if near is not None:
        turned = faces["kind"].value_counts()
        words = [f"{turned[kind]:,} {kind}" for kind in TURNED_KINDS if turned.get(kind)]
        if words:
            lines.append(f"faces with mirrored or rotated copies: {', '.join(words)}")
    return lines


def leaked(faces: pd.DataFrame, key: str, earlier: str, later: str) -> tuple[int, int]:
    """How many faces of `later` have copies (rows with the same `key`) in `earlier`, and how many
    of these have none with their own label.
    """
    there, here = (faces.loc[faces["split"] == name, [key, "label"]] for name in (earlier, later))
    here = here[here[key].isin(there[key])]
    return len(here), len(here) - len(here.merge(there.drop_duplicates()))
