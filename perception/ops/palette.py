"""The colours of classes, the same in pictures, legends and reports. numpy only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perception.types import IGNORE_INDEX, DenseMap, LabelSpace

CITYSCAPES: dict[str, tuple[int, int, int]] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
"""Colours of the Cityscapes classes (Cordts et al. 2016)."""
SYNONYMS = {
    "pavement": "sidewalk",
    "tree": "vegetation",
    "sign": "traffic sign",
    "sign symbol": "traffic sign",
    "pedestrian": "person",
    "bicyclist": "rider",
    "vehicle": "car",
    "motorbike": "motorcycle",
    "motobike": "motorcycle",
    "bike": "bicycle",
}
"""Names that other data sets give to Cityscapes' classes."""

TONES = ((0.85, 0.95), (0.55, 0.7), (0.95, 0.6), (0.4, 0.95), (0.75, 0.42))
"""Saturation and value."""


def palette(classes: Sequence[str]) -> NDArray[np.uint8]:
    """One RGB colour per class [C, 3]: Cityscapes' for its names, otherwise hues a golden angle apart."""
    colors = []
    for k, name in enumerate(classes):
        plain = name.lower().replace("_", " ").replace("-", " ").strip()
        known = CITYSCAPES.get(SYNONYMS.get(plain, plain))
        hue = (0.08 + k * 0.6180339887) % 1.0  # close hues are 8, 13 or 21 places apart: never of one of the five tones
        mixed = colorsys.hsv_to_rgb(hue, *TONES[k % len(TONES)])
        colors.append(known or tuple(round(255 * part) for part in mixed))
    return np.array(colors, np.uint8).reshape(-1, 3)


def names_in(space: LabelSpace | None, classes: Sequence[str]) -> tuple[str, ...]:
    """The task's classes, then the names of the sets of several classes that a source's ids stand for."""
    sets = () if space is None else zip(space.names, space.sets, strict=True)
    return (*classes, *(name or "other" for name, each in sets if len(each) > 1))


def in_classes(label_map: DenseMap, classes: Sequence[str]) -> tuple[DenseMap, tuple[str, ...]]:
    """The map with ids of the task's classes, or of sets of them, and the names of these ids. As it is where its ids
    are the classes; what bytes cannot number becomes void."""
    space = label_map.classes
    if space is None:
        return label_map, tuple(classes)
    sets = iter(range(len(classes), IGNORE_INDEX))
    ids = [each[0] if len(each) == 1 else next(sets, IGNORE_INDEX) for each in space.sets]
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[: len(ids)] = ids
    values = table[np.asarray(label_map.values)]
    known = np.asarray(label_map.valid, np.bool_) & (values != IGNORE_INDEX)
    return DenseMap(values, known), names_in(space, classes)
