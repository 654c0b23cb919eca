"""Which faces validate, where the files do not say: a stratified share, or all from a row on, with
the faces of one group on one side.
"""

import re
from collections.abc import Sequence

import numpy as np

from fer import UserError
from fer.data.faces import stratified


def held_out(
    labels: np.ndarray,
    split: str,
    fraction: float,
    from_index: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Bool per training row: does it validate?"""
    count = len(labels)
    if split == "from_index":
        if from_index >= count:
            raise UserError(
                f"data.from_index={from_index}: leaves no validation faces; there are {count} "
                "rows to train"
            )
        return np.arange(count) >= from_index
    if groups is not None:
        drawn = grouped(labels, groups, fraction, seed)
    else:
        drawn = stratified(labels, fraction, seed, least_of_two=True)
    if not drawn.any():
        raise UserError(
            f"data.fraction={fraction}: none of the {count} rows would validate; set it higher"
        )
    return drawn


def grouped(labels: np.ndarray, groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Bool N: about a share of every class, of whole groups in an order drawn by `seed`. A group is
    taken if the classes' counts come nearer to their shares with it.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise UserError(
            f"data.groups: all {len(labels)} training faces are one group, {names[0]!r}; choose a "
            "column or a pattern that tells them apart"
        )
    counts = np.zeros((len(names), labels.max() + 1))
    np.add.at(counts, (group, labels), 1)
    missing = share * counts.sum(0)
    taken: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(names)):
        rest = missing - counts[number]
        nearer = np.abs(rest).sum() < np.abs(missing).sum()
        if len(taken) < len(names) - 1 and nearer:
            taken.append(number)
            missing = rest
    if not taken:
        taken = [int(counts.sum(1).argmin())]
    return np.isin(group, taken)


def groups_of(ids: Sequence[str], pattern: str) -> np.ndarray:
    """The group of each face: what the pattern's first parentheses match in its id, or all that it
    matches.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.groups={pattern}: is not a regular expression ({error})") from None
    groups = []
    for name in ids:
        match = compiled.search(name)
        if match is None:
            raise UserError(
                f"data.groups={pattern}: is neither a column nor found in {name!r}; use a "
                r"pattern such as data.groups='/(S\d+)_' for CK+"
            )
        groups.append(match.group(1 if compiled.groups else 0) or "")
    return np.array(groups, dtype=np.str_)
