"""What a file is by its first bytes, where its name promises something else."""

import codecs

UNPACK = "unpack it, then name the CSV file or the folder in it"
CONVERT = "write its faces to a CSV file with the columns emotion and pixels"
DOWNLOAD = "get the file again; kaggle.com wants you to be logged in"
# First bytes of files that people name a CSV: what they are, and what to do with them.
SIGNATURES = (
    (codecs.BOM_UTF16_LE, "is UTF-16", "save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "is UTF-16", "save it as UTF-8"),
    (b"\x1f\x8b", "is compressed by gzip", UNPACK),
    (b"BZh", "is compressed by bzip2", UNPACK),
    (b"\xfd7zXZ\0", "is compressed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", UNPACK),
    (b"Rar!\x1a\x07", "is a RAR archive", UNPACK),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file", CONVERT),
    (b"PAR1", "is a parquet file", CONVERT),
    (b"\x93NUMPY", "is a NumPy array", CONVERT),
    (b"SQLite format 3\0", "is an SQLite database", CONVERT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an Excel workbook", "save it as CSV"),
    (b"\x80\x02", "is a Python pickle", CONVERT),
    (b"\x80\x03", "is a Python pickle", CONVERT),
    (b"\x80\x04", "is a Python pickle", CONVERT),
    (b"\x80\x05", "is a Python pickle", CONVERT),
    (b"\x89PNG", "is a picture", "put pictures into folders train/<emotion>/"),
    (b"\xff\xd8\xff", "is a picture", "put pictures into folders train/<emotion>/"),
    (b"%PDF", "is a PDF document", "name a CSV file of faces"),
    (b"<!doctype html", "is a web page", DOWNLOAD),
    (b"<html", "is a web page", DOWNLOAD),
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, without the data",
        "fetch it: git lfs pull",
    ),
)


def foreign(head: bytes) -> str:
    """What a file that starts with these bytes is, and what to do, where it is no text; else
    nothing.
    """
    if head.startswith(b"PK\x03\x04"):
        start = head[:2048]
        if b"[Content_Types].xml" in start or b"xl/" in start:
            return "is an Excel workbook; save it as CSV"
        if b".npy" in start:
            return f"is a NumPy archive (.npz); {CONVERT}"
        return f"is a zip archive; {UNPACK}"
    if head[257:262] == b"ustar":
        return f"is a tar archive; {UNPACK}"
    for signature, kind, remedy in SIGNATURES:
        if head[: len(signature)].lower() == signature.lower():
            return f"{kind}; {remedy}"
    return ""
