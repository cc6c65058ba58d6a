"""Boxes in YOLO's layout: a ``data.yaml``, and a text file per picture with lines ``class cx cy width height``.

The labels of ``.../images/train/a.jpg`` are in ``.../labels/train/a.txt``; of ``.../a.jpg`` beside it. Numbers are
fractions of the picture's sides. Lines of a class and a polygon give the box around the polygon.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perception.config import configuration
from perception.data.files.folders import existing_file
from perception.data.files.images import read_size
from perception.data.files.index_cache import cached
from perception.data.files.text_files import check_text, floats, read_text, rows
from perception.data.formats.boxes import BoxTable, labels_and_doubts
from perception.data.formats.class_names import Names, map_classes
from perception.data.formats.yolo_tree import YoloTree, label_files, read_data_file
from perception.types import Camera, DataError, Instances

_UNIT = 1024
"""Fractions times this are the pixels of a picture of that size; a power of two, so that nothing is rounded."""

_ROUNDING = 0.01 + 1e-9
"""How far a fraction may lie outside 0 to 1."""


@configuration
class YoloConfig:
    """data: the data set's YAML file, relative to the data root. split: train, val or test in it.

    path:  folder that the YAML's own paths start from, instead of its ``path`` (absolute, or relative to the data root)
    rename, ignore, background, labels_only: from the YAML's names to the recipe's, as in `CocoConfig`
    allow_missing: largest fraction of the pictures in a list (.txt) that may be missing
    """

    data: str
    split: Literal["train", "val", "test"] = "train"
    format: Literal["yolo"] = "yolo"
    task: str = "detection"
    path: str | None = None
    rename: dict[str, str] | None = None
    ignore: Names = ()
    background: Names = ()
    labels_only: tuple[str, ...] | None = None
    allow_missing: float = 0.01

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        return (self.task,)


class YoloReader:
    """Every picture is labelled: one without a label file, or with an empty one, as a picture without boxes.

    Attributes beside the protocol's: ``names`` (in the order of their ids) and ``class_map``.
    """

    Config = YoloConfig

    def __init__(self, config: YoloConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        path = existing_file(root, config.data, "YOLO's data.yaml")
        content = read_data_file(path)
        self.names = content.names
        self.class_map = map_classes(
            self.names, classes[config.task], str(path), config.rename, config.ignore, config.background,
            config.labels_only,
        )  # fmt: skip
        self.class_maps = {config.task: self.class_map}
        tree = YoloTree(path, content, root, config.path)
        pictures = tree.pictures(config.split, config.allow_missing, self.problems)
        self.images = [picture.path for picture in pictures]
        labels = label_files(pictures, tree.boundary, self.problems, tree.names_folders(config.split))
        self._boxes_of = self._boxes(labels, content.keypoints)

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Instances]:
        """Boxes clipped to the picture. Without ``size`` the picture's header is read; PictureError where it cannot."""
        height, width = read_size(self.images[index]) if size is None else size
        found = self._boxes_of.instances(index)
        sides = np.array([width, height, width, height], np.float32) / _UNIT
        boxes = found.boxes * sides
        return {self.config.task: Instances(boxes, found.labels, ignore=found.ignore, classes=found.classes)}

    def camera(self, index: int) -> Camera | None:
        return None

    def _boxes(self, labels: Sequence[Path | None], keypoints: int) -> BoxTable:
        """The boxes of all label files, in pixels of a picture of `_UNIT` x `_UNIT`."""
        given = [(position, path) for position, path in enumerate(labels) if path is not None]
        files, count = [path for _, path in given], len(self.names)
        for path in files:
            check_text(path)
        arrays = cached(
            f"yolo 1, {count} classes, {keypoints} numbers more", files, lambda: _parse(files, count, keypoints)
        )
        if repeated := int(arrays["repeated"].sum()):
            self.problems["boxes given twice skipped"] += repeated
        place, values, off = arrays["file"], arrays["values"], arrays["off"]
        outside = ~(off <= _ROUNDING) & np.isfinite(values).all(1)
        if outside.any():
            first = files[int(place[outside.argmax()])]
            if outside.mean() > 0.5:
                raise DataError(
                    f"{first} and others: {int(outside.sum())} of {len(outside)} boxes reach outside 0 to 1. Expected "
                    "fractions of the picture's width and height, not pixels."
                )
            self.problems["boxes with numbers outside 0 to 1 skipped"] += int(outside.sum())
        centres, halves = values[:, :2], values[:, 2:] / 2
        with np.errstate(invalid="ignore", over="ignore"):
            corners = np.concatenate([centres - halves, centres + halves], 1) * _UNIT
        indices, doubts = labels_and_doubts(self.names, self.class_map)
        positions = np.array([position for position, _ in given], np.int64)[place]
        kinds = arrays["kind"]
        return BoxTable(
            np.where(outside, -1, positions), corners, np.array(indices)[kinds], np.array(doubts)[kinds],
            [(_UNIT, _UNIT)] * len(labels), self.class_map, self.problems,
        )  # fmt: skip


