"""What the labels of many pictures come to, in bounded memory: counts and histograms that add up."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perception.types import Annotation, DenseMap, Frame, ImageLabel, Instances

SMALL = 8.0
"""Pixels of the network's input: a box whose side (root of its area) is shorter is hard to learn."""
WHOLE = 0.99
"""Share of the picture's width and of its height from which on a box covers the whole picture."""


@dataclass
class Histogram:
    """Positive numbers counted in bins of equal ratio; quantiles are right to about 3 %."""

    low: float
    high: float
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, low: float, high: float) -> Histogram:
        """For numbers from ``low`` to ``high``; those beyond count at the ends."""
        return cls(low, high, np.zeros(int(np.ceil(np.log2(high / low) * 24)), np.int64))

    def add(self, values: NDArray) -> None:
        """Count values, all over 0."""
        places = np.log2(np.asarray(values, np.float64).ravel() / self.low) * 24
        places = np.clip(places, 0, len(self.counts) - 1).astype(np.int64)
        self.counts += np.bincount(places, minlength=len(self.counts))

    def quantile(self, share: float) -> float:
        """The number under which ``share`` of them lie; NaN where there is none."""
        total = self.counts.sum()
        if not total:
            return float("nan")
        place = int(np.searchsorted(np.cumsum(self.counts), share * total))
        return float(self.low * 2 ** ((min(place, len(self.counts) - 1) + 0.5) / 24))

    def share(self, low: float, high: float) -> float:
        """Share of the numbers from ``low`` to ``high``."""
        middles = self.low * 2 ** ((np.arange(len(self.counts)) + 0.5) / 24)
        return float(self.counts[(middles >= low) & (middles <= high)].sum() / max(1, self.counts.sum()))


def _sides() -> Histogram:
    return Histogram.empty(1 / 16, 8192)


def _metres() -> Histogram:
    return Histogram.empty(1e-6, 1e6)


@dataclass
class BoxStatistics:
    """pictures: labelled ones; empty: of them without a box that counts. boxes, in_pictures, small: per class [C].

    ignored: ignore regions. whole: boxes that cover the picture. repeated: copies within a picture. sides: of the
    boxes in pixels of the network's input. most_corner: largest coordinate. labelled: which classes the source labels
    """

    boxes: NDArray[np.int64]
    in_pictures: NDArray[np.int64]
    small: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    pictures: int = 0
    empty: int = 0
    ignored: int = 0
    whole: int = 0
    repeated: int = 0
    slim: int = 0
    most_corner: float = 0.0
    sides: Histogram = field(default_factory=_sides)

    @property
    def amounts(self) -> NDArray[np.int64]:
        """How much of each class there is."""
        return self.boxes


@dataclass
class MapStatistics:
    """pixels, in_pictures: per class [C]; what is of a super-class counts for each class in it, and what a source does
    not label for none. known, void: pixels with and without a label. empty: whole maps without one.

    changes: places where the class changes along a line; thin: of them, where it is but one or two pixels wide and
    between two others
    """

    pixels: NDArray[np.int64]
    in_pictures: NDArray[np.int64]
    pictures: int = 0
    known: int = 0
    void: int = 0
    empty: int = 0
    changes: int = 0
    thin: int = 0

    @property
    def amounts(self) -> NDArray[np.int64]:
        """How much of each class there is."""
        return self.pixels


@dataclass
class DepthStatistics:
    """holes: pixels without a distance, of ``pixels``. constant, empty: pictures. metres: of a part of the pixels."""

    pictures: int = 0
    pixels: int = 0
    holes: int = 0
    constant: int = 0
    empty: int = 0
    least: float = float("inf")
    most: float = 0.0
    metres: Histogram = field(default_factory=_metres)
    medians: Histogram = field(default_factory=_metres)


@dataclass
class LabelStatistics:
    """positive, in_pictures: pictures per class [C] in which it holds. labelled: classes that are stated at all."""

    positive: NDArray[np.int64]
    in_pictures: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    pictures: int = 0
    empty: int = 0
    several: int = 0

    @property
    def amounts(self) -> NDArray[np.int64]:
        """How much of each class there is."""
        return self.positive


Statistics: TypeAlias = BoxStatistics | MapStatistics | DepthStatistics | LabelStatistics


