"""Words of the field: emotions in their usual spellings, names of splits, and what file managers
leave in folders.
"""

import re
import unicodedata
from pathlib import Path

from fer import CLASSES

EMOTIONS = (*CLASSES, "contempt")
SPELLINGS = {
    "angry": ("anger",),
    "disgust": ("disgusted", "disgusting"),
    "fear": ("fearful", "afraid", "scared"),
    "happy": ("happiness", "joy", "joyful"),
    "sad": ("sadness",),
    "surprise": ("surprised",),
    "neutral": ("neutrality",),
    "contempt": ("contemptuous",),
}
EMOTION_OF = {name: name for name in EMOTIONS} | {
    spelling: name for name, spellings in SPELLINGS.items() for spelling in spellings
}

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev", "publictest"),
    "test": ("test", "testing", "privatetest"),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}

FILLERS = {"data", "dataset", "faces", "images", "imgs", "pictures", "set", "split"}

JUNK = {"__macosx", "thumbs.db", "desktop.ini", "@eadir"}


def emotion(word: str) -> str | None:
    """The emotion that a word names, as `Anger`, `happy ` or `0_angry`; None if it names none."""
    return EMOTION_OF.get(re.sub(r"^\d+[\W_]+(?=\w)", "", word.strip().lower()))


def plain_label(text: str) -> str:
    """A label without white space, and 3 for 3.0, as pandas writes it if some are missing."""
    label = text.strip()
    number = label.removesuffix(".0")
    return number if number.isdecimal() else label


def split_named(word: str) -> str | None:
    """train, validation or test for a split's name in any case, also with a word or number that
    adds nothing: `train_set`, `test-images`, `1_train`, FER+'s `FER2013Valid`.
    """
    name = word.strip().lower().removeprefix("fer2013")
    words = [part for part in re.split(r"[\W_]+", name) if part and not part.isdecimal()]
    telling = [part for part in words if part not in FILLERS]
    return SPLIT_OF.get(telling[0].removesuffix("set")) if len(telling) == 1 else None


def is_split(word: str) -> bool:
    """Is it a split's name, without other words?"""
    return word.strip().lower().removeprefix("fer2013") in SPLIT_OF


def split_in_words(stem: str) -> str | None:
    """The split that one word of a file's stem names, as in train_labels or labels-val."""
    splits = {split_named(word) for word in re.split(r"[\W_]+", stem)} - {None}
    return splits.pop() if len(splits) == 1 else None


def is_junk(name: str) -> bool:
    """Is it hidden, or one of the files that systems leave in folders and archives?"""
    return name.startswith(".") or name.lower() in JUNK


def entries(folder: Path) -> list[Path]:
    """What is in a folder, by name, without junk."""
    return sorted(entry for entry in folder.iterdir() if not is_junk(entry.name))


def subfolders(folder: Path) -> list[Path]:
    return [entry for entry in entries(folder) if entry.is_dir()]


def composed(name: str) -> str:
    """A name in Unicode's composed form, in which ü is one character. macOS decomposes the names of
    files; Windows and Linux do not.
    """
    return unicodedata.normalize("NFC", name)


def printable(name: str | Path) -> str:
    """The name or path of a file as text, whatever its bytes."""
    return str(name).encode(errors="replace").decode()
