"""Faces in photos and videos: found, cropped as FER2013's faces are, labeled, drawn.

The caller passes the function that labels faces; networks and checkpoints are unknown here.
"""

from fer.photos.detection import SHARE, FaceDetector, find_faces
from fer.photos.drawing import read_photo
from fer.photos.labeling import faces_in_photos, remedy, run

__all__ = [
    "SHARE",
    "FaceDetector",
    "faces_in_photos",
    "find_faces",
    "read_photo",
    "remedy",
    "run",
]
