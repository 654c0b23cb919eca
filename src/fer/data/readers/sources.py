"""What is at a data.path: which files and folders are which split, in which form."""

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fer import CLASSES, FACE_SIZE, UserError
from fer.data.readers import text_tables
from fer.data.readers.archives import is_archive, members_left_out, unpacked
from fer.data.readers.arrays import read_npz, read_parquet
from fer.data.readers.cache import cached
from fer.data.readers.csv_faces import has_pixels, has_usage, header_names, read_csv
from fer.data.readers.file_types import HEAD, foreign
from fer.data.readers.folders import cached_folder, class_of, class_pictures, listing
from fer.data.readers.names import (
    EMOTIONS,
    SPLITS,
    emotion,
    entries,
    is_split,
    printable,
    split_in_words,
    split_named,
    subfolders,
)
from fer.data.readers.picture_lists import (
    DEPTH,
    Columns,
    cached_listed,
    list_columns,
    names_pictures,
    table_columns,
    unused_tables,
)
from fer.data.readers.pictures import image_files, is_picture, pictures_below
from fer.data.readers.table import Table
from fer.text import counted

OFFICIAL = ("fer2013.csv", "icml_face_data.csv", "train.csv")  # the first of them that is there
TEST_CSV = "test.csv"
DEEPER = 2  # folders below data.path in which data is looked for
MOST_BELOW = 200  # folders looked into for data that lies deeper
UNFINISHED = {".crdownload", ".part", ".partial", ".download"}
MOST_NAMED = 8  # data sets in a message
MAX_LISTED = 1000  # entries of a folder that are looked through; pictures do not count
LOOKED_FOR = (
    "fer2013.csv, icml_face_data.csv, train.csv with test.csv, another CSV, folders "
    "train/<emotion>/ or <emotion>/, a table of pictures, .zip, .tar.gz, .npz, .parquet; get "
    "FER2013 from kaggle.com (challenges-in-representation-learning-facial-expression-recognition-"
    "challenge, or msambare/fer2013), or try data=demo"
)


@dataclass
class Source:
    """The faces at a data.path.

    parts: of train, validation and test those that are there; a single file is train, whatever its
    column Usage says of its rows. places: what each part is, in words. pictures: are ids paths?
    known_numbers: the classes 0, 1, … where the files show what numbers mean. sample: a sample
    submission beside them. left_out: part → why it was not read. root: the folder that ids and
    places are relative to. unread: pictures there that belong to no part, in words. unused: tables
    there that could contain labels, and why they are not used, in words.
    """

    parts: dict[str, Table]
    places: dict[str, str]
    pictures: bool = False
    known_numbers: tuple[str, ...] = ()
    sample: str | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    root: Path | None = None
    unread: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def relative_to_folder(self, place: Path) -> "Source":
        """With ids and places relative to `place`, a folder above `root`."""
        if self.root is None or self.root == place or not self.root.is_relative_to(place):
            return self
        prefix = printable(self.root.relative_to(place).as_posix())
        if [*self.places.values()] == [f"{printable(self.root.name)}/"]:  # the root itself
            self.places = dict.fromkeys(self.places, f"{prefix}/")
        else:
            self.places = {split: f"{prefix}/{name}" for split, name in self.places.items()}
        self.unread = [f"{prefix}/{name}" for name in self.unread]
        if self.pictures:
            for table in self.parts.values():
                table.ids = np.char.add(f"{prefix}/", table.ids)
        self.root = place
        return self


@dataclass(frozen=True)
class Wanted:
    """How faces are read: pixels of their side (None: 48 for pictures, a CSV's own), and the name
    of a column of groups.
    """

    size: int | None = None
    group_column: str | None = None


Reader = Callable[[Wanted], Source]


