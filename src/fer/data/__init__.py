"""Faces in memory, the readers that fill them, and the demo that draws its own."""
