"""The boxes of many pictures: checked once, kept as one array, given out per picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perception.data.class_names import BACKGROUND, ClassMap
from perception.types import DataError, Instances

HUGE = 1e5
"""A coordinate beyond this many pixels is no coordinate."""


TURNED = "turned boxes: the box around them taken"

Unlabelled: TypeAlias = Literal["skip", "empty"] | None
"""What a picture without annotations is: left out (nobody has labelled it), or one that shows nothing; None = nothing,
and the doctor asks."""


def labelled_rows(
    annotated: NDArray[np.bool_], unlabelled: Unlabelled, where: str, problems: Counter[str]
) -> tuple[list[int], int]:
    """The pictures that ``unlabelled`` leaves, and how many without annotations the doctor should ask about.

    Raises DataError where it leaves none.
    """
    without = int((~annotated).sum())
    if unlabelled != "skip":
        return list(range(len(annotated))), 0 if unlabelled else without
    if without == len(annotated):
        raise DataError(
            f"{where}: none of its {without} pictures has an annotation, and unlabelled: skip leaves them out. Label "
            "some, or take unlabelled: empty."
        )
    if without:
        problems["pictures without annotations left out (unlabelled: skip)"] += without
    return np.flatnonzero(annotated).tolist(), 0


class KnownClasses:
    """Which classes are labelled in pictures 0 to ``pictures - 1``, whole or in part.

    labelled, partly: int [K, 2], picture and class that is labelled in it; those of which not all objects are
    count:            number of the recipe's classes
    """

    def __init__(self, labelled: NDArray[np.int64], partly: NDArray[np.int64], pictures: int, count: int) -> None:
        self._count, self._kinds = count, []
        for pairs in (labelled, partly):
            sorted = pairs[pairs[:, 0].argsort(kind="stable")]
            self._kinds.append((np.searchsorted(sorted[:, 0], np.arange(pictures + 1)), sorted[:, 1].copy()))

    def of(self, picture: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """bool [C] and [C]: what is labelled, and what of it in part."""
        masks = np.zeros((2, self._count), bool)
        for mask, (starts, labels) in zip(masks, self._kinds, strict=True):
            mask[labels[starts[picture] : starts[picture + 1]]] = True
        return masks[0], masks[1]


class BoxTable:
    """Boxes of pictures 0 to ``len(sizes) - 1``, clipped to their pictures.

    positions: int [M], the picture of each box; negative ones are dropped (a picture that is not there)
    corners:   float [M, 4], x1 y1 x2 y2 in pixels of the picture
    labels:    int [M], index in the recipe's classes, `IGNORED` (an ignore region
               of every class) or `BACKGROUND` (dropped)
    ignore:    bool [M], regions that are neither object nor background
    sizes:     (height, width) of every picture
    known:     which classes are labelled in each picture; None = those of ``class_map`` in all

    Boxes without area, outside, or with numbers that are none are dropped; these and clipped ones are counted in
    ``problems``.
    """

    def __init__(
        self,
        positions: Sequence[int] | NDArray,
        corners: NDArray,
        labels: Sequence[int] | NDArray,
        ignore: Sequence[bool] | NDArray,
        sizes: Sequence[tuple[int, int]],
        class_map: ClassMap,
        problems: Counter[str],
        known: KnownClasses | None = None,
    ) -> None:
        place, label = np.asarray(positions, np.int64), np.asarray(labels, np.int64)
        corners = np.asarray(corners, np.float64).reshape(-1, 4)
        unsure = np.asarray(ignore, bool) | (label < 0)
        wanted = (place >= 0) & (label != BACKGROUND)
        place, label, unsure, corners = place[wanted], label[wanted], unsure[wanted], corners[wanted]
        clipped, kept = clip_boxes(corners, np.array(sizes, np.float64).reshape(-1, 2)[place], problems)
        order = np.flatnonzero(kept)[place[kept].argsort(kind="stable")]
        self._starts = np.searchsorted(place[order], np.arange(len(sizes) + 1))
        self._boxes = clipped[order].astype(np.float32)
        self._labels, self._ignore = label[order], unsure[order]
        self._classes, self._known = class_map.classes, known

    def __len__(self) -> int:
        return len(self._boxes)

    def instances(self, picture: int) -> Instances:
        """The boxes of one picture; empty where it has none."""
        rows = slice(self._starts[picture], self._starts[picture + 1])
        ignore, partial = self._ignore[rows], None
        classes = self._classes
        if self._known is not None:
            classes, partial = self._known.of(picture)
        return Instances(
            boxes=self._boxes[rows],
            labels=self._labels[rows],
            ignore=ignore if ignore.any() else None,
            classes=classes,
            partial=partial if partial is not None and partial.any() else None,
        )


def around_turned(
    centres: NDArray[np.float64], sides: NDArray[np.float64], angles: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Corners [N, 4] of the boxes around rectangles of ``sides`` [N, 2], turned about ``centres`` [N, 2].

    angles: [N], in radians
    """
    cosine, sine = np.abs(np.cos(angles)), np.abs(np.sin(angles))
    width = sides[:, 0] * cosine + sides[:, 1] * sine
    height = sides[:, 0] * sine + sides[:, 1] * cosine
    half = np.stack([width, height], 1) / 2
    return np.concatenate([centres - half, centres + half], 1)


def labels_and_doubts(names: Sequence[str], class_map: ClassMap) -> tuple[list[int], list[bool]]:
    """Labels for a `BoxTable` from the source's class names, and which boxes are of a class that it does not label."""
    doubtful = {name: not class_map.labels(name) for name in class_map.index}
    return [class_map.index[name] for name in names], [doubtful[name] for name in names]


def clip_boxes(
    corners: NDArray[np.float64], sizes: NDArray[np.float64], problems: Counter[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Corners [M, 4] clipped to pictures of ``sizes`` [M, 2] (height, width), and which of them are sensible."""
    numbers = np.abs(corners) <= HUGE  # false for NaN
    sane = np.asarray(numbers.all(1) & (corners[:, 2:] > corners[:, :2]).all(1))
    corners = np.where(sane[:, None], corners, 0)
    clipped = np.clip(corners, 0, np.tile(sizes[:, ::-1], 2))
    inside = (clipped[:, 2:] - clipped[:, :2] >= 1e-3).all(1)
    cut = (np.abs(clipped - corners) > 1).any(1)  # annotators' boxes overshoot by rounding
    for kind, which in (
        ("invalid boxes skipped", ~sane),
        ("boxes outside the picture skipped", sane & ~inside),
        ("boxes clipped by more than a pixel", sane & inside & cut),
    ):
        if which.any():
            problems[kind] += int(which.sum())
    return clipped, np.asarray(sane & inside)
