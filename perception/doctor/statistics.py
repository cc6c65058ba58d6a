"""What the labels of many images come to, in bounded memory: counts and histograms that add up."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perception.types import Annotation, DenseMap, ImageLabel, ImageTransform, Instances

SMALL_BOX_SIDE = 8.0
"""Pixels of the network's input: a box whose side (root of its area) is shorter is hard to learn."""
FULL_IMAGE_RATIO = 0.99
"""Share of the image's width and of its height from which on a box covers the whole image."""


@dataclass
class LogHistogram:
    """Positive numbers counted in bins of equal ratio; quantiles are right to about 3 %."""

    low: float
    high: float
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, low: float, high: float) -> LogHistogram:
        """For numbers from ``low`` to ``high``; those beyond count at the ends."""
        return cls(low, high, np.zeros(int(np.ceil(np.log2(high / low) * 24)), np.int64))

    def add(self, values: NDArray) -> None:
        """Count values, all over 0."""
        places = np.log2(np.asarray(values, np.float64).ravel() / self.low) * 24
        places = np.clip(places, 0, len(self.counts) - 1).astype(np.int64)
        self.counts += np.bincount(places, minlength=len(self.counts))

    def quantile(self, fraction: float) -> float:
        """The number under which ``fraction_between`` of them lie; NaN where there is none."""
        total = self.counts.sum()
        if not total:
            return float("nan")
        place = int(np.searchsorted(np.cumsum(self.counts), fraction * total))
        return float(self.low * 2 ** ((min(place, len(self.counts) - 1) + 0.5) / 24))

    def fraction_between(self, low: float, high: float) -> float:
        """Share of the numbers from ``low`` to ``high``."""
        middles = self.low * 2 ** ((np.arange(len(self.counts)) + 0.5) / 24)
        return float(self.counts[(middles >= low) & (middles <= high)].sum() / max(1, self.counts.sum()))


def _create_side_histogram() -> LogHistogram:
    return LogHistogram.empty(1 / 16, 8192)


def _create_depth_histogram() -> LogHistogram:
    return LogHistogram.empty(1e-6, 1e6)


@dataclass
class BoxStatistics:
    """images: labeled ones; num_empty: of them without a box that counts. boxes, in_images, small: per class [C].

    num_ignored: ignore regions. num_full_image: boxes that cover the image. num_repeated: copies within an image.
    sides: of the
    boxes in pixels of the network's input. max_coordinate: largest coordinate. labeled_classes: which classes the
    source labels
    """

    boxes_per_class: NDArray[np.int64]
    images_per_class: NDArray[np.int64]
    small_per_class: NDArray[np.int64]
    labeled_classes: NDArray[np.bool_]
    num_images: int = 0
    num_empty: int = 0
    num_ignored: int = 0
    num_full_image: int = 0
    num_repeated: int = 0
    num_elongated: int = 0
    max_coordinate: float = 0.0
    sides: LogHistogram = field(default_factory=_create_side_histogram)

    @property
    def counts_per_class(self) -> NDArray[np.int64]:
        """How much of each class there is."""
        return self.boxes_per_class


@dataclass
class SegmentationStatistics:
    """pixels, in_images: per class [C]; what is of a super-class counts for each class in it, and what a source does
    not label for none. known, void: pixels with and without a label. num_empty: whole maps without one.

    num_transitions: places where the class changes along a line; num_thin_transitions: of them, where it is but one or
    two pixels wide and
    between two others
    """

    pixels_per_class: NDArray[np.int64]
    images_per_class: NDArray[np.int64]
    num_images: int = 0
    num_labeled_pixels: int = 0
    num_ignored_pixels: int = 0
    num_empty: int = 0
    num_transitions: int = 0
    num_thin_transitions: int = 0

    @property
    def counts_per_class(self) -> NDArray[np.int64]:
        """How much of each class there is."""
        return self.pixels_per_class


@dataclass
class DepthStatistics:
    """holes: pixels without a distance, of ``num_pixels``. constant, empty: images. depths: of a part of the pixels."""

    num_images: int = 0
    num_pixels: int = 0
    num_invalid_pixels: int = 0
    num_constant: int = 0
    num_empty: int = 0
    min_depth: float = float("inf")
    max_depth: float = 0.0
    depths: LogHistogram = field(default_factory=_create_depth_histogram)
    median_depths: LogHistogram = field(default_factory=_create_depth_histogram)


@dataclass
class ClassificationStatistics:
    """positive, in_images: images per class [C] in which it holds. labeled_classes: classes that are stated at all."""

    positives_per_class: NDArray[np.int64]
    images_per_class: NDArray[np.int64]
    labeled_classes: NDArray[np.bool_]
    num_images: int = 0
    num_empty: int = 0
    num_multi_label: int = 0

    @property
    def counts_per_class(self) -> NDArray[np.int64]:
        """How much of each class there is."""
        return self.positives_per_class


TaskStatistics: TypeAlias = BoxStatistics | SegmentationStatistics | DepthStatistics | ClassificationStatistics


