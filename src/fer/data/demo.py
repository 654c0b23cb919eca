"""Demo data: drawn faces, so that every command can be tried without FER2013. They depict no real
person.
"""

from types import SimpleNamespace
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le

from fer import CLASSES, FACE_SIZE, Normalization
from fer.data.faces import Data, Faces

# Action units (AUs) of P. Ekman and W. V. Friesen, Facial Action Coding System (Consulting
# Psychologists Press, 1978).
ACTION_UNITS = {
    1: "inner brow raiser",
    2: "outer brow raiser",
    4: "brow lowerer",
    5: "upper lid raiser",
    6: "cheek raiser",
    7: "lid tightener",
    9: "nose wrinkler",
    10: "upper lip raiser",
    12: "lip corner puller",
    15: "lip corner depressor",
    16: "lower lip depressor",
    20: "lip stretcher",
    23: "lip tightener",
    25: "lips part",
    26: "jaw drop",
}
AUS = list(ACTION_UNITS)
# For each class the AUs of its prototype in EMFACS, which its faces show, and others that some of
# its faces show as well. Disgust and anger are hard to distinguish: the nose wrinkler (9) lowers
# the brows and narrows the eyes, as 4 and 7 do, and the two classes share additional AUs.
EXPRESSIONS = {
    "angry": ((4, 5, 7, 23), (10, 16, 25)),
    "disgust": ((9, 15, 16), (4, 7, 10)),
    "fear": ((1, 2, 4, 5, 20, 26), (25,)),
    "happy": ((6, 12), (25, 26)),
    "sad": ((1, 4, 15), (7,)),
    "surprise": ((1, 2, 5, 26), (25,)),
    "neutral": ((), ()),
}

# Fractions of the classes, in the order of CLASSES, as in FER2013. Only disgust (1.5 % there) is
# more frequent, so that it can be learned.
MIX = (0.14, 0.045, 0.14, 0.245, 0.165, 0.11, 0.155)
# Fraction of shuffled labels; a sixth of them keep their class by chance, so 5 % are wrong.
MISLABELLED = 0.06
CHUNK = 32  # faces drawn at once: 32×48×48 floats fit a core's cache, 1.5× as fast as 256

# What varies besides the expression, with the range of its uniform distribution. Lengths: the head
# extends from -1 to 1, and y points down. Tones: 0 (black) to 255 (white).
TRAITS = {
    # pose: tilt is the tangent of half the in-plane rotation (±11°), yaw moves the features
    # across the head
    "tilt": (-0.1, 0.1),
    "yaw": (-0.13, 0.13),
    "size": (0.94, 1.18),
    "shift_x": (-0.14, 0.14),
    "shift_y": (-0.12, 0.12),
    # identity
    "width": (0.62, 0.76),
    "height": (0.86, 0.98),
    "taper": (0.02, 0.24),
    "skin": (105, 215),
    "hair": (12, 120),
    "hairline": (0.5, 0.8),
    "parting": (-0.25, 0.25),
    "long_hair": (0, 1),
    "eye_x": (0.28, 0.34),
    "eye_y": (-0.17, -0.09),
    "eye_width": (0.16, 0.2),
    "eye_open": (0.09, 0.115),
    "eye_slant": (-0.15, 0.15),
    "gaze": (-0.04, 0.04),
    "brow_gap": (0.17, 0.22),
    "brow_width": (0.18, 0.23),
    "brow_thick": (0.025, 0.05),
    "brow_arch": (0, 0.06),
    "nose_y": (0.17, 0.24),
    "nose_width": (0.09, 0.14),
    "mouth_y": (0.46, 0.54),
    "mouth_width": (0.24, 0.32),
    "lip": (0.045, 0.07),
    "glasses": (0, 1),
    "beard": (0, 1),
    # light and camera
    "light_x": (-0.32, 0.32),
    "light_y": (-0.25, 0.15),
    "contrast": (0.7, 1.15),
    "brightness": (95, 150),
    "backdrop": (20, 230),
    "blur": (0, 0.16),
    "noise": (1, 8),
    # occlusion
    "occluded": (0, 1),
    "cover_x": (-0.9, 0.9),
    "cover_y": (-0.9, 0.9),
    "cover_turn": (-1, 1),
    "cover_tone": (0, 255),
}