def merge(total: Any, part: Any) -> None:
    """Add the statistics of more pictures to a total of the same kind."""
    for entry in dataclasses.fields(total):
        mine, other = getattr(total, entry.name), getattr(part, entry.name)
        if isinstance(mine, Histogram):
            mine.counts += other.counts
        elif entry.name.startswith("least"):
            setattr(total, entry.name, min(mine, other))
        elif entry.name.startswith("most"):
            setattr(total, entry.name, max(mine, other))
        elif entry.name == "labelled":
            setattr(total, entry.name, mine | other)
        else:
            setattr(total, entry.name, mine + other)


def measure(annotation: Annotation, classes: int, frame: Frame) -> Statistics:
    """The statistics of one picture's labels for one task. frame: how it is letterboxed into the network's input."""
    if isinstance(annotation, Instances):
        return _boxes(annotation, classes, frame)
    if isinstance(annotation, ImageLabel):
        return _label(annotation, classes)
    return _map(annotation, classes) if classes else _depth(annotation)


def _boxes(instances: Instances, classes: int, frame: Frame) -> BoxStatistics:
    boxes = np.asarray(instances.boxes, np.float64).reshape(-1, 4)
    counted = np.ones(len(boxes), bool) if instances.ignore is None else ~np.asarray(instances.ignore, bool)
    boxes, labels = boxes[counted], np.asarray(instances.labels)[counted]
    sides = (boxes[:, 2:] - boxes[:, :2]).reshape(-1, 2)
    at_input = np.sqrt((sides * frame.scale).prod(1))
    amounts = np.bincount(labels, minlength=classes)
    rows = np.column_stack([boxes, labels])
    ratios = sides.max(1, initial=0) / np.maximum(sides.min(1, initial=np.inf), 1e-9)
    found = BoxStatistics(
        boxes=amounts,
        in_pictures=(amounts > 0).astype(np.int64),
        small=np.bincount(labels[at_input < SMALL], minlength=classes),
        labelled=np.ones(classes, bool) if instances.classes is None else np.asarray(instances.classes, bool),
        pictures=1,
        empty=int(not len(boxes)),
        ignored=int((~counted).sum()),
        whole=int((sides >= WHOLE * np.array(frame.source[::-1])).all(1).sum()),
        repeated=len(rows) - len(np.unique(rows, axis=0)),
        slim=int((ratios > 20).sum()),
        most_corner=float(boxes.max(initial=0)),
    )
    found.sides.add(np.maximum(at_input, 1e-6))
    return found


def _map(label_map: DenseMap, classes: int) -> MapStatistics:
    values, valid = np.asarray(label_map.values), np.asarray(label_map.valid, bool)
    pixels = np.bincount(values[valid].ravel(), minlength=classes)
    if (space := label_map.classes) is not None:
        of_id, pixels = pixels, np.zeros(classes, np.int64)
        for k, each in enumerate(space.sets):
            if space.names[k] and k < len(of_id):
                pixels[list(each)] += of_id[k]
    lines = values[..., ::4, :]
    left, middle, next, right = lines[..., :-3], lines[..., 1:-2], lines[..., 2:-1], lines[..., 3:]
    begins = (left != middle) & valid[..., ::4, 1:-2]
    one, two = (next != middle) & (next != left), (next == middle) & (right != middle) & (right != left)
    return MapStatistics(
        pixels=pixels,
        in_pictures=(pixels > 0).astype(np.int64),
        pictures=1,
        known=int(valid.sum()),
        void=int(valid.size - valid.sum()),
        empty=int(not valid.any()),
        changes=int((left != middle).sum()),
        thin=int((begins & (one | two)).sum()),
    )


def _depth(depth: DenseMap) -> DepthStatistics:
    values, valid = np.asarray(depth.values, np.float32), np.asarray(depth.valid, bool)
    valid = valid & (values > 0)
    found = DepthStatistics(pictures=1, pixels=valid.size, holes=int(valid.size - valid.sum()))
    known = values[valid]
    if not known.size:
        found.empty = 1
        return found
    some = known[:: max(1, known.size // 50_000)]
    found.least, found.most = float(known.min()), float(known.max())
    found.constant = int(found.least == found.most and known.size > 1)
    found.metres.add(some)
    found.medians.add(np.array([np.median(some)]))
    return found


def _label(label: ImageLabel, classes: int) -> LabelStatistics:
    positive = (np.asarray(label.values) > 0.5).astype(np.int64)
    return LabelStatistics(
        positive=positive,
        in_pictures=positive,
        labelled=np.ones(classes, bool) if label.classes is None else np.asarray(label.classes, bool),
        pictures=1,
        empty=int(not positive.any()),
        several=int(positive.sum() > 1),
    )