def find(path: str, wanted: Wanted = Wanted()) -> Source:
    """The faces at `path`. Raises UserError, naming what is there instead, if there are none."""
    place = Path(path)
    try:
        if path.startswith("~"):
            place = place.expanduser()
        reader = file_reader(place) if place.is_file() else None
        if reader is None and place.is_dir():
            reader = folder_reader(place, DEEPER)
        if reader is not None:
            return with_unused(reader(wanted), place).relative_to_folder(place)
        if place.exists() and not place.is_dir():  # a pipe, a device
            raise UserError(f"data.path={path}: is neither a file nor a folder; check data.path")
        problem = "no such folder or file"
        if place.is_dir():
            there = listing(list(islice(entries(place), MAX_LISTED)))
            problem = f"no data set there, only {there}" if there else "is an empty folder"
        hint = instead(place)
    except RuntimeError:  # ~NAME of an unknown user
        raise UserError(f"data.path={path}: no such user's folder; check data.path") from None
    except OSError as error:  # permissions, a path too long, a link to nowhere, a failing disk
        raise UserError(
            f"{error.filename or path}: cannot be read ({error.strerror}); check data.path"
        ) from None
    raise UserError(f"data.path={path}: {problem}; {hint}looked for {LOOKED_FOR}")


def with_unused(source: Source, place: Path) -> Source:
    """The source with the tables at `place` that are not used, if its pictures have no labels."""
    train = source.parts.get("train")
    if source.pictures and place.is_dir() and (train is None or (train.labels < 0).all()):
        source.unused = unused_tables(place, DEEPER)
    return source


def instead(place: Path) -> str:
    """What else may be meant where a path holds no data set: files there that are data in another
    form, else a data set deeper in it, else one beside it; nothing if there is none.
    """
    if place.is_dir():
        deeper = next(data_below(place), None)
        if deeper:
            return f"did you mean data.path={deeper}? "
        for file in islice(entries(place), MAX_LISTED):
            if file.is_file() and (said := in_other_form(file)):
                return f"{printable(file.name)} {said}; "
    beside = []
    if place.parent.is_dir():
        files = islice(entries(place.parent), MAX_LISTED)
        beside = [f"data.path={file}" for file in files if is_data_file(file)]
    return f"beside it there is {', '.join(beside[:3])}; " if beside else ""


def in_other_form(file: Path) -> str:
    """What a file is whose name does not suggest data, and what to do; empty if it has no faces."""
    if file.suffix.lower() in UNFINISHED:
        return "is an unfinished download"
    if file.name.lower().endswith(".csv.gz"):
        return "is damaged or holds no faces; name it in data.path to see why"
    if has_pixels(file):
        return f"is a CSV file; rename it to {stem_of(file)}.csv"
    with file.open("rb") as stream:
        said = foreign(stream.read(HEAD), file)
    return "" if "picture" in said or "JSON" in said else said


def data_below(place: Path) -> Iterator[Path]:
    """Folders with data sets far below `place`, the nearest first."""
    folders, looked_at = subfolders(place), 0
    while folders and looked_at < MOST_BELOW:
        below = []
        for folder in folders[: MOST_BELOW - looked_at]:
            with contextlib.suppress(OSError, UserError):
                if folder_reader(folder, 0):
                    yield folder
                if not folder.is_symlink():  # which may lead in a circle
                    below += subfolders(folder)
            looked_at += 1
        folders = below


def is_data_file(file: Path) -> bool:
    if not file.is_file():
        return False
    if is_csv(file):
        return has_pixels(file)
    return is_archive(file) or file.suffix.lower() in (".npz", ".parquet")


def file_reader(path: Path) -> Reader:
    """The reader of a single file, chosen by its suffix; CSV for any other suffix."""
    if is_archive(path):
        return archive_reader(path)
    if path.suffix.lower() == ".npz":
        return lambda wanted: npz_source(path, wanted)
    if path.suffix.lower() == ".parquet":
        return lambda wanted: parquet_source({"train": [path]}, wanted)
    if is_table(path) and not has_pixels(path) and (names_pictures(path) or table_columns(path)):
        return lambda wanted: listed_source(path.parent, path, wanted)
    return lambda wanted: csv_source({"train": path}, wanted)


def archive_reader(path: Path) -> Reader:
    def read(wanted: Wanted) -> Source:
        folder = unpacked(path)
        reader = folder_reader(folder, DEEPER)
        if reader is None:
            raise UserError(
                f"{path}: holds no data set, only {listing(entries(folder))}; looked for "
                f"{LOOKED_FOR}"
            )
        source = with_unused(reader(wanted), folder).relative_to_folder(folder)
        source.unread += members_left_out(folder)
        source.root = None  # ids are paths in the archive, wherever it lies
        return source

    return read


