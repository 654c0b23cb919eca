"""From the labels that sources hold to the classes of a data set: what numbers mean, how emotions
are spelled, which classes are joined and which are kept.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fer import CLASSES, UserError
from fer.data.readers.names import EMOTION_OF, EMOTIONS, composed, emotion
from fer.data.readers.table import MAX_LABELS, Table

MAX_NAME = 100  # characters
RAFDB = "[surprise,fear,disgust,happy,sad,angry,neutral]"
AFFECTNET = "[neutral,happy,sad,surprise,fear,disgust,angry]"
FER2013 = f"[{','.join(CLASSES)}]"
QUESTION = (
    "what do these numbers mean? Name them in their order with data.names=, such as "
    f"data.names={RAFDB} for RAF-DB's 1 to 7, data.names={AFFECTNET} for AffectNet's 0 to 6 or "
    f"data.names={FER2013} for FER2013's"
)
MEANINGS = ", ".join(f"{label} {name}" for label, name in enumerate(CLASSES))


@dataclass(frozen=True)
class Meaning:
    """The classes of the data; named: label of a source → the name of its class, also of one that
    is left out.
    """

    classes: tuple[str, ...]
    named: Mapping[str, str]

    def labels(self, table: Table) -> np.ndarray:
        """int64 N: the class of each row of a table; -1 where it has no label, -2 where its class
        is left out.
        """
        position = {name: number for number, name in enumerate(self.classes)}
        lookup = [position.get(self.named[label], -2) for label in table.names.tolist()]
        return np.array([*lookup, -1], dtype=np.int64)[table.labels]


@dataclass(frozen=True)
class Wishes:
    """The keys of a config about classes; see configs/data/fer2013.yaml."""

    classes: Sequence[str] | None = None
    names: Sequence[str] | Mapping[str, str] | None = None
    merge: Mapping[str, Sequence[str]] | None = None


def is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def resolve(tables: Sequence[Table], wishes: Wishes, known_numbers: Sequence[str] = ()) -> Meaning:
    """The classes of the data, and what the labels of the tables mean.

    known_numbers: the names of the numbers 0, 1, …, where the files show what these mean.
    """
    first: dict[str, str] = {}
    for table in tables:
        for label, place in zip(table.names.tolist(), table.first.tolist(), strict=True):
            first.setdefault(label, place)
    if not first:
        return Meaning(CLASSES, {})
    for label, place in first.items():
        if not label.isprintable() or not 0 < len(label.strip()) <= MAX_NAME:
            raise UserError(f"{place!r}: cannot be used as the name of a class; rename it")
    if len(first) > MAX_LABELS:
        raise UserError(f"there are {len(first):,} different labels, too many for classes")
    named = name_numbers(first, wishes.names, known_numbers)
    refuse_misspelt(first, named, wishes)
    classes = in_order(set(named.values()))
    classes, named = merged(classes, named, wishes.merge or {})
    if wishes.classes is not None:
        classes = kept(classes, wishes.classes)
    return Meaning(classes, named)


def names_in_order(numbers: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Each number and its name: the first name is that of the lowest number."""
    values = {int(number) for number in numbers}
    if len(names) != len(values):
        raise UserError(
            f"data.names: has {len(names)} names for the {len(values)} numbers "
            f"{listed(sorted(values))}; give one for each, in their order"
        )
    spelled = [emotion(name) or composed(name.strip()) for name in names]
    for name in spelled:
        if spelled.count(name) > 1:
            raise UserError(
                f"data.names: has {name} twice; give each number its own name, and join classes "
                "with data.merge"
            )
    meaning = dict(zip(sorted(values), names, strict=True))
    return {number: meaning[int(number)] for number in numbers}


def refuse_unknown_numbers(
    numbers: Sequence[str], first: Mapping[str, str], known_numbers: Sequence[str]
) -> None:
    """Refuse numbers of unknown meaning, or that look like another data set's numbering.

    numbers: sorted. first: the first place of each label.
    """
    strange = [number for number in numbers if not 0 <= int(number) < len(known_numbers)]
    if strange and known_numbers:
        raise UserError(
            f"{first[strange[0]]}: {strange[0]!r} is not a label of FER2013 ({MEANINGS}). If "
            f"this file numbers its classes otherwise, {QUESTION}"
        )
    if strange:
        raise UserError(
            f"{first[numbers[0]]}: the labels are the numbers {listed(numbers)}; {QUESTION}"
        )
    if len(numbers) > 1 and [*map(int, numbers)] == [*range(1, len(numbers) + 1)]:
        raise UserError(
            f"{first[numbers[0]]}: the labels are the numbers {listed(numbers)}, but FER2013 "
            f"begins with 0, angry; {QUESTION}"
        )


