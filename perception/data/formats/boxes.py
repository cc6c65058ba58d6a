"""The boxes of many images: checked once, kept as one array, given out per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perception.data.class_names import BACKGROUND, ClassMap
from perception.types import DataError, Instances

MAX_COORDINATE = 1e5
"""A coordinate beyond this many pixels is no coordinate."""


ROTATED_BOXES = "turned boxes: the box around them taken"

UnlabeledPolicy: TypeAlias = Literal["skip", "empty"] | None
"""What an image without annotations is: left out (nobody has labeled it), or one that shows nothing; None = nothing,
and the doctor asks."""


def select_labeled_rows(
    annotated: NDArray[np.bool_], unlabeled: UnlabeledPolicy, where: str, problems: Counter[str]
) -> tuple[list[int], int]:
    """The images that ``unlabeled`` leaves, and how many without annotations the doctor should ask about.

    Raises DataError where it leaves none.
    """
    without = int((~annotated).sum())
    if unlabeled != "skip":
        return list(range(len(annotated))), 0 if unlabeled else without
    if without == len(annotated):
        raise DataError(
            f"{where}: none of its {without} images has an annotation, and unlabeled: skip leaves them out. Label "
            "some, or take unlabeled: empty."
        )
    if without:
        problems["images without annotations left out (unlabeled: skip)"] += without
    return np.flatnonzero(annotated).tolist(), 0


class LabeledClasses:
    """Which classes are labeled in images 0 to ``images - 1``, whole or in part.

    labeled, partial: int [K, 2], image and class that is labeled in it; those of which not all objects are
    num_classes:            number of the recipe's classes
    """

    def __init__(
        self, labeled: NDArray[np.int64], partial: NDArray[np.int64], num_images: int, num_classes: int
    ) -> None:
        self._num_classes, self._kinds = num_classes, []
        for pairs in (labeled, partial):
            sorted = pairs[pairs[:, 0].argsort(kind="stable")]
            self._kinds.append((np.searchsorted(sorted[:, 0], np.arange(num_images + 1)), sorted[:, 1].copy()))

    def class_masks(self, image_index: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """bool [C] and [C]: what is labeled, and what of it in part."""
        masks = np.zeros((2, self._num_classes), bool)
        for mask, (starts, labels) in zip(masks, self._kinds, strict=True):
            mask[labels[starts[image_index] : starts[image_index + 1]]] = True
        return masks[0], masks[1]


class BoxTable:
    """Boxes of images 0 to ``len(sizes) - 1``, clipped to their images.

    image_indices: int [M], the image of each box; negative ones are dropped (an image that is not there)
    corners:   float [M, 4], x1 y1 x2 y2 in pixels of the image
    labels:    int [M], index in the recipe's classes, `IGNORED` (an ignore region
               of every class) or `BACKGROUND` (dropped)
    ignore:    bool [M], regions that are neither object nor background
    sizes:     (height, width) of every image
    labeled_classes:     which classes are labeled in each image; None = those of ``class_map`` in all

    Boxes without area, outside, or with numbers that are none are dropped; these and clipped ones are counted in
    ``problems``.
    """

    def __init__(
        self,
        image_indices: Sequence[int] | NDArray,
        corners: NDArray,
        labels: Sequence[int] | NDArray,
        ignore: Sequence[bool] | NDArray,
        sizes: Sequence[tuple[int, int]],
        class_map: ClassMap,
        problems: Counter[str],
        labeled_classes: LabeledClasses | None = None,
    ) -> None:
        place, label = np.asarray(image_indices, np.int64), np.asarray(labels, np.int64)
        corners = np.asarray(corners, np.float64).reshape(-1, 4)
        unsure = np.asarray(ignore, bool) | (label < 0)
        wanted = (place >= 0) & (label != BACKGROUND)
        place, label, unsure, corners = place[wanted], label[wanted], unsure[wanted], corners[wanted]
        clipped, kept = clip_boxes(corners, np.array(sizes, np.float64).reshape(-1, 2)[place], problems)
        order = np.flatnonzero(kept)[place[kept].argsort(kind="stable")]
        self._starts = np.searchsorted(place[order], np.arange(len(sizes) + 1))
        self._boxes = clipped[order].astype(np.float32)
        self._labels, self._ignore = label[order], unsure[order]
        self._classes, self._labeled_classes = class_map.labeled_classes, labeled_classes

    def __len__(self) -> int:
        return len(self._boxes)

    def instances(self, image_index: int) -> Instances:
        """The boxes of one image; empty where it has none."""
        rows = slice(self._starts[image_index], self._starts[image_index + 1])
        ignore, partial = self._ignore[rows], None
        classes = self._classes
        if self._labeled_classes is not None:
            classes, partial = self._labeled_classes.class_masks(image_index)
        return Instances(
            boxes=self._boxes[rows],
            labels=self._labels[rows],
            ignore=ignore if ignore.any() else None,
            labeled_classes=classes,
            partial_classes=partial if partial is not None and partial.any() else None,
        )


def enclose_rotated_boxes(
    centers: NDArray[np.float64], sides: NDArray[np.float64], angles: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Corners [N, 4] of the boxes around rectangles of ``sides`` [N, 2], turned about ``centers`` [N, 2].

    angles: [N], in radians
    """
    cosine, sine = np.abs(np.cos(angles)), np.abs(np.sin(angles))
    width = sides[:, 0] * cosine + sides[:, 1] * sine
    height = sides[:, 0] * sine + sides[:, 1] * cosine
    half = np.stack([width, height], 1) / 2
    return np.concatenate([centers - half, centers + half], 1)


def map_box_labels(names: Sequence[str], class_map: ClassMap) -> tuple[list[int], list[bool]]:
    """Labels for a `BoxTable` from the source's class names, and which boxes are of a class that it does not label."""
    doubtful = {name: not class_map.is_labeled(name) for name in class_map.indices}
    return [class_map.indices[name] for name in names], [doubtful[name] for name in names]


def clip_boxes(
    corners: NDArray[np.float64], sizes: NDArray[np.float64], problems: Counter[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Corners [M, 4] clipped to images of ``sizes`` [M, 2] (height, width), and which of them are sensible."""
    numbers = np.abs(corners) <= MAX_COORDINATE  # false for NaN
    sane = np.asarray(numbers.all(1) & (corners[:, 2:] > corners[:, :2]).all(1))
    corners = np.where(sane[:, None], corners, 0)
    clipped = np.clip(corners, 0, np.tile(sizes[:, ::-1], 2))
    inside = (clipped[:, 2:] - clipped[:, :2] >= 1e-3).all(1)
    cut = (np.abs(clipped - corners) > 1).any(1)  # annotators' boxes overshoot by rounding
    for kind, which in (
        ("invalid boxes skipped", ~sane),
        ("boxes outside the image skipped", sane & ~inside),
        ("boxes clipped by more than a pixel", sane & inside & cut),
    ):
        if which.any():
            problems[kind] += int(which.sum())
    return clipped, np.asarray(sane & inside)
