"""Pictures of faces: opened safely whatever a file holds, gray, at one size."""

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fer import FACE_SIZE, PICTURE_ENDINGS, UserError
from fer.data.readers.cache import empty_images
from fer.data.readers.file_types import no_picture
from fer.data.readers.names import entries
from fer.files import regular

# Decoded by content; EPS, for one, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# Of pictures that are not read, HEIC of phones' photos among them: they are refused by name.
UNREAD = {".heic", ".heif", ".hif", ".avif", ".jp2", ".jxl", ".tga", ".psd"}
ALL_ENDINGS = {*PICTURE_ENDINGS, *UNREAD}
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")
MAX_PIXELS = 50_000_000  # of an image, before it is decoded
CHUNK = 256  # pictures decoded together


def image_files(folder: Path) -> list[Path]:
    """The pictures in a folder, by name; also of formats that are refused when they are read."""
    return [entry for entry in entries(folder) if is_picture(entry.name)]


def pictures_below(folder: Path, depth: int) -> list[Path]:
    """The pictures in a folder and in those down to `depth` folders below it."""
    inside = entries(folder)
    files = [entry for entry in inside if is_picture(entry.name)]
    if depth:
        for entry in inside:
            if not is_picture(entry.name) and entry.is_dir():
                files += pictures_below(entry, depth - 1)
    return files


def is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in ALL_ENDINGS  # noqa: PTH122, of any string


@contextlib.contextmanager
def opened(file: Path, too_large: str) -> Iterator[Image.Image]:
    """decoded(), without the warnings of decoders. Not for threads, which share the filters."""
    with warnings.catch_warnings(action="ignore"), decoded(file, too_large) as image:
        yield image


@contextlib.contextmanager
def decoded(
    file: Path | io.BytesIO, too_large: str, name: str | None = None
) -> Iterator[Image.Image]:
    """The image in an untrusted file, of bounded size. Within the context every error of its
    decoder is a UserError. name: of the picture, in messages; None: the file's path.
    """
    name = name or str(file)
    try:
        if isinstance(file, Path) and not file.is_file():
            raise OSError  # a pipe would be waited for
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{name}: has {image.width}×{image.height} pixels, more than "
                    f"{MAX_PIXELS // 1_000_000} million; {too_large}"
                )
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError:  # twice as many as Pillow warns of
        raise UserError(
            f"{name}: has more than {MAX_PIXELS // 1_000_000} million pixels; {too_large}"
        ) from None
    except Exception:  # Pillow raises a dozen kinds, for damaged EXIF too
        if isinstance(file, Path) and is_heic(file):
            raise UserError(
                f"{name}: is HEIC, which phones write and fer does not read; save it as JPEG"
            ) from None
        kind = ""
        if isinstance(file, Path):
            with contextlib.suppress(OSError):
                kind = no_picture(regular(file))
        if not kind and os.path.splitext(name)[1].lower() in UNREAD:  # noqa: PTH122
            kind = "may be of a kind that fer does not read"
        said = f" (it {kind})" if kind else ""
        raise UserError(f"{name}: not a readable image{said}; replace or remove it") from None


def is_heic(file: Path) -> bool:
    """Is it a HEIF container, by its first bytes, whatever its name?"""
    with contextlib.suppress(OSError):
        if file.is_file():
            with file.open("rb") as stream:
                head = stream.read(12)
            return head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS
    return False


def read_image(
    file: Path | io.BytesIO,
    side: int = FACE_SIZE,
    name: str | None = None,
    sides: list[int] | None = None,
) -> np.ndarray:
    """uint8 side×side: the first frame, gray, resized. sides: the picture's longer side is added,
    in pixels.
    """
    with decoded(file, "make it smaller or remove it", name) as image:
        if sides is not None:
            sides.append(max(image.size))
        gray = eight_bits(image, str(name or file)).convert("L")
        return np.asarray(gray.resize((side, side), Image.Resampling.BILINEAR))


def eight_bits(image: Image.Image, name: str) -> Image.Image:
    """The image with 8 bits for each color; 16 bits are scaled, which Pillow would clip. Raises
    UserError for 32 bits, whose range is unknown.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, dtype=np.float64)
    wide = image.mode == "F" or (image.mode == "I" and image.format == "TIFF")
    if wide or values.min() < 0 or values.max() > 65535:
        raise UserError(f"{name}: pixels of mode {image.mode}; save it with 8 or 16 bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 N×side×side of N×S×S, as read_image scales pictures."""
    if images.shape[-1] == side:
        return images
    out = empty_images(len(images), side)
    for row, image in zip(out, images, strict=True):
        picture = Image.fromarray(image)
        row[:] = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
    return out


def read_all(
    count: int, read: Callable[[int], np.ndarray], side: int, heads: Sequence[bytes]
) -> tuple[np.ndarray, str]:
    """uint8 N×side×side, and the SHA-256 over each picture's head (its name, say) and pixels.

    read: the picture at a position, uint8 side×side. The images are bytes on the disk if the memory
    would not hold them.
    """
    images, digest = empty_images(count, side), hashlib.sha256()
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor() as pool:
        for start in range(0, count, CHUNK):
            places = range(start, min(start + CHUNK, count))
            for place, image in zip(places, pool.map(read, places), strict=True):
                images[place] = image
                digest.update(heads[place] + image.tobytes())
    return images, digest.hexdigest()
