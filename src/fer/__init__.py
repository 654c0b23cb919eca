"""fer: train, compare and explain facial-expression CNNs on FER2013-style data.

This module holds what every other one shares and imports nothing heavy.
"""

__version__ = "0.1.0"

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


class UserError(Exception):
    """Something the user can mend: one line that says what was wrong, where, and what to do. Exit code 2."""