def folder_reader(folder: Path, depth: int) -> Reader | None:
    """How the data set in a folder is read; None if there is none, down to `depth` folders below
    it. Raises UserError, with a list of them, if there are several.
    """
    others = (entry for entry in entries(folder) if not is_picture(entry.name) and entry.is_file())
    files = list(islice(others, MAX_LISTED))
    tables = [file for file in files if is_table(file)]
    official = official_csvs(folder)
    if official:
        return lambda wanted: csv_source(official, wanted, sample_of(folder))
    splits = split_folders(folder)
    if "train" in splits or "validation" in splits:
        return lambda wanted: folders_source(folder, splits, tables, wanted)
    readers = candidates(folder, files, tables)
    refuse_several(folder, readers)
    if readers:
        return with_test(folder, next(iter(readers.values())))
    if splits:
        return lambda wanted: folders_source(folder, splits, tables, wanted)
    if (folder / TEST_CSV).is_file():
        return test_reader(folder)
    if image_files(folder):
        return lambda wanted: folders_source(folder, {"test": folder}, [], wanted)
    if depth and (path := list_below(folder)):
        return lambda wanted: listed_source(folder, path, wanted)
    return deeper_reader(folder, depth)


def list_below(folder: Path) -> Path | None:
    """The one list in the folders of a folder, if its pictures lie in other ones, as RAF-DB's
    EmoLabel/list_patition_label.txt and Image/aligned/. None if class folders label them: then the
    list may be of anything, such as predictions.
    """
    inner = list(islice(subfolders(folder), MOST_BELOW))
    without = [place for place in inner if not pictures_below(place, 1)]
    files = [file for place in without for file in entries(place)]
    lists = [file for file in files if is_table(file) and file.is_file() and table_columns(file)]
    if len(lists) != 1 or any(emotion(file.parent.name) for file in pictures_below(folder, DEPTH)):
        return None
    return lists[0]


def deeper_reader(folder: Path, depth: int) -> Reader | None:
    """The one data set in the folders below."""
    if depth == 0:
        return None
    readers = {}
    for inner in islice(subfolders(folder), MAX_LISTED):
        reader = folder_reader(inner, depth - 1)
        if reader and not holds_only_labels(inner):
            readers[inner] = reader
    are_pictures = all(map(holds_pictures, readers))
    refuse_several(
        folder, readers, "; or put all pictures into folders train/<class>/" if are_pictures else ""
    )
    return next(iter(readers.values()), None)


def holds_only_labels(folder: Path) -> bool:
    """Are there split folders without a picture below them, as YOLO's labels/train/?"""
    splits = {} if official_csvs(folder) else split_folders(folder)
    if "train" not in splits and "validation" not in splits:
        return False
    return not any(holds_pictures(split, DEPTH) for split in splits.values())


def with_test(folder: Path, reader: Reader) -> Reader:
    """The reader, with the test.csv of a folder as the test faces and with the folder's sample
    submission, where the data that it reads has none of its own.
    """
    file = folder / TEST_CSV
    if not file.is_file() or not has_pixels(file):
        return reader

    def read(wanted: Wanted) -> Source:
        source = reader(wanted)
        if source.pictures or {*source.parts} & {"train", "test"} != {"train"}:
            return source
        source = source.relative_to_folder(folder)
        try:
            source.parts["test"] = cached_csv(file, wanted)
            source.places["test"] = TEST_CSV
        except (UserError, OSError) as error:
            source.left_out["test"] = str(error)
        source.sample = source.sample or sample_of(folder)
        return source

    return read


def test_reader(folder: Path) -> Reader:
    """How a folder with a test.csv and without faces to train on is read: with those in a folder in
    it, as an unpacked fer2013.tar.gz leaves them, else alone.
    """
    inner = {place: csvs for place in subfolders(folder) if (csvs := official_csvs(place))}
    refuse_several(folder, inner)
    if not inner:
        return lambda wanted: csv_source({"test": folder / TEST_CSV}, wanted)
    place, csvs = inner.popitem()
    return with_test(folder, lambda wanted: csv_source(csvs, wanted, sample_of(place)))


def refuse_several(folder: Path, places: Collection[Path], otherwise: str = "") -> None:
    """Refuse to choose among data sets. otherwise: what else might be done."""
    if len(places) > 1:
        others = [place for place in places if place != folder]
        if len(others) < len(places):  # to name the folder again would not help
            otherwise = f"; or move what you do not want out of {folder}{otherwise}"
        named = ", ".join(f"data.path={place}" for place in others[:MOST_NAMED])
        raise UserError(
            f"data.path={folder}: holds {len(places)} data sets; choose one: {named}{otherwise}"
        )


