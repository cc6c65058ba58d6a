"""Class colors for images, legends and reports, distinguishable with color blindness too. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from perception.types import IGNORE_INDEX, DenseMap, LabelSpace

CITYSCAPES_COLORS: dict[str, tuple[int, int, int]] = {
    "road": (137, 61, 113),
    "sidewalk": (246, 17, 250),
    "building": (69, 71, 66),
    "wall": (45, 89, 152),
    "fence": (241, 165, 178),
    "pole": (166, 156, 135),
    "traffic light": (251, 170, 12),
    "traffic sign": (225, 232, 25),
    "vegetation": (57, 122, 38),
    "terrain": (81, 249, 144),
    "sky": (97, 132, 170),
    "person": (205, 72, 115),
    "rider": (254, 104, 24),
    "car": (49, 122, 255),
    "truck": (42, 241, 251),
    "bus": (129, 89, 194),
    "train": (21, 180, 195),
    "motorcycle": (241, 141, 250),
    "bicycle": (178, 109, 25),
}
"""Colors of the Cityscapes classes.

Original colors (Cordts et al. 2016) are kept where distinguishable; its vehicle colors are not. Colors of objects on
the road are light enough for a thin line. Any two colors are 0.13 apart in OKLab, and 0.088 with deuteranopia (one in
twelve men has poor red-green vision)."""
CLASS_SYNONYMS = {
    "pavement": "sidewalk",
    "tree": "vegetation",
    "sign": "traffic sign",
    "sign symbol": "traffic sign",
    "pedestrian": "person",
    "bicyclist": "rider",
    "cyclist": "rider",
    "vehicle": "car",
    "motorbike": "motorcycle",
    "motobike": "motorcycle",
    "bike": "bicycle",
}
"""Names of Cityscapes classes in other data sets."""

MIN_LUMINANCE = 112
"""Minimum luminance of the colors of all other classes."""
_RGB_TO_LMS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_LMS_TO_OKLAB = np.array(
    [[0.2104542553, 0.793617785, -0.0040720468], [1.9779984951, -2.428592205, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.808675766]]
)  # fmt: skip
_DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)


def class_palette(classes: Sequence[str]) -> NDArray[np.uint8]:
    """Return one RGB color per class [C, 3].

    It is the color of its name (`CITYSCAPES_COLORS`), otherwise the candidate farthest from all previous colors.
    """
    return _class_palette(tuple(classes)).copy()


@lru_cache(64)
def _class_palette(classes: tuple[str, ...]) -> NDArray[np.uint8]:
    found: dict[int, tuple[int, int, int]] = {}
    for k, name in enumerate(classes):
        plain = name.lower().replace("_", " ").replace("-", " ").strip()
        known = CITYSCAPES_COLORS.get(CLASS_SYNONYMS.get(plain, plain))
        if known is not None and known not in found.values():
            found[k] = known
    choices = _candidate_colors()
    room = np.full(len(choices), np.inf)
    for taken in ((0, 0, 0), (255, 255, 255), *found.values()):
        room = np.minimum(room, color_distance(choices, np.array(taken)))
    for k in range(len(classes)):
        if k not in found:
            chosen = choices[int(room.argmax())]
            room = np.minimum(room, color_distance(choices, chosen))
            found[k] = tuple(chosen.tolist())
    return np.array([found[k] for k in range(len(classes))], np.uint8).reshape(-1, 3)


def color_distance(colors: NDArray, other: NDArray) -> NDArray[np.float64]:
    """Perceived difference of RGB colors [..., 3]: distance in OKLab (Ottosson 2020).

    The result is the minimum of this and 1.5 times the distance with deuteranopia (Machado et al. 2009).
    """
    ordinary, poor = (
        np.linalg.norm(_to_oklab(colors, without_green) - _to_oklab(other, without_green), axis=-1)
        for without_green in (False, True)
    )
    return np.minimum(ordinary, 1.5 * poor)


def _to_oklab(colors: NDArray, deuteranopia: bool) -> NDArray[np.float64]:
    parts = np.asarray(colors, np.float64) / 255
    light = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    light = np.clip(light @ _DEUTERANOPIA.T, 0, 1) if deuteranopia else light
    return np.cbrt(light @ _RGB_TO_LMS.T) @ _LMS_TO_OKLAB.T


@lru_cache(1)
def _candidate_colors() -> NDArray[np.int64]:
    """[N, 3]: RGB colors that are light enough."""
    steps = np.linspace(0, 255, 12).round().astype(np.int64)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    return grid[grid @ np.array([0.299, 0.587, 0.114]) >= MIN_LUMINANCE]


def mask_class_names(label_space: LabelSpace | None, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the class names of the task, then the names of the multi-class sets of a label space."""
    sets = () if label_space is None else zip(label_space.names, label_space.class_sets, strict=True)
    return (*classes, *(name or "other" for name, each in sets if len(each) > 1))


def resolve_label_space(mask: DenseMap, classes: Sequence[str]) -> tuple[DenseMap, tuple[str, ...]]:
    """Convert a mask to ids of the task's classes, or of sets of them; return it with the names of these ids.

    It is unchanged if its ids are the classes. Sets beyond the range of uint8 become ignored pixels.
    """
    space = mask.label_space
    if space is None:
        return mask, tuple(classes)
    sets = iter(range(len(classes), IGNORE_INDEX))
    ids = [each[0] if len(each) == 1 else next(sets, IGNORE_INDEX) for each in space.class_sets]
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[: len(ids)] = ids
    values = table[np.asarray(mask.values)]
    known = np.asarray(mask.valid, np.bool_) & (values != IGNORE_INDEX)
    return DenseMap(values, known), mask_class_names(space, classes)
