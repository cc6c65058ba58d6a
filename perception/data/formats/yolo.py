"""Boxes in YOLO's layout: a ``data.yaml``, and a text file per image with lines ``class cx cy width height``.

The labels of ``.../images/train/a.jpg`` are in ``.../labels/train/a.txt``. Without a folder ``images`` in the path,
they are in the image's folder. Numbers are fractions of the image's sides. A polygon becomes the box around it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perception.config import config_dataclass
from perception.data.class_names import ClassNames, map_classes
from perception.data.formats.boxes import ROTATED_BOXES, BoxTable, UnlabeledPolicy, map_box_labels, select_labeled_rows
from perception.data.formats.yolo_data import read_yolo_data_file
from perception.data.formats.yolo_tree import YoloTree, find_label_files
from perception.files.folders import require_file
from perception.files.images import read_image_size
from perception.files.index_cache import load_or_build
from perception.files.text_files import check_text_file, iterate_rows, parse_floats, read_text
from perception.types import Camera, DataError, Instances

_UNIT_PIXELS = 1024
"""Side of the virtual image, in pixels, to which fractions are scaled. A power of two causes no rounding."""

_TOLERANCE = 0.01 + 1e-9
"""Largest distance of a fraction from the range 0 to 1."""


@config_dataclass
class YoloConfig:
    """Configuration of the reader for YOLO boxes.

    Attributes:
        data: the data set's YAML file, relative to the data root. ``obj.data`` and ``classes.txt`` are also supported
            (`read_yolo_data_file`).
        split: train, val or test.
        format: name of this reader.
        task: detection task of the recipe.
        path: folder that the YAML's paths start from, instead of its ``path``; absolute, or relative to the data root.
        rename: class mapping to the recipe, as in `CocoConfig`; also the next three.
        ignore: see ``rename``.
        background: see ``rename``.
        labels_only: see ``rename``.
        scores: for lines with a score in a sixth column (predictions): "refuse" them, or "drop" the column.
        unlabeled: handling of images without a label file or with an empty one, as in `CocoConfig`.
        max_missing: largest fraction of the images in a list (.txt) that may be missing.
    """

    data: str
    split: Literal["train", "val", "test"] = "train"
    format: Literal["yolo"] = "yolo"
    task: str = "detection"
    path: str | None = None
    rename: dict[str, str] | None = None
    ignore: ClassNames = ()
    background: ClassNames = ()
    labels_only: tuple[str, ...] | None = None
    scores: Literal["refuse", "drop"] = "refuse"
    unlabeled: UnlabeledPolicy = None
    max_missing: float = 0.01

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the reader may label."""
        return (self.task,)


class YoloReader:
    """Reader of YOLO boxes. An image without a label file, or with an empty one, has no boxes (``unlabeled``).

    Additional attributes: ``names`` (in the order of their ids) and ``class_map``.
    """

    Config = YoloConfig

    def __init__(self, config: YoloConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        path = require_file(root, config.data, "YOLO's data.yaml")
        content = read_yolo_data_file(path)
        self.names = content.names
        self.class_map = map_classes(
            self.names, classes[config.task], str(path), config.rename, config.ignore, config.background,
            config.labels_only,
        )  # fmt: skip
        self.class_maps = {config.task: self.class_map}
        tree = YoloTree(path, content, root, config.path)
        pictures = tree.find_images(config.split, config.max_missing, self.problems)
        labels = find_label_files(pictures, tree.boundary, self.problems, tree.is_folder_split(config.split))
        files = [label for label in labels if label is not None]
        arrays = self._load_boxes(files, content.num_keypoint_values)
        with_file = np.array([label is not None for label in labels])
        annotated = with_file.copy()
        annotated[with_file] = np.bincount(arrays["file"], minlength=len(files)) > 0
        rows, self.num_unannotated = select_labeled_rows(annotated, config.unlabeled, str(path), self.problems)
        if config.unlabeled != "skip" and len(files) < len(labels):
            self.problems["images without a label file, taken as empty"] += len(labels) - len(files)
        self.images = [pictures[row].path for row in rows]
        places = np.full(len(labels), -1)
        places[rows] = np.arange(len(rows))
        self._box_table = self._build_box_table(arrays, files, places[with_file])

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Instances]:
        """Return the boxes, clipped to the image. Without ``size``, reads the image's header (may raise ImageError)."""
        height, width = read_image_size(self.images[index]) if size is None else size
        found = self._box_table.instances(index)
        sides = np.array([width, height, width, height], np.float32) / _UNIT_PIXELS
        boxes = found.boxes * sides
        return {
            self.config.task: Instances(boxes, found.labels, ignore=found.ignore, labeled_classes=found.labeled_classes)
        }

    def camera(self, index: int) -> Camera | None:
        """Return None: the intrinsics are unknown."""
        return None

    def _load_boxes(self, files: Sequence[Path], keypoints: int) -> dict[str, NDArray]:
        for path in files:
            check_text_file(path)
        count, scores = len(self.names), self.config.scores == "drop"
        kind = f"yolo 2, {count} classes, {keypoints} numbers more, scores {scores}"
        return load_or_build(kind, files, lambda: _parse_files(files, count, keypoints, scores))

    def _build_box_table(self, arrays: dict[str, NDArray], files: Sequence[Path], places: NDArray) -> BoxTable:
        """Boxes of all label files, in pixels of a `_UNIT_PIXELS` square image. places: index of each file's image."""
        if turned := int(arrays["turned"].sum()):
            self.problems[ROTATED_BOXES] += turned
        if repeated := int(arrays["repeated"].sum()):
            self.problems["duplicate boxes skipped"] += repeated
        place, values, off = arrays["file"], arrays["values"], arrays["off"]
        outside = ~(off <= _TOLERANCE) & np.isfinite(values).all(1)
        if outside.any():
            first = files[int(place[outside.argmax()])]
            if outside.mean() > 0.5:
                raise DataError(
                    f"{first} and others: {int(outside.sum())} of {len(outside)} boxes extend outside 0 to 1. Expected "
                    "fractions of the image's width and height, not pixels."
                )
            self.problems["boxes with numbers outside 0 to 1 skipped"] += int(outside.sum())
        centers, halves = values[:, :2], values[:, 2:] / 2
        with np.errstate(invalid="ignore", over="ignore"):
            corners = np.concatenate([centers - halves, centers + halves], 1) * _UNIT_PIXELS
        indices, doubts = map_box_labels(self.names, self.class_map)
        kinds = arrays["kind"]
        return BoxTable(
            np.where(outside, -1, places[place]), corners, np.array(indices)[kinds], np.array(doubts)[kinds],
            [(_UNIT_PIXELS, _UNIT_PIXELS)] * len(self.images), self.class_map, self.problems,
        )  # fmt: skip


