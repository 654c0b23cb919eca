"""Faces in any form in which they are handed around: files and folders in, Data out.

A source is parsed once into a Table and cached; classes and splits are made of Tables. What does
not read as faces is refused with file, line and remedy. Knows nothing of configs, devices or FER+'s
votes.
"""

from fer.data.readers.dataset import fer2013

__all__ = ["fer2013"]
