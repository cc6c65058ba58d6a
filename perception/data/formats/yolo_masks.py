"""Polygons in YOLO's layout as segmentation masks: a text file per image with lines ``class x1 y1 x2 y2 x3 y3 ...``.

The file layout is that of boxes (see `perception.data.formats.yolo`). Numbers are fractions of the image's sides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perception.config import config_dataclass
from perception.data.class_names import UNMASKED, ClassNames, Superclasses, map_mask_classes, mask_value
from perception.data.formats.boxes import UnlabeledPolicy, select_labeled_rows
from perception.data.formats.rle_masks import MASK_FAULTS, draw_masks, encode_rle
from perception.data.formats.yolo_data import read_yolo_data_file
from perception.data.formats.yolo_tree import YoloTree, find_label_files
from perception.files.folders import require_file
from perception.files.images import read_image_size
from perception.files.text_files import check_text_file, iterate_rows, parse_floats, read_text
from perception.types import IGNORE_INDEX, Camera, DataError, DenseMap

_MAX_BLANK_BYTES = 64
"""Files up to this size, in bytes, are read when opened: they may contain only blank lines or a byte order mark."""


@config_dataclass
class YoloMasksConfig:
    """Configuration of the reader for YOLO polygons.

    Attributes:
        data: the data set's YAML file, relative to the data root.
        split: train, val or test.
        format: name of this reader.
        task: segmentation task of the recipe.
        path: folder that the YAML's paths start from, instead of its ``path``, as in `YoloConfig`.
        unmasked_class: the recipe's class of the pixels without a polygon; "rest" = any class without polygons;
            None = ignored.
        rename: class mapping to the recipe, as in `SegmentationMasksConfig`; also the next three.
        ignore: see ``rename``.
        labels_only: see ``rename``.
        superclasses: see ``rename``.
        unlabeled: handling of images without a label file or with an empty one, as in `CocoConfig`.
        max_missing: largest fraction of the images in a list (.txt) that may be missing.
    """

    data: str
    split: Literal["train", "val", "test"] = "train"
    format: Literal["yolo_masks"] = "yolo_masks"
    task: str = "segmentation"
    path: str | None = None
    unmasked_class: str | None = None
    rename: dict[str, str] | None = None
    ignore: ClassNames = ()
    labels_only: tuple[str, ...] | None = None
    superclasses: Superclasses | None = None
    unlabeled: UnlabeledPolicy = None
    max_missing: float = 0.01

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the reader may label."""
        return (self.task,)


class YoloMasksReader:
    """Reader of YOLO polygons. An image without a label file, or with an empty one, has no polygons (``unlabeled``).

    Where polygons overlap, the smaller one is on top. Pixels of a line with a box instead of a polygon are ignored.
    """

    Config = YoloMasksConfig

    def __init__(self, config: YoloMasksConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        path = require_file(root, config.data, "YOLO's data.yaml")
        content = read_yolo_data_file(path)
        self.class_map = map_mask_classes(
            content.names, config.unmasked_class, classes[config.task], str(path), config.rename, config.ignore,
            config.labels_only, config.superclasses,
        )  # fmt: skip
        self.class_maps = {config.task: self.class_map}
        self._values = [mask_value(self.class_map, name) for name in content.names]
        self._unmasked_value = mask_value(self.class_map, UNMASKED)
        tree = YoloTree(path, content, root, config.path)
        pictures = tree.find_images(config.split, config.max_missing, self.problems)
        labels = find_label_files(pictures, tree.boundary, self.problems, tree.is_folder_split(config.split))
        annotated = np.array([label is not None and _has_content(label) for label in labels])
        kept, self.num_unannotated = select_labeled_rows(annotated, config.unlabeled, str(path), self.problems)
        if config.unlabeled != "skip" and None in labels:
            self.problems["images without a label file, taken as empty"] += labels.count(None)
        self.images = [pictures[row].path for row in kept]
        self._label_paths = [labels[row] for row in kept]

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, DenseMap]:
        """Return the mask uint8 [H, W]. Raises DataError with the line number for an invalid line.

        Without ``size`` the image's header is read.
        """
        height, width = read_image_size(self.images[index]) if size is None else size
        path, masks = self._label_paths[index], []
        for number, words in () if path is None else iterate_rows(read_text(path)):
            where = f"{path}, line {number}"
            kind, *points = parse_floats(words, where, "numbers: a class and a polygon x1 y1 x2 y2 x3 y3 ...")
            if not (0 <= kind < len(self._values) and kind.is_integer()):
                raise DataError(f"{where}: class {words[0][:40]!r}. Expected 0 to {len(self._values) - 1}.")
            value = self._values[int(kind)]
            if len(points) == 4:
                points, value = _box_polygon(points), IGNORE_INDEX
            outside = max((max(-point, point - 1) for point in points), default=0.0)
            if not all(map(math.isfinite, points)) or outside > 0.5:
                raise DataError(
                    f"{where}: its numbers reach {outside:.3g} outside 0 to 1. Expected fractions of the image's "
                    "width and height, not pixels."
                )
            pixels = (np.array(points) * np.resize([width, height], len(points))).tolist()
            text, count, fault = encode_rle([pixels], height, width)
            if fault and MASK_FAULTS[fault] != "no pixel":
                raise DataError(f"{where}: {MASK_FAULTS[fault]}. Expected a class and three or more points x y.")
            masks.append((-count, text, value))
        ordered = [(text, value) for _, text, value in sorted(masks, key=lambda mask: mask[0]) if text]
        values: NDArray[np.uint8] = draw_masks(ordered, height, width, self._unmasked_value)
        return {self.config.task: DenseMap(values, values != IGNORE_INDEX, label_space=self.class_map.label_space)}

    def camera(self, index: int) -> Camera | None:
        """Return None: this format has no intrinsics."""
        return None


def _has_content(path: Path) -> bool:
    """Whether a label file has a line that is not blank. Raises DataError if it is not a text file."""
    check_text_file(path)
    return path.stat().st_size > _MAX_BLANK_BYTES or bool(read_text(path).strip())


def _box_polygon(box: list[float]) -> list[float]:
    """The polygon of a box cx cy width height."""
    x, y, w, h = box[0], box[1], box[2] / 2, box[3] / 2
    return [x - w, y - h, x + w, y - h, x + w, y + h, x - w, y + h]