def name_numbers(
    first: Mapping[str, str],
    names: Sequence[str] | Mapping[str, str] | None,
    known_numbers: Sequence[str],
) -> dict[str, str]:
    """Label → name: emotions in this project's spelling, other words as they are."""
    labels = {label: label for label in first}
    if isinstance(names, Mapping):
        labels = renamed(first, names)
    numbers = sorted((label for label in labels if is_number(labels[label])), key=int)
    words = [label for label in labels if label not in numbers]
    if numbers and words:
        raise UserError(
            f"{first[numbers[0]]}: is labeled {numbers[0]}, but {first[words[0]]} is labeled "
            f"{words[0]!r}; use numbers or words for all, or name the numbers, such as "
            f"data.names={{{numbers[0]}: happy}}"
        )
    if isinstance(names, Sequence):
        if not numbers:
            raise UserError(
                f"data.names: names numbers, but the labels here are words "
                f"({listed(in_order(set(words)))}); remove data.names"
            )
        labels |= names_in_order(numbers, names)
    elif numbers:
        refuse_unknown_numbers(numbers, first, known_numbers)
        labels |= {number: known_numbers[int(number)] for number in numbers}
    spelled = {label: emotion(name) for label, name in labels.items()}
    if all(spelled.values()):
        return {label: str(name) for label, name in spelled.items()}
    return {label: composed(name.strip()) for label, name in labels.items()}


def renamed(first: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Label → what `names` calls it; itself where that has no name for it."""
    meanings = {composed(label): name for label, name in names.items()}
    known = {label: composed(plain(label)) for label in first}
    there = {*known.values()}
    for label in meanings:
        if label not in there and not is_number(label) and not emotion(label):
            raise UserError(f"data.names: no label {label!r}; there are {listed(sorted(there))}")
    numbers = sorted(filter(is_number, there), key=int)
    missing = [number for number in numbers if number not in meanings]
    if missing and len(missing) < len(numbers):
        raise UserError(
            f"data.names: has names for some of the numbers, but none for {listed(missing)}; name "
            "all of them"
        )
    return {label: meanings.get(plain_label, label) for label, plain_label in known.items()}


def plain(label: str) -> str:
    """A number without its leading zeros, as YAML has it."""
    return str(int(label)) if is_number(label) else label


def refuse_misspelt(first: Mapping[str, str], named: Mapping[str, str], wishes: Wishes) -> None:
    """Refuse a label that is almost an emotion, if other labels are emotions and the config does
    not name it.
    """
    asked = set(wishes.classes or ())
    for joined in (wishes.merge or {}).values():
        asked.update(joined)
    strangers = [label for label, name in named.items() if not emotion(name)]
    if len(strangers) == len(named):
        return
    for label in strangers:
        near = difflib.get_close_matches(named[label].lower(), EMOTION_OF, n=1, cutoff=0.8)
        if near and named[label] not in asked:
            raise UserError(
                f"{first[label]}: {named[label]!r} is not an emotion; did you mean {near[0]}? "
                f"Rename it, or join it with data.merge={{{near[0]}: [{near[0]},{named[label]}]}}"
            )


def in_order(names: set[str]) -> tuple[str, ...]:
    """Emotions in FER2013's order, contempt last, if all of the names are such; else sorted."""
    if names <= set(EMOTIONS):
        return tuple(name for name in EMOTIONS if name in names)
    return tuple(sorted(names))


def find_class(name: str, classes: Sequence[str]) -> str | None:
    """The class that a word of the config means, in any usual spelling."""
    if composed(name) in classes:
        return composed(name)
    spelled = emotion(name)
    return next((known for known in classes if spelled and emotion(known) == spelled), None)


def merged(
    classes: tuple[str, ...], named: dict[str, str], merge: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The classes with those that data.merge joins as one, at the place of the first of them, and
    the labels' new names.
    """
    joined: dict[str, str] = {}
    for new, members in merge.items():
        for member in members:
            old = find_class(member, classes)
            if old is None:
                if emotion(member):
                    continue  # not in this data
                raise UserError(f"data.merge: no class {member!r}; there are {listed(classes)}")
            if old in joined:
                raise UserError(f"data.merge: {old} is in {joined[old]} and in {new}; name it once")
            joined[old] = composed(new)
    for new in map(composed, merge):
        if new in classes and new not in joined:
            raise UserError(
                f"data.merge: {new} is already a class; list it among the members, or choose "
                "another name"
            )
    after = tuple(dict.fromkeys(joined.get(name, name) for name in classes))
    return after, {label: joined.get(name, name) for label, name in named.items()}


def kept(classes: tuple[str, ...], asked: Sequence[str]) -> tuple[str, ...]:
    """The classes that data.classes asks for, in its order. An emotion may be missing from the
    data: the network then has an output for it that nothing trains.
    """
    chosen = []
    for name in asked:
        found = find_class(name, classes) or emotion(name)
        if found is None:
            raise UserError(f"data.classes: no class {name!r}; there are {listed(classes)}")
        if found in chosen:
            raise UserError(f"data.classes: names {found} twice; name it once")
        chosen.append(found)
    return tuple(chosen)


def listed(values: Sequence[object], most: int = 12) -> str:
    """Values in words, the first `most` of them."""
    words = ", ".join(map(str, values[:most]))
    return f"{words}, … ({len(values)} in all)" if len(values) > most else words