def official_csvs(folder: Path) -> dict[str, Path]:
    """The CSV files of faces whose names say what they are: the split of each."""
    csvs = {}
    for name in OFFICIAL:
        if (folder / name).is_file() and not table_columns(folder / name):
            csvs["train"] = folder / name
            break
    if not csvs:
        return {}
    for file in sorted(entries(folder), key=lambda file: not is_split(file.stem)):
        split = split_named(file.stem) if is_csv(file) and file.is_file() else None
        if split is None or split in csvs or table_columns(file):
            continue
        if is_split(file.stem) or has_pixels(file):  # valid_1.csv may be anything
            csvs[split] = file
    return in_order(csvs)


def split_folders(folder: Path) -> dict[str, Path]:
    """Split → the folder named after it."""
    splits: dict[str, Path] = {}
    folders = subfolders(folder)
    plain = {split_named(entry.name) for entry in folders if is_split(entry.name)}
    for entry in folders:
        split = split_named(entry.name)
        if split is None or (split in plain and not is_split(entry.name)):
            continue  # train_images/ beside train/ is not read
        if split in splits:
            raise UserError(
                f"data.path={folder}: {splits[split].name}/ and {entry.name}/ are both {split}; "
                "rename or move one of them"
            )
        splits[split] = entry
    return in_order(splits)


def in_order(parts: dict[str, Any]) -> dict[str, Any]:
    """Parts with the training faces first."""
    return {split: parts[split] for split in SPLITS if split in parts}


def candidates(folder: Path, files: Sequence[Path], tables: Sequence[Path]) -> dict[Path, Reader]:
    """The data sets that a folder without an official name may hold."""
    readers: dict[Path, Reader] = {}
    lists = [file for file in tables if table_columns(file)]
    lists_by_split = in_order({split_in_words(stem_of(file)) or "": file for file in lists})
    if len(lists) == 1:
        readers[lists[0]] = lambda wanted: listed_source(folder, lists[0], wanted)
    elif lists and len(lists_by_split) == len(lists):
        readers[folder] = lambda wanted: lists_source(folder, lists_by_split, wanted)
    else:
        readers |= {file: file_reader(file) for file in lists}
    csvs = [file for file in tables if is_csv(file)]
    faces = [file for file in csvs if has_pixels(file) and file.name != TEST_CSV]
    by_split = in_order({split_named(stem_of(file)) or "train": file for file in faces})
    if len(faces) > 1 and len(by_split) == len(faces):
        readers[folder] = lambda wanted: csv_source(by_split, wanted, sample_of(folder))
    elif len(faces) == 1:
        beside = {"train": faces[0]}
        if (folder / TEST_CSV).is_file() and has_pixels(folder / TEST_CSV):
            beside["test"] = folder / TEST_CSV
        readers[faces[0]] = lambda wanted: csv_source(beside, wanted, sample_of(folder))
    else:
        readers |= {file: file_reader(file) for file in faces}
    others = [file for file in files if file.suffix.lower() == ".npz" or is_archive(file)]
    readers |= {file: file_reader(file) for file in others}
    parquets = parquet_files(folder)
    if parquets:
        readers[next(iter(parquets.values()))[0]] = lambda wanted: parquet_source(parquets, wanted)
    classes = [inner for inner in subfolders(folder) if is_class(inner)]
    are_classes = len(classes) > 1 or any(emotion(inner.name) for inner in classes)
    if are_classes and not split_folders(folder) and not lists:
        readers[folder] = lambda wanted: folders_source(folder, {"train": folder}, tables, wanted)
    return readers


def is_class(folder: Path) -> bool:
    """Is it a folder of pictures, or a folder of such folders that is named after an emotion? If
    all of these are named so too, it is a data set, such as that of a person named Joy.
    """
    if image_files(folder):
        return True
    is_data_set = all(emotion(inner.name) for inner in subfolders(folder))
    return bool(emotion(folder.name) and not is_data_set and class_pictures(folder))


def is_table(file: Path) -> bool:
    return file.name.lower().endswith(text_tables.ENDINGS) and "submission" not in file.name.lower()


def is_csv(file: Path) -> bool:
    name = file.name.lower()
    return name.endswith((".csv", ".csv.gz")) and "submission" not in name


