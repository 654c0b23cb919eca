"""fer: train and compare facial-expression CNNs on FER2013-style data.

This module holds what every other one shares and imports nothing heavy.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

__version__ = "0.1.0"

# Of a network's input; see models/network.py.
Normalization = Literal["none", "unit", "dataset", "image"]
# Of numbers in forward passes.
Format = Literal["fp32", "bf16", "fp16"]
# The format that train.precision asks for; see runtime.choose_format.
Precision = Literal["auto", "fp32", "bf16", "fp16"]
# Of a file or folder. The value of such a key may contain any character; see signatures.path_keys.
FilePath = Annotated[str, "path"]
# Of pictures in formats that are read.
PICTURE_ENDINGS = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".pgm",
    ".ppm",
    ".pbm",
)
VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
FACE_SIZE = 48  # pixels of a side of FER2013's faces
# System libraries that opencv-python needs, and their Debian packages.
SYSTEM_LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libxcb.so.1": "libxcb1",
}
CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def class_names(count: int) -> tuple[str, ...]:
    """Of 7 classes, or of FER+'s 8."""
    return (*CLASSES, "contempt")[:count]


class UserError(Exception):
    """Something the user can fix: one line that says what was wrong, where, and what to do. Exit
    code 2.
    """


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Within the context, a package that cannot be imported raises UserError. `what` needs the
    package; the extra `name` installs it.
    """
    try:
        yield
    except ModuleNotFoundError:
        raise UserError(
            f"{what}: a package is missing; pip install 'fer-trainer[{name}]'"
        ) from None
    except ImportError as error:  # the package is there, but not something that it needs
        library = str(error).partition(":")[0]
        remedy = "install what is missing"
        if library in SYSTEM_LIBRARIES:
            remedy = f"on Debian and Ubuntu: apt-get install {SYSTEM_LIBRARIES[library]}"
        raise UserError(f"{what}: {error}; {remedy}") from None


def in_processes() -> bool:
    """Has torchrun started this process, and perhaps others? A cluster may set some of these names
    by itself.
    """
    return all(
        name in os.environ for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE")
    )


def config_dir() -> Path:
    """configs/, inside the installed package or beside src/ in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def choices(command: str, user_dir: str | None = None) -> dict[str, list[str]]:
    """Group → its configs, for the groups that the command's defaults list names."""
    import yaml

    defaults = yaml.safe_load((config_dir() / f"{command}.yaml").read_text(encoding="utf-8"))[
        "defaults"
    ]
    if "train" in defaults:
        return choices("train", user_dir)
    groups = [group for entry in defaults if isinstance(entry, dict) for group in entry]
    roots = (config_dir(), Path(user_dir or config_dir()))
    return {
        group: sorted({file.stem for root in roots for file in (root / group).glob("*.yaml")})
        for group in groups
    }


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the most similar known one, and all of them."""
    import difflib

    near = difflib.get_close_matches(word, known := list(known), n=1, cutoff=0.5)
    return (f"did you mean {near[0]}? " if near else "") + f"there are {', '.join(known)}"