def demo(
    images: Annotated[int, Ge(70), Le(1_000_000)],
    limit: Annotated[int, Ge(1)] | None,
    seed: Annotated[int, Ge(0)],
    normalize: Normalization,
) -> Data:
    """A training split of `images` faces, and a validation and a test split of a sixth as many. The
    test split has no labels.
    """
    splits = {}
    sizes = {"train": images, "validation": images // 6, "test": images // 6}
    for stream, (name, count) in enumerate(sizes.items()):
        rng = np.random.Generator(np.random.PCG64([seed, stream]))
        shown = class_mix(count, rng)
        if name == "test":
            labels = torch.full((count,), -1)
        else:
            labels = torch.tensor(mislabel(shown, rng), dtype=torch.int64)
        drawn = torch.from_numpy(draw(shown, rng, min(count, limit or count)))
        splits[name] = Faces(drawn, labels[:limit], [str(i) for i in range(len(drawn))])
    return Data(splits, normalize)


def class_mix(count: int, rng: np.random.Generator) -> np.ndarray:
    """Classes of `count` faces, int64 N: one face of each class, the others by MIX, shuffled."""
    rest = count - len(CLASSES)
    by_mix = np.searchsorted(np.cumsum(MIX)[:-1], (np.arange(rest) + 0.5) / rest)
    classes = np.concatenate([np.arange(len(CLASSES)), by_mix])
    order = np.argsort(rng.random(count), kind="stable")
    return classes[order]


def mislabel(shown: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels with errors: a few faces pass their labels on to one another, which preserves the mix
    of classes.
    """
    labels = shown.copy()
    exchanged = np.flatnonzero(rng.random(len(shown)) < MISLABELLED)
    labels[exchanged] = shown[np.roll(exchanged, 1)]
    return labels


def intensities(shown: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The strength of each of AUS in each face, N×AUs, from 0 to 1."""
    chance = np.zeros((len(CLASSES), len(AUS)))  # that a face of the class shows the AU
    for row, name in enumerate(CLASSES):
        always, sometimes = EXPRESSIONS[name]
        for column, au in enumerate(AUS):
            if au in always:
                chance[row, column] = 0.95
            elif au in sometimes:
                chance[row, column] = 0.35
    belongs = chance[shown] > 0
    # Other AUs may be seen too: each in 4 % of the faces, at half strength.
    shows = rng.random(belongs.shape) < np.maximum(chance, 0.04)[shown]
    strength_of_face = 0.45 + 0.55 * np.sqrt(rng.random((len(shown), 1)))
    strength_of_au = 0.6 + 0.4 * rng.random(belongs.shape)
    return shows * strength_of_face * strength_of_au * np.where(belongs, 1, 0.5)


def draw(shown: np.ndarray, rng: np.random.Generator, keep: int) -> np.ndarray:
    """The first `keep` faces of the classes `shown`, uint8 keep×1×48×48.

    Uses only + - * / and sqrt, which IEEE 754 rounds identically everywhere. exp, sin and sum
    differ between libraries.
    """
    low, high = np.array(list(TRAITS.values())).T
    traits = low + (high - low) * rng.random((len(shown), len(low)))
    parameters = np.concatenate([traits, intensities(shown, rng)], axis=1)
    parameters = parameters[:keep].astype(np.float32)[:, :, None, None]
    pictures = []
    for start in range(0, keep, CHUNK):
        columns = list(parameters[start : start + CHUNK].swapaxes(0, 1))
        face = SimpleNamespace(**dict(zip(TRAITS, columns[: len(TRAITS)], strict=True)))
        au = dict(zip(AUS, columns[len(TRAITS) :], strict=True))
        pictures.append(picture(face, au, rng))
    return np.concatenate(pictures)[:, None]


def turned(x, y, tangent):
    """Coordinates rotated by twice the angle that has this tangent."""
    square = tangent * tangent
    cos = (1 - square) / (1 + square)
    sin = 2 * tangent / (1 + square)
    return x * cos + y * sin, y * cos - x * sin


def oval(x, y, width, height):
    """Signed distance to an ellipse, approximate away from its edge."""
    x, y = x / width, y / height
    return (np.sqrt(x * x + y * y) - 1) * np.minimum(width, height, dtype=np.float32)


def glow(x, y, width, height):
    """1 at the origin, decreasing smoothly to 0 on the ellipse."""
    x, y = x / width, y / height
    near = np.maximum(1 - x * x - y * y, 0)
    return near * near


def stroke(x, y, start, end, width):
    """1 along a segment, decreasing smoothly to 0 at the distance `width`."""
    (start_x, start_y), (end_x, end_y) = start, end
    dx, dy = end_x - start_x, end_y - start_y
    x, y = x - start_x, y - start_y
    along = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
    return glow(x - along * dx, y - along * dy, width, width)


def ripples(y, period):
    """Parallel wrinkles: a triangle wave from 0 to 1."""
    y = y / period
    return np.abs(y - np.floor(y) - 0.5) * 2


class Drawing:
    """A chunk of pictures, painted layer by layer in the coordinates of the heads."""

    def __init__(self, backdrop, pixel):
        self.image, self.pixel = backdrop, pixel

    def fill(self, distance, tone, opacity=1):
        """Paint where the signed distance is negative, with an antialiased edge."""
        self.image += np.clip(0.5 - distance / self.pixel, 0, 1) * opacity * (tone - self.image)

    def shade(self, depth):
        """Darken by this fraction; negative values brighten."""
        self.image *= 1 - depth


def picture(face, au, rng):
    """A chunk of faces, uint8 N×48×48.

    face: the traits. au: the strength of each action unit, by its number. x, y: coordinates of the
    picture; u, v: of the head; m: |u| after the yaw.
    """
    y, x = (np.mgrid[:FACE_SIZE, :FACE_SIZE].astype(np.float32) + 0.5) * (2 / FACE_SIZE) - 1
    u, v = turned((x - face.shift_x) / face.size, (y - face.shift_y) / face.size, face.tilt)
    across = u - face.yaw * (1 - u * u)
    m = np.abs(across)  # one side is drawn, and the other is its mirror image
    side = np.where(u > face.yaw, np.float32(1), np.float32(-1))
    pen = Drawing(face.backdrop * (1 + 0.2 * x), 2 / FACE_SIZE / face.size)
    draw_head(pen, face, au, u, v)
    draw_cheeks(pen, face, au, m, v)
    draw_nose(pen, face, au, m, v)
    draw_eyes(pen, face, au, m, v, side)
    draw_brows(pen, face, au, m, v)
    draw_mouth(pen, face, au, across, v)
    draw_glasses(pen, face, m, v)
    return photographed(pen.image, face, x, y, rng)


def draw_glasses(pen, face, m, v):
    frame = np.abs(oval(m - face.eye_x, v - face.eye_y - 0.02, 0.24, 0.2)) - 0.018
    bridge = np.maximum(m - 0.1, np.abs(v - face.eye_y + 0.03) - 0.02)
    pen.fill(np.minimum(frame, bridge), 35, face.glasses > 0.88)


def draw_head(pen, face, au, u, v):
    a = np.abs(u)
    strands = face.hair * (0.9 + 0.2 * ripples(a + 0.2 * v * v, 0.21))
    long = (face.long_hair > 0.6).astype(np.float32)
    behind = oval(
        u, (v + 0.12) * (1 - 0.6 * long * (v > 0)), face.width * (1.1 + 0.14 * long), 0.94
    )
    pen.fill(np.maximum(behind, v - 0.05 - 9 * long), strands * 0.8)
    pen.fill(np.maximum(a - 0.5 * face.width, 0.4 - v), face.skin * 0.55)  # neck
    pen.fill(oval(a - face.width, v - 0.02, 0.08, 0.17), face.skin * 0.8)  # ears
    height = np.where(v > 0, face.height * (1 + 0.1 * au[26]), face.height)
    head = oval(u * (1 + face.taper * np.maximum(v, 0) * v), v, face.width, height)
    rim = 1 + head / face.width
    pen.fill(head, face.skin * (1.06 - 0.3 * rim * rim * rim * rim))
    fringe = v + face.hairline - 0.2 * u * u - 2.2 * u * u * u * u - face.parting * u
    pen.fill(np.maximum(head - 0.03, fringe), strands)
    bearded = np.clip(face.beard * 5 - 4, 0, 1)
    pen.fill(np.maximum(head, 0.62 - v - 0.9 * np.maximum(a - 0.25, 0)), face.hair, 0.8 * bearded)


def draw_cheeks(pen, face, au, m, v):
    lift = 0.08 * np.maximum(au[6], au[12])
    pen.shade(-0.16 * (0.4 + au[6]) * glow(m - 0.38, v - 0.2 + lift, 0.24, 0.2))
    wing = (face.nose_width + 0.04, face.nose_y - 0.08 * au[9])
    corner = (face.mouth_width + 0.1 + 0.08 * au[12], face.mouth_y - 0.1 * au[12] + 0.05 * au[15])
    fold = 0.08 + 0.32 * au[12] + 0.35 * au[9] + 0.3 * au[10]
    pen.shade(np.minimum(fold, 0.45) * stroke(m, v, wing, corner, 0.075))
    crow_foot = (face.eye_x + 0.21, face.eye_y), (face.eye_x + 0.31, face.eye_y + 0.04)
    pen.shade(0.3 * au[6] * stroke(m, v, *crow_foot, 0.06))


def draw_nose(pen, face, au, m, v):
    tip = face.nose_y - 0.06 * au[9]
    pen.shade(0.16 * stroke(m, v, (0.09, face.eye_y), (face.nose_width, tip), 0.08))
    pen.shade(-0.14 * stroke(m, v, (0, face.eye_y + 0.05), (0, tip - 0.03), 0.07))
    wing = face.nose_width * (1 + 0.25 * au[9])
    pen.shade(0.35 * glow(m - wing, v - tip, 0.06, 0.09))
    pen.shade(0.65 * glow(m - 0.5 * wing, v - tip - 0.05, 0.06, 0.05))
    pen.shade(0.2 * glow(m, v - tip - 0.08, 0.16, 0.06))
    pen.shade(0.4 * au[9] * glow(m, v - face.eye_y - 0.06, 0.2, 0.2) * ripples(v - 0.4 * m, 0.11))


def draw_eyes(pen, face, au, m, v, side):
    x, y = m - face.eye_x, v - face.eye_y
    y, t = y - face.eye_slant * x, x / face.eye_width
    bow = 1 - t * t
    squint = np.maximum(au[7], au[9])
    stare = au[5] * (1 - 0.7 * np.maximum(au[4] - au[1], 0))  # a lowered brow covers a raised lid
    upper = -face.eye_open * (1 + 0.8 * stare - 0.3 * squint - 0.2 * au[6]) * bow
    lower = face.eye_open * (0.75 + 0.1 * au[5] - 0.55 * np.maximum(squint, 1.1 * au[6])) * bow
    pen.shade(0.22 * glow(x, y + 0.02, 0.27, 0.2))  # socket
    pen.shade(0.25 * (0.3 + np.maximum(squint, au[6])) * glow(x, y - 0.12, 0.2, 0.06))  # bag
    inside = np.maximum(upper - y, y - lower)
    pen.fill(inside, 60 + 0.75 * face.skin)
    iris = np.sqrt(np.square(x - side * face.gaze) + np.square(y + 0.01))
    pen.fill(np.maximum(inside, iris - 0.078), 25)
    lashes = np.maximum(upper - 0.02 - 0.04 * bow - y, y - upper - 0.006)
    pen.fill(lashes, face.skin * 0.22)
    pen.fill(np.maximum(lower - y, y - lower - 0.01 - 0.015 * bow), face.skin * 0.5, 0.6)


def draw_brows(pen, face, au, m, v):
    x = m - face.eye_x - 0.01 + 0.05 * np.maximum(au[4], au[9])
    t = np.minimum(x / face.brow_width, 2)
    inner = np.clip(0.5 - 0.5 * t, 0, 1.2)
    outer = np.clip(0.5 + 0.5 * t, 0, 1.2)
    lowered = np.maximum(au[4], au[9])  # the nose wrinkler also lowers the brows
    raised = np.maximum(au[1], au[2]) * glow(m, v - face.eye_y + 0.47, 0.4, 0.16)
    pen.shade(0.3 * raised * ripples(v, 0.13))  # forehead wrinkles
    frown_line = stroke(m, v, (0.05, face.eye_y - 0.28), (0.06, face.eye_y - 0.1), 0.055)
    pen.shade(0.4 * lowered * frown_line)
    y = face.eye_y - face.brow_gap + face.brow_arch * (t * t - 0.5)
    y = y - 0.16 * au[1] * inner * inner - 0.13 * au[2] * outer
    y = y + lowered * (0.05 + 0.11 * inner * (1 - 0.8 * au[1]))
    half = face.brow_thick * (1.1 - 0.3 * t) * (1 - t * t * t * t)
    pen.fill(np.abs(v - y) - half, np.minimum(face.hair, 0.4 * face.skin))


def draw_mouth(pen, face, au, x, v):
    # A dropped jaw narrows the mouth unless something pulls it wide.
    rounded = au[26] * (1 - au[12]) * (1 - au[20])
    width = face.mouth_width * (
        1 + 0.32 * au[12] + 0.3 * au[20] + 0.08 * au[15] - 0.15 * au[23] - 0.3 * rounded
    )
    t = x / width
    bow, square = 1 - t * t, 1 - t * t * t * t
    # AU 9 lifts the lip against AU 15.
    fall = 0.2 * au[15] * (1 - 0.6 * au[9]) + 0.08 * au[20] + 0.08 * au[23]
    line = face.mouth_y + (fall - 0.22 * au[12]) * (t * t - 0.35)
    lip = face.lip * (1 - 0.6 * au[23] - 0.2 * au[12])
    opened = 0.012 + 0.12 * au[25] * (1 - 0.5 * au[23])
    jaw = au[26] * (1 - 0.45 * au[20])
    top = line - (opened * 0.4 + 0.06 * au[10] + 0.05 * au[20]) * square
    top = top - 0.11 * jaw * (1 - au[12]) * bow
    bottom = line + (opened * 0.6 + 0.09 * au[16] + 0.05 * au[20]) * square + 0.24 * jaw * bow
    pen.shade(0.25 * au[15] * glow(np.abs(x) - width - 0.02, v - face.mouth_y - 0.12, 0.09, 0.12))
    below_lip = glow(x, v - bottom - lip - 0.08, 0.24, 0.08)
    pen.shade(0.25 * (1 + au[23]) * below_lip)
    cupid = top - lip * (0.9 - 0.25 * glow(x, 0, 0.08, 1)) * bow
    pen.fill(np.maximum(cupid - v, v - bottom - 1.15 * lip * bow), face.skin * 0.58)
    pen.shade(-0.2 * glow(x, v - bottom - 0.6 * lip, 0.15, 0.05))
    mouth = np.maximum(top - v, v - bottom)
    pen.fill(mouth, 22)
    teeth = np.clip(au[12] + au[10] + 0.8 * au[20] + 0.3 * au[25], 0, 1)
    pen.fill(np.maximum(mouth, v - top - 0.1 * teeth * square) + 0.012, 235, teeth > 0.15)
    lower = np.clip(au[16] + 0.6 * au[20], 0, 1)
    pen.fill(np.maximum(mouth, bottom - 0.07 * lower * square - v) + 0.012, 215, lower > 0.15)


def photographed(image, face, x, y, rng):
    """The picture, uint8, with light from one side, blur, noise, and a bar or hand before some
    faces.
    """
    a, b = turned(x - face.cover_x, y - face.cover_y, face.cover_turn)
    bar = np.maximum(np.abs(b) - 0.13, 0)
    hand = np.maximum(oval(a - 0.5, b, 0.55, 0.3), 0)
    fingers = face.skin * (0.9 - 0.35 * np.square(np.square(ripples(b, 0.16))))
    is_bar = face.occluded > 0.94
    distance = np.where(is_bar, bar, hand)
    tone = np.where(is_bar, face.cover_tone, fingers)
    image += np.clip(1 - distance * 24, 0, 1) * (face.occluded > 0.88) * (tone - image)
    light = 1 + face.light_x * x + face.light_y * y
    image = (image * light - 120) * face.contrast + face.brightness
    image[:, 1:-1] += face.blur * (image[:, 2:] + image[:, :-2] - 2 * image[:, 1:-1])
    image[:, :, 1:-1] += face.blur * (image[:, :, 2:] + image[:, :, :-2] - 2 * image[:, :, 1:-1])
    grain = rng.random((len(image), 3, FACE_SIZE, FACE_SIZE), dtype=np.float32)
    image += 2 * face.noise * (grain[:, 0] + grain[:, 1] + grain[:, 2] - 1.5)
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)