def stem_of(file: Path) -> str:
    return file.name.partition(".")[0]


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Split → its parquet files, in the folder or in its data/; `train-00000-of-00001.parquet` as
    the hub has them.
    """
    files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    splits: dict[str, list[Path]] = {}
    for file in files:
        split = split_named(re.split(r"[-_.]", file.name)[0]) or "train"
        splits.setdefault(split, []).append(file)
    return in_order(splits)


def sample_of(folder: Path) -> str | None:
    """The first sample submission in a folder, as `example_submission.csv`."""
    files = sorted(islice(folder.glob("*submission*.csv"), MAX_LISTED))
    known = [file for file in files if re.match(r"(example|sample)", file.name, re.IGNORECASE)]
    return next((str(file) for file in known if file.is_file()), None)


def csv_source(csvs: dict[str, Path], wanted: Wanted, sample: str | None = None) -> Source:
    """CSV files of faces, one for each split. A test file that cannot be read does not stop
    training.
    """
    parts, left_out = {}, {}
    for split, file in csvs.items():
        try:
            parts[split] = cached_csv(file, wanted)
        except (UserError, OSError) as error:
            if split != "test" or len(csvs) == 1:
                raise
            left_out[split] = str(error)
    return Source(
        parts,
        {split: csvs[split].name for split in parts},
        known_numbers=known_numbers(list(csvs.values())),
        sample=sample,
        left_out=left_out,
        root=next(iter(csvs.values())).parent,
    )


def cached_csv(path: Path, wanted: Wanted) -> Table:
    column = wanted.group_column
    if column and column.lower() not in [name.lower() for name in header_names(path)]:
        column = None
    how = f"csv {wanted.size} {column}"
    return cached(path, [path], how, lambda: read_csv(path, wanted.size, column))


def known_numbers(csvs: Sequence[Path]) -> tuple[str, ...]:
    """What the numbers of the labels mean: FER2013's classes for its own files; with contempt, as
    FER+ numbers it, for other files with its column Usage.
    """
    if any(file.name in (*OFFICIAL, TEST_CSV) for file in csvs):
        return CLASSES
    return EMOTIONS if any(has_usage(file) for file in csvs) else ()


def folders_source(
    root: Path, folders: dict[str, Path], tables: Sequence[Path], wanted: Wanted
) -> Source:
    """Folders of pictures in `root`, one for each split. tables: those beside them, which may hold
    their labels.
    """
    parts, left_out = {}, {}
    unread = unread_beside(root, folders)
    unread += [file.name for file in tables if names_pictures(file) and not table_columns(file)]
    for split, outer in folders.items():
        folder = outer
        if split == "test" and (inner := only_unlabeled(folder, folders.get("train"))):
            folder = inner
        try:
            parts[split] = folder_table(split, folder, root, tables, wanted)
            unread += unread_below(folder, root)
        except (UserError, OSError) as error:
            if split != "test" or "train" not in folders:
                raise
            left_out[split] = str(error)
    places = {split: f"{printable(folder.name or '.')}/" for split, folder in folders.items()}
    return Source(parts, places, pictures=True, left_out=left_out, root=root, unread=unread)


def folder_table(
    split: str, folder: Path, root: Path, tables: Sequence[Path], wanted: Wanted
) -> Table:
    """The pictures of one split, with their labels from a table or from the names of folders."""
    side = wanted.size or FACE_SIZE
    listed = table_for(split, folder, tables, wanted) if not subfolders(folder) else None
    if listed:
        path, columns = listed
        table = cached_listed(path, columns, folder, [folder], side)
    else:
        table = cached_folder(folder, side, root)
    if folder != root:
        prefix = printable(folder.relative_to(root).as_posix())
        table.ids = np.char.add(f"{prefix}/", table.ids)
    return table


def unread_beside(root: Path, folders: dict[str, Path]) -> list[str]:
    """Folders with pictures beside those of the splits, such as eval/."""
    if root in folders.values():
        return []
    strangers = [entry for entry in subfolders(root) if entry not in folders.values()]
    return [f"{printable(entry.name)}/" for entry in strangers if holds_pictures(entry)]


def unread_below(folder: Path, root: Path) -> list[str]:
    """Pictures beside class folders, and folders with pictures in class folders."""
    unread = []
    classes = subfolders(folder)
    if classes and (strays := image_files(folder)):
        place = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        more = f" and {len(strays) - 1} more" if strays[1:] else ""
        unread.append(f"{place}{strays[0].name}{more}")
    for inner in classes:
        # Listed once, and only what is not a picture is checked for being a folder: there may be
        # 100,000 files.
        inside = entries(inner)
        deeper = [entry for entry in inside if not is_picture(entry.name)]
        if len(deeper) == len(inside):
            continue  # its pictures are those in its folders
        unread += [
            f"{entry.relative_to(root).as_posix()}/"
            for entry in deeper
            if entry.is_dir() and holds_pictures(entry)
        ]
    return [printable(name) for name in unread]


def holds_pictures(folder: Path, depth: int = 1) -> bool:
    """Are there pictures in a folder, or in those down to `depth` folders below it?"""
    with contextlib.suppress(OSError):
        if image_files(folder):
            return True
        inner = islice(subfolders(folder), MOST_BELOW) if depth else ()
        return any(holds_pictures(place, depth - 1) for place in inner)
    return False


def only_unlabeled(test: Path, train: Path | None) -> Path | None:
    """The folder that holds all pictures of a test folder, as test/unknown/ or test/test/, if it is
    none of the classes to train on.
    """
    inner = subfolders(test)
    if train is None or len(inner) != 1 or image_files(test) or not image_files(inner[0]):
        return None
    classes = {class_of(folder) for folder in subfolders(train)}
    return inner[0] if classes and class_of(inner[0]) not in classes else None


def table_for(
    split: str, folder: Path, tables: Sequence[Path], wanted: Wanted
) -> tuple[Path, Columns] | None:
    """The table with the labels of a folder of pictures: one in it, else one beside it that is
    named after its split, else the only one beside it that is named after none.
    """
    tables_inside = (file for file in entries(folder) if is_table(file) and file.is_file())
    inside = list(islice(tables_inside, MAX_LISTED))
    named = [file for file in tables if split_in_words(stem_of(file)) == split]
    of_any = [file for file in tables if split_in_words(stem_of(file)) is None]
    for files in (inside, named, of_any):
        columns = {file: table_columns(file, wanted.group_column) for file in files}
        labeled = [(file, its_columns) for file, its_columns in columns.items() if its_columns]
        if len(labeled) == 1:
            return labeled[0]
    return None


def listed_source(root: Path, path: Path, wanted: Wanted) -> Source:
    """Pictures below `root` whose labels are in one table, with their splits if it has them."""
    table = list_table(root, path, wanted, alone=True)
    place = printable(path.relative_to(root).as_posix())
    return Source({"train": table}, {"train": place}, pictures=True, root=root)


def list_table(root: Path, path: Path, wanted: Wanted, alone: bool) -> Table:
    """The pictures below `root` that a list names. alone: is there no other list?"""
    try:
        columns = list_columns(path, wanted.group_column)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return cached_listed(path, columns, root, [root], wanted.size or FACE_SIZE, alone)


def lists_source(root: Path, lists: dict[str, Path], wanted: Wanted) -> Source:
    """Pictures below `root` whose labels are in a list for each split, such as train_labels.csv
    and test_labels.csv.
    """
    parts = {split: list_table(root, path, wanted, alone=False) for split, path in lists.items()}
    known = {name for table in parts.values() for name in table.ids.tolist()}
    names = (printable(file.relative_to(root).as_posix()) for file in pictures_below(root, DEPTH))
    unlisted = [name for name in names if name not in known]
    source = Source(parts, {split: path.name for split, path in lists.items()}, pictures=True)
    source.root = root
    if unlisted:
        count = counted(len(unlisted), "picture")
        first = next(iter(parts.values()))
        first.notes = np.append(first.notes, f"{count} in no list, such as {unlisted[0]}")
    return source


def npz_source(path: Path, wanted: Wanted) -> Source:
    parts = read_npz(path, wanted.size)
    return Source(parts, {split: f"{path.name} {split}" for split in parts})


def parquet_source(files: dict[str, list[Path]], wanted: Wanted) -> Source:
    """Parquet files, one or several for each split."""
    side, parts = wanted.size or FACE_SIZE, {}
    for split, paths in files.items():
        parts[split] = cached(
            paths[0], paths, f"parquet {side}", partial(read_parquet, paths, side)
        )
    return Source(parts, {split: paths[0].name for split, paths in files.items()})