def _parse(files: Sequence[Path], count: int, keypoints: int) -> dict[str, NDArray]:
    """All lines of all label files.

    file int32 [M], its index; kind int32 [M], the class's id; values float64 [M, 4], cx cy width height;
    off float64 [M], how far the line's numbers reach outside 0 to 1; repeated int32 [F], lines dropped in each file.
    """
    places, kinds, boxes, repeated = [], [], [], []
    for position, path in enumerate(files):
        lines = read_boxes(path, count, keypoints)
        unique = dict.fromkeys(lines)
        repeated.append(len(lines) - len(unique))
        places.extend([position] * len(unique))
        for kind, *box in unique:
            kinds.append(kind)
            boxes.append(box)
    table = np.array(boxes, np.float64).reshape(-1, 5)
    return {
        "file": np.array(places, np.int32),
        "kind": np.array(kinds, np.int32),
        "values": np.ascontiguousarray(table[:, :4]),
        "off": table[:, 4].copy(),
        "repeated": np.array(repeated, np.int32),
    }


def read_boxes(path: Path, count: int, keypoints: int = 0) -> list[tuple[int, float, float, float, float, float]]:
    """Class id, cx, cy, width, height, and how far outside 0 to 1 its numbers reach, of every line.

    count: number of classes. keypoints: numbers of every line after the box (a pose), which are left alone.
    Raises DataError with the line where one has other columns, or a class that there is none of.
    """
    boxes = []
    for number, words in rows(read_text(path)):
        where = f"{path}, line {number}"
        kind, *values = floats(words, where, "numbers: class cx cy width height, or a class and a polygon")
        if not (0 <= kind < count and kind.is_integer()):
            raise DataError(f"{where}: class {words[0][:40]!r}. Expected a whole number from 0 to {count - 1}.")
        if len(values) != 4 + keypoints and (keypoints or len(values) < 6 or len(values) % 2):
            raise DataError(f"{where}: {len(words)} columns. {_expected(len(values), keypoints)}")
        if len(values) == 4 + keypoints:
            box = (values[0], values[1], values[2], values[3])
            off = max(0.0, max(box) - 1, -min(box))
        else:
            box, off = _around(values)
        boxes.append((int(kind), *box, off))
    return boxes


def _around(points: list[float]) -> tuple[tuple[float, float, float, float], float]:
    """The box around a polygon x1 y1 x2 y2 ..., and how far it reaches outside 0 to 1."""
    if not all(map(math.isfinite, points)):
        return (math.nan, math.nan, math.nan, math.nan), 0.0
    left, right, top, bottom = min(points[::2]), max(points[::2]), min(points[1::2]), max(points[1::2])
    box = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    return box, max(0.0, -left, -top, right - 1, bottom - 1)


def _expected(found: int, keypoints: int) -> str:
    if keypoints:
        return f"Expected {5 + keypoints}: class cx cy width height, and the {keypoints} numbers that kpt_shape says."
    if found == 5:
        return "Expected 5: class cx cy width height. A sixth column is a score: these are predictions, not labels."
    return "Expected 5 (class cx cy width height), or a class and three or more points x y of a polygon."