def _parse_files(files: Sequence[Path], num_classes: int, keypoints: int, drop_scores: bool) -> dict[str, NDArray]:
    """All lines of all label files.

    file int32 [M], index of the file; kind int32 [M], class id; values float64 [M, 4], cx cy width height;
    off float64 [M], largest distance of the line's numbers from the range 0 to 1; turned int32 [M], 1 for a rotated
    box; repeated int32 [F], number of duplicate lines dropped in each file.
    """
    places, kinds, boxes, repeated = [], [], [], []
    for position, path in enumerate(files):
        lines = read_yolo_boxes(path, num_classes, keypoints, drop_scores)
        unique = dict.fromkeys(lines)
        repeated.append(len(lines) - len(unique))
        places.extend([position] * len(unique))
        for kind, *box in unique:
            kinds.append(kind)
            boxes.append(box)
    table = np.array(boxes, np.float64).reshape(-1, 6)
    return {
        "file": np.array(places, np.int32),
        "kind": np.array(kinds, np.int32),
        "values": np.ascontiguousarray(table[:, :4]),
        "off": table[:, 4].copy(),
        "turned": table[:, 5].astype(np.int32),
        "repeated": np.array(repeated, np.int32),
    }


YoloLine: TypeAlias = tuple[int, float, float, float, float, float, bool]
"""Class id, cx, cy, width, height, largest distance of the numbers from 0 to 1, whether it is a rotated box."""


def read_yolo_boxes(path: Path, num_classes: int, keypoints: int = 0, drop_scores: bool = False) -> list[YoloLine]:
    """Read the lines of a label file.

    Args:
        path: label file.
        num_classes: number of classes.
        keypoints: count of numbers after the box of every line (a pose). They are ignored.
        drop_scores: ignore a sixth column with values from 0 to 1.

    Raises:
        DataError: a line has other columns or an unknown class. The message has the line number.
    """
    boxes = []
    for number, words in iterate_rows(read_text(path)):
        where = f"{path}, line {number}"
        kind, *values = parse_floats(words, where, "numbers: class cx cy width height, or a class and a polygon")
        if not (0 <= kind < num_classes and kind.is_integer()):
            raise DataError(f"{where}: class {words[0][:40]!r}. Expected an integer from 0 to {num_classes - 1}.")
        if drop_scores and not keypoints and len(values) == 5 and 0 <= values[4] <= 1:
            values.pop()
        if len(values) != 4 + keypoints and (keypoints or len(values) < 6 or len(values) % 2):
            raise DataError(f"{where}: {len(words)} columns. {_describe_expected(len(values), keypoints)}")
        if len(values) == 4 + keypoints:
            box, turned = (values[0], values[1], values[2], values[3]), False
            off = max(0.0, max(box) - 1, -min(box))
        else:
            (box, off), turned = _enclose_polygon(values), _is_rotated(values)
        boxes.append((int(kind), *box, off, turned))
    return boxes


def _enclose_polygon(points: list[float]) -> tuple[tuple[float, float, float, float], float]:
    """The box around a polygon x1 y1 x2 y2 ..., and how far it extends outside 0 to 1."""
    if not all(map(math.isfinite, points)):
        return (math.nan, math.nan, math.nan, math.nan), 0.0
    left, right, top, bottom = min(points[::2]), max(points[::2]), min(points[1::2]), max(points[1::2])
    box = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    return box, max(0.0, -left, -top, right - 1, bottom - 1)


def _is_rotated(points: list[float]) -> bool:
    """Whether a polygon is a rotated rectangle (tested as a parallelogram: the image's aspect ratio is unknown)."""
    if len(points) != 8 or not all(map(math.isfinite, points)):
        return False
    (x1, y1, x2, y2, x3, y3, x4, y4), near = points, 0.002
    straight = any(max(abs(a), abs(b)) < near for a, b in ((x1 - x2, y2 - y3), (y1 - y2, x2 - x3)))
    return abs(x1 + x3 - x2 - x4) < near and abs(y1 + y3 - y2 - y4) < near and not straight


def _describe_expected(found: int, keypoints: int) -> str:
    if keypoints:
        return f"Expected {5 + keypoints}: class cx cy width height, and the {keypoints} numbers of kpt_shape."
    if found == 5:
        return (
            "Expected 5: class cx cy width height. A sixth column is a score or an angle. Lines with scores (0 to 1) "
            "are predictions, not labels. To train on them anyway, give this reader scores: drop."
        )
    return "Expected 5 (class cx cy width height), or a class and three or more polygon points x y."