def merge_statistics(total: Any, part: Any) -> None:
    """Add the statistics of more images to a total of the same kind."""
    for entry in dataclasses.fields(total):
        mine, other = getattr(total, entry.name), getattr(part, entry.name)
        if isinstance(mine, LogHistogram):
            mine.counts += other.counts
        elif entry.name.startswith("min_"):
            setattr(total, entry.name, min(mine, other))
        elif entry.name.startswith("max_"):
            setattr(total, entry.name, max(mine, other))
        elif entry.name == "labeled_classes":
            setattr(total, entry.name, mine | other)
        else:
            setattr(total, entry.name, mine + other)


def compute_statistics(annotation: Annotation, num_classes: int, transform: ImageTransform) -> TaskStatistics:
    """The statistics of one image's labels for one task. transform: how it is letterboxed into the network's input."""
    if isinstance(annotation, Instances):
        return _compute_box_statistics(annotation, num_classes, transform)
    if isinstance(annotation, ImageLabel):
        return _compute_label_statistics(annotation, num_classes)
    return _compute_mask_statistics(annotation, num_classes) if num_classes else _compute_depth_statistics(annotation)


def _compute_box_statistics(instances: Instances, num_classes: int, transform: ImageTransform) -> BoxStatistics:
    boxes = np.asarray(instances.boxes, np.float64).reshape(-1, 4)
    counted = np.ones(len(boxes), bool) if instances.ignore is None else ~np.asarray(instances.ignore, bool)
    boxes, labels = boxes[counted], np.asarray(instances.labels)[counted]
    sides = (boxes[:, 2:] - boxes[:, :2]).reshape(-1, 2)
    at_input = np.sqrt((sides * transform.scale).prod(1))
    amounts = np.bincount(labels, minlength=num_classes)
    rows = np.column_stack([boxes, labels])
    ratios = sides.max(1, initial=0) / np.maximum(sides.min(1, initial=np.inf), 1e-9)
    found = BoxStatistics(
        boxes_per_class=amounts,
        images_per_class=(amounts > 0).astype(np.int64),
        small_per_class=np.bincount(labels[at_input < SMALL_BOX_SIDE], minlength=num_classes),
        labeled_classes=np.ones(num_classes, bool)
        if instances.labeled_classes is None
        else np.asarray(instances.labeled_classes, bool),
        num_images=1,
        num_empty=int(not len(boxes)),
        num_ignored=int((~counted).sum()),
        num_full_image=int((sides >= FULL_IMAGE_RATIO * np.array(transform.source_size[::-1])).all(1).sum()),
        num_repeated=len(rows) - len(np.unique(rows, axis=0)),
        num_elongated=int((ratios > 20).sum()),
        max_coordinate=float(boxes.max(initial=0)),
    )
    found.sides.add(np.maximum(at_input, 1e-6))
    return found


def _compute_mask_statistics(mask: DenseMap, num_classes: int) -> SegmentationStatistics:
    values, valid = np.asarray(mask.values), np.asarray(mask.valid, bool)
    pixels = np.bincount(values[valid].ravel(), minlength=num_classes)
    if (space := mask.label_space) is not None:
        of_id, pixels = pixels, np.zeros(num_classes, np.int64)
        for k, each in enumerate(space.class_sets):
            if space.names[k] and k < len(of_id):
                pixels[list(each)] += of_id[k]
    lines = values[..., ::4, :]
    left, middle, next, right = lines[..., :-3], lines[..., 1:-2], lines[..., 2:-1], lines[..., 3:]
    begins = (left != middle) & valid[..., ::4, 1:-2]
    one, two = (next != middle) & (next != left), (next == middle) & (right != middle) & (right != left)
    return SegmentationStatistics(
        pixels_per_class=pixels,
        images_per_class=(pixels > 0).astype(np.int64),
        num_images=1,
        num_labeled_pixels=int(valid.sum()),
        num_ignored_pixels=int(valid.size - valid.sum()),
        num_empty=int(not valid.any()),
        num_transitions=int((left != middle).sum()),
        num_thin_transitions=int((begins & (one | two)).sum()),
    )


def _compute_depth_statistics(depth: DenseMap) -> DepthStatistics:
    values, valid = np.asarray(depth.values, np.float32), np.asarray(depth.valid, bool)
    valid = valid & (values > 0)
    found = DepthStatistics(num_images=1, num_pixels=valid.size, num_invalid_pixels=int(valid.size - valid.sum()))
    known = values[valid]
    if not known.size:
        found.num_empty = 1
        return found
    some = known[:: max(1, known.size // 50_000)]
    found.min_depth, found.max_depth = float(known.min()), float(known.max())
    found.num_constant = int(found.min_depth == found.max_depth and known.size > 1)
    found.depths.add(some)
    found.median_depths.add(np.array([np.median(some)]))
    return found


def _compute_label_statistics(label: ImageLabel, num_classes: int) -> ClassificationStatistics:
    positive = (np.asarray(label.values) > 0.5).astype(np.int64)
    return ClassificationStatistics(
        positives_per_class=positive,
        images_per_class=positive,
        labeled_classes=np.ones(num_classes, bool)
        if label.labeled_classes is None
        else np.asarray(label.labeled_classes, bool),
        num_images=1,
        num_empty=int(not positive.any()),
        num_multi_label=int(positive.sum() > 1),
    )
