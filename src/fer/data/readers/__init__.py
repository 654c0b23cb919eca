"""Reads faces in all common forms: files and folders in, Data out.

A source is parsed once into a Table and cached; classes and splits are made of Tables. Errors
name file, line and remedy. Knows no configs, devices or FER+ votes.
"""

from fer.data.readers.dataset import fer2013

__all__ = ["fer2013"]
