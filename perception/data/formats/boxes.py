"""Boxes of many images, checked once, stored in one array and returned per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perception.data.class_names import BACKGROUND, ClassMap
from perception.types import DataError, Instances

MAX_COORDINATE = 1e5
"""Largest valid absolute coordinate, in pixels."""


ROTATED_BOXES = "turned boxes: the box around them taken"

UnlabeledPolicy: TypeAlias = Literal["skip", "empty"] | None
"""Handling of images without annotations. "skip": not labeled yet, left out. "empty": no objects.

None = no objects, and the doctor asks."""


def select_labeled_rows(
    annotated: NDArray[np.bool_], unlabeled: UnlabeledPolicy, where: str, problems: Counter[str]
) -> tuple[list[int], int]:
    """Select the images to use.

    Args:
        annotated: bool [N], whether each image has annotations.
        unlabeled: handling of images without annotations.
        where: file or folder, for messages.
        problems: counter of skipped items; changed in place.

    Returns:
        The selected rows, and the number of images without annotations that the doctor asks about.

    Raises:
        DataError: no image is left.
    """
    without = int((~annotated).sum())
    if unlabeled != "skip":
        return list(range(len(annotated))), 0 if unlabeled else without
    if without == len(annotated):
        raise DataError(
            f"{where}: none of its {without} images has an annotation, and unlabeled: skip leaves them out. Label "
            "some, or set unlabeled: empty."
        )
    if without:
        problems["images without annotations left out (unlabeled: skip)"] += without
    return np.flatnonzero(annotated).tolist(), 0


class LabeledClasses:
    """Classes that are labeled in each image, completely or partially.

    Args:
        labeled: int [K, 2], pairs of image and class that is labeled in it.
        partial: int [L, 2], the pairs of which only some objects are labeled.
        num_images: number of images.
        num_classes: number of the recipe's classes.
    """

    def __init__(
        self, labeled: NDArray[np.int64], partial: NDArray[np.int64], num_images: int, num_classes: int
    ) -> None:
        self._num_classes, self._kinds = num_classes, []
        for pairs in (labeled, partial):
            sorted = pairs[pairs[:, 0].argsort(kind="stable")]
            self._kinds.append((np.searchsorted(sorted[:, 0], np.arange(num_images + 1)), sorted[:, 1].copy()))

    def class_masks(self, image_index: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return two masks bool [C]: labeled classes, and those of them that are labeled only partially."""
        masks = np.zeros((2, self._num_classes), bool)
        for mask, (starts, labels) in zip(masks, self._kinds, strict=True):
            mask[labels[starts[image_index] : starts[image_index + 1]]] = True
        return masks[0], masks[1]


class BoxTable:
    """Boxes of all images, clipped to their images.

    Boxes without area, outside the image or with NaN or infinite numbers are dropped.

    Args:
        image_indices: int [M], image of each box. Boxes with a negative index (missing image) are dropped.
        corners: float [M, 4], x1 y1 x2 y2 in pixels of the image.
        labels: int [M], index in the recipe's classes, `IGNORED` (ignore region of all classes) or `BACKGROUND`
            (dropped).
        ignore: bool [M], regions that are neither object nor background.
        sizes: (height, width) of every image.
        class_map: gives the labeled classes if ``labeled_classes`` is None.
        problems: counter of dropped and clipped boxes; changed in place.
        labeled_classes: classes that are labeled in each image; None = those of ``class_map`` in all images.
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
        """Return the boxes of one image; empty if it has none."""
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
    """Return the axis-aligned boxes [N, 4] (x1 y1 x2 y2) around rotated rectangles.

    Args:
        centers: [N, 2], x and y.
        sides: [N, 2], width and height.
        angles: [N], rotation about the center, in radians.
    """
    cosine, sine = np.abs(np.cos(angles)), np.abs(np.sin(angles))
    width = sides[:, 0] * cosine + sides[:, 1] * sine
    height = sides[:, 0] * sine + sides[:, 1] * cosine
    half = np.stack([width, height], 1) / 2
    return np.concatenate([centers - half, centers + half], 1)


def map_box_labels(names: Sequence[str], class_map: ClassMap) -> tuple[list[int], list[bool]]:
    """Return the label of each name for a `BoxTable`, and whether the source does not label that class."""
    doubtful = {name: not class_map.is_labeled(name) for name in class_map.indices}
    return [class_map.indices[name] for name in names], [doubtful[name] for name in names]


def clip_boxes(
    corners: NDArray[np.float64], sizes: NDArray[np.float64], problems: Counter[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Clip corners [M, 4] to images of ``sizes`` [M, 2] (height, width); also return a mask [M] of the valid boxes."""
    numbers = np.abs(corners) <= MAX_COORDINATE  # False for NaN
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
