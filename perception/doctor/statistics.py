"""Label statistics over many images in bounded memory: additive counts and histograms."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from perception.types import Annotation, DenseMap, ImageLabel, ImageTransform, Instances

SMALL_BOX_SIDE = 8.0
"""Pixels of the network's input. A box with a smaller side (square root of its area) is hard to learn."""
FULL_IMAGE_RATIO = 0.99
"""Minimum share of the image's width and height for a box to cover the whole image."""


@dataclass
class LogHistogram:
    """Histogram of positive numbers with logarithmic bins. Quantiles are accurate to about 3 %.

    Attributes:
        low: lower end of the first bin.
        high: upper end of the last bin.
        counts: int64 [bins], 24 bins per factor of two.
    """

    low: float
    high: float
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, low: float, high: float) -> LogHistogram:
        """Create a histogram from ``low`` to ``high``. Values outside count in the first or last bin."""
        return cls(low, high, np.zeros(int(np.ceil(np.log2(high / low) * 24)), np.int64))

    def add(self, values: NDArray) -> None:
        """Count values. All must be positive."""
        places = np.log2(np.asarray(values, np.float64).ravel() / self.low) * 24
        places = np.clip(places, 0, len(self.counts) - 1).astype(np.int64)
        self.counts += np.bincount(places, minlength=len(self.counts))

    def quantile(self, fraction: float) -> float:
        """Return the value below which ``fraction`` of the numbers lie; NaN if the histogram is empty."""
        total = self.counts.sum()
        if not total:
            return float("nan")
        place = int(np.searchsorted(np.cumsum(self.counts), fraction * total))
        return float(self.low * 2 ** ((min(place, len(self.counts) - 1) + 0.5) / 24))

    def fraction_between(self, low: float, high: float) -> float:
        """Return the share of the numbers from ``low`` to ``high``."""
        middles = self.low * 2 ** ((np.arange(len(self.counts)) + 0.5) / 24)
        return float(self.counts[(middles >= low) & (middles <= high)].sum() / max(1, self.counts.sum()))


def _create_side_histogram() -> LogHistogram:
    return LogHistogram.empty(1 / 16, 8192)


def _create_depth_histogram() -> LogHistogram:
    return LogHistogram.empty(1e-6, 1e6)


@dataclass
class BoxStatistics:
    """Statistics of boxes.

    Attributes:
        boxes_per_class: int64 [C].
        images_per_class: int64 [C].
        small_per_class: int64 [C], boxes smaller than `SMALL_BOX_SIDE`.
        labeled_classes: bool [C], classes that the source labels.
        num_images: labeled images.
        num_empty: labeled images without a box, not counting ignore regions.
        num_ignored: ignore regions.
        num_full_image: boxes that cover the whole image.
        num_repeated: copies of a box within an image.
        num_elongated: boxes with an aspect ratio above 20.
        max_coordinate: largest coordinate, pixels of the image.
        sides: square roots of the box areas, pixels of the network's input.
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
        """The number of boxes per class, int64 [C]."""
        return self.boxes_per_class


@dataclass
class SegmentationStatistics:
    """Statistics of segmentation masks.

    A pixel of a super-class counts for each of its classes. A pixel without a label counts for none.

    Attributes:
        pixels_per_class: int64 [C].
        images_per_class: int64 [C].
        num_images: labeled images.
        num_labeled_pixels: pixels with a label.
        num_ignored_pixels: pixels without a label.
        num_empty: masks with only ignored pixels.
        num_transitions: class changes along image rows.
        num_thin_transitions: class changes at runs of one or two pixels between two other classes.
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
        """The number of pixels per class, int64 [C]."""
        return self.pixels_per_class


@dataclass
class DepthStatistics:
    """Statistics of depth maps.

    Attributes:
        num_images: labeled images.
        num_pixels: pixels of all depth maps.
        num_invalid_pixels: pixels without a depth.
        num_constant: depth maps with the same depth at every valid pixel.
        num_empty: depth maps without valid pixels.
        min_depth: smallest depth, metres.
        max_depth: largest depth, metres.
        depths: depths of a subset of the pixels, metres.
        median_depths: median depth of each image, metres.
    """

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
    """Statistics of image-level labels.

    Attributes:
        positives_per_class: int64 [C], images with the class.
        images_per_class: int64 [C], the same.
        labeled_classes: bool [C], classes that the source labels.
        num_images: labeled images.
        num_empty: images without any class.
        num_multi_label: images with several classes.
    """

    positives_per_class: NDArray[np.int64]
    images_per_class: NDArray[np.int64]
    labeled_classes: NDArray[np.bool_]
    num_images: int = 0
    num_empty: int = 0
    num_multi_label: int = 0

    @property
    def counts_per_class(self) -> NDArray[np.int64]:
        """The number of positive images per class, int64 [C]."""
        return self.positives_per_class


TaskStatistics: TypeAlias = BoxStatistics | SegmentationStatistics | DepthStatistics | ClassificationStatistics


def merge_statistics(total: TaskStatistics, part: TaskStatistics) -> None:
    """Add statistics of more images to a total of the same type, in place."""
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
    """Compute the statistics of one image's labels for one task.

    Args:
        annotation: labels in pixels of the image.
        num_classes: number of classes; 0 for a quantity.
        transform: letterbox of the image into the network's input.

    Returns:
        Statistics of the type that matches the annotation.
    """
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
