"""Data read as `fer train data.path=` reads it."""

from fer.data.readers import fer2013

SETTINGS = {
    "limit": None,
    "split": "auto",
    "fraction": 0.1,
    "from_index": 25,
    "validation": "auto",
    "seed": 0,
    "normalize": "unit",
}


def load(path, **changes):
    """changes: of the settings above."""
    return fer2013(str(path), **(SETTINGS | changes))
