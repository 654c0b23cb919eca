"""Recognizes files by their first bytes if their name suggests another type."""

import codecs
import zlib
from pathlib import Path

UNPACK = "unpack it, then name the CSV file or the folder in it"
CONVERT = "save its faces as .npz with the arrays images and labels, or as CSV"
FOLDERS = "put pictures into folders train/<emotion>/"
DOWNLOAD = "get the file again; kaggle.com wants you to be logged in"
SAVE_AS_CSV = "save it as CSV"
# First bytes of files that are often misnamed CSV: what they are, and what to do with them.
SIGNATURES = (
    (codecs.BOM_UTF32_LE, "is UTF-32", "save it as UTF-8"),
    (codecs.BOM_UTF16_LE, "is UTF-16", "save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "is UTF-16", "save it as UTF-8"),
    (b"BZh", "is compressed by bzip2", UNPACK),
    (b"\xfd7zXZ\0", "is compressed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", UNPACK),
    (b"\x04\x22\x4d\x18", "is compressed by lz4", UNPACK),
    (b"\x1f\x9d", "is compressed by compress", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", UNPACK),
    (b"Rar!\x1a\x07", "is a RAR archive", UNPACK),
    (b"PK\x05\x06", "is an empty zip archive", "get the file again"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file", CONVERT),
    (b"MATLAB ", "is a MATLAB file", CONVERT),
    (b"ARROW1", "is an Arrow file", CONVERT),
    (b"FEA1", "is a Feather file", CONVERT),
    (b"\x93NUMPY", "is a NumPy array", CONVERT),
    (b"SQLite format 3\0", "is an SQLite database", CONVERT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an Excel workbook", SAVE_AS_CSV),
    (b"\x80\x02", "is a Python pickle", CONVERT),
    (b"\x80\x03", "is a Python pickle", CONVERT),
    (b"\x80\x04", "is a Python pickle", CONVERT),
    (b"\x80\x05", "is a Python pickle", CONVERT),
    (b"\x89PNG", "is a picture", FOLDERS),
    (b"\xff\xd8\xff", "is a picture", FOLDERS),
    (b"GIF8", "is a picture", FOLDERS),
    (b"II*\0", "is a picture", FOLDERS),
    (b"MM\0*", "is a picture", FOLDERS),
    (b"%PDF", "is a PDF document", "name a CSV file of faces"),
    (b"{\\rtf", "is an RTF document", "name a CSV file of faces"),
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, without the data",
        "fetch it: git lfs pull",
    ),
)
# The same for text files; white space may precede these bytes.
TEXTS = (
    (b"<!doctype html", "is a web page", DOWNLOAD),
    (b"<html", "is a web page", DOWNLOAD),
    (b"<", "is XML", DOWNLOAD),
    (b"{", "is JSON", "name a CSV file of faces, or get the file again"),
    (b"[", "is JSON", "name a CSV file of faces, or get the file again"),
)
HEAD = 2048  # bytes by which a file is known


def foreign(head: bytes, path: Path) -> str:
    """What the file at `path`, whose text begins with these bytes, is, and what to do, where it is
    no CSV; else nothing. What fer reads under another name should get that name.
    """
    # Only a tar may lie in what is decompressed by its name, .csv.gz.
    packed = path.suffix.lower() == ".gz"
    if head[257:262] == b"ustar":
        return f"is a tar archive; {named(path, '.tar.gz' if packed else '.tar')}"
    if head.startswith(b"\x1f\x8b"):
        inside = zlib.decompressobj(31)
        try:
            is_tar = inside.decompress(head, 512)[257:262] == b"ustar"
        except zlib.error:
            is_tar = False
        ending = ".tar.gz" if is_tar else ".csv.gz"
        return f"is compressed by gzip; {UNPACK if packed else named(path, ending)}"
    if head.startswith(b"PK\x03\x04"):
        kind, remedy = zipped(head[:HEAD], path)
        return f"{kind}; {UNPACK if packed else remedy}"
    if head.startswith(b"PAR1"):
        return f"is a parquet file; {UNPACK if packed else named(path, '.parquet')}"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return f"is a picture; {FOLDERS}"
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return f"is a picture; {FOLDERS}"
    if head[4:8] == b"ftyp":
        return f"is a video or a HEIC picture; {FOLDERS} as PNG or JPEG"
    for start, known in ((head, SIGNATURES), (head[:HEAD].lstrip(), TEXTS)):
        for signature, kind, remedy in known:
            if start[: len(signature)].lower() == signature.lower():
                return f"{kind}; {remedy}"
    return ""


def zipped(start: bytes, path: Path) -> tuple[str, str]:
    """What a file that begins as a zip archive is, and what to do."""
    if b"[Content_Types].xml" in start or b"xl/" in start:
        return "is an Excel workbook", SAVE_AS_CSV
    if b"mimetypeapplication/vnd.oasis" in start:
        return "is an OpenDocument file", SAVE_AS_CSV
    if b"/data.pkl" in start:
        return "is a file of PyTorch", CONVERT
    if b".npy" in start:
        return "is a NumPy archive", named(path, ".npz")
    return "is a zip archive", named(path, ".zip")


def named(path: Path, ending: str) -> str:
    """The remedy for a file that is read if its name says what it is."""
    return f"rename it to {path.name.partition('.')[0]}{ending}"


def kind_of(path: Path) -> str:
    """What a file is that should be a CSV and is not, such as `is a web page`; otherwise empty."""
    with path.open("rb") as file:
        return foreign(file.read(HEAD), path).partition(";")[0]


def mistaken(path: Path, kind: str) -> str:
    """What a file is that by its name is `kind` and by its first bytes is not."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return f"{path}: is empty; get the file again"
    if said := foreign(head, path.with_suffix("")):
        return f"{path}: {said}"
    if is_text(head):
        return f"{path}: is text, not {kind}; if it is CSV, {named(path, '.csv')}"
    return f"{path}: is damaged, or not {kind}; get the file again"


def is_text(head: bytes) -> bool:
    """Are the first bytes of a file UTF-8 without control codes?"""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # its end may be half a letter
    except ValueError:
        return False
    return all(c.isprintable() or c.isspace() for c in text)


def no_picture(path: Path) -> str:
    """What a file is that should be a picture and is none, such as `is a web page`; nothing for a
    damaged picture or unknown bytes.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "is empty"
    kind = foreign(head, path).partition(";")[0]
    if kind and "picture" not in kind:
        return kind
    if head[4:8] == b"ftyp":
        return "is a video or a picture of a kind that fer does not read"
    return "is text" if not kind and is_text(head) else ""
