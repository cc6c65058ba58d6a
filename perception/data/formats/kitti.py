"""KITTI's object detection benchmark (Geiger et al. 2012): boxes of the left color camera, and its calibration.

``<part>/image_2/000000.png``, ``<part>/label_2/000000.txt``, ``<part>/calib/000000.txt``; part = training or testing.

Boxes are used unchanged, as in the benchmark: ``left top right bottom`` are continuous coordinates, and the width is
``right - left``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from perception.config import config_dataclass
from perception.data.class_names import IGNORED, ClassMap, ClassNames, map_classes
from perception.data.dataset import check_label_size
from perception.data.formats.boxes import BoxTable, map_box_labels
from perception.data.formats.depth_maps import make_camera
from perception.files.folders import (
    find_boundary,
    find_present_files,
    index_by_stem,
    list_images,
    require_file,
    require_folder,
    resolve_inside,
)
from perception.files.images import ImageError, read_image_size
from perception.files.strict_json import quote_value
from perception.files.text_files import MAX_LIST_BYTES, iterate_rows, list_folder_files, parse_floats, read_text
from perception.types import Camera, ConfigError, DataError, Instances

CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
_IGNORE_CLASS = "DontCare"
_COLUMNS = "type truncated occluded alpha left top right bottom height width length x y z rotation_y (and score)"


@config_dataclass
class KittiConfig:
    """Configuration of the reader for KITTI's object detection.

    Boxes beyond ``max_occluded``, ``max_truncated`` or ``min_height`` are ignore regions. KITTI's levels are easy: 0,
    0.15, 40 px; moderate: 1, 0.3, 25 px; hard: 2, 0.5, 25 px.

    Attributes:
        root: folder that contains ``training``, relative to the data root.
        split: folder in ``root``: training or testing.
        format: name of this reader.
        task: detection task of the recipe.
        image_list: text file with the names of the images to use, one per line (000012), relative to the data root;
            default: all.
        classes: classes of the labels; default: KITTI's. ``DontCare`` is always an ignore region.
        max_occluded: largest occlusion level of an object; None = no limit.
        max_truncated: largest truncation of an object; None = no limit.
        min_height: smallest height of an object, in pixels.
        rename: class mapping to the recipe, as in `CocoConfig`; also the next three.
        ignore: see ``rename``.
        background: see ``rename``.
        labels_only: see ``rename``.
        max_missing: largest fraction of the images in ``image_list`` that may be missing.
    """

    root: str
    split: str = "training"
    format: Literal["kitti"] = "kitti"
    task: str = "detection"
    image_list: str | None = None
    classes: tuple[str, ...] = CLASSES
    max_occluded: int | None = None
    max_truncated: float | None = None
    min_height: float = 0
    rename: dict[str, str] | None = None
    ignore: ClassNames = ()
    background: ClassNames = ()
    labels_only: tuple[str, ...] | None = None
    max_missing: float = 0.01

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the reader may label."""
        return (self.task,)

    def __post_init__(self) -> None:
        if len(set(self.classes)) < len(self.classes) or not self.classes:
            raise ConfigError(f"kitti: classes is {self.classes}. Expected class names, each once.")
        if not 0 <= self.min_height < 1e5:
            raise ConfigError(f"kitti: min_height is {self.min_height}. Expected pixels, 0 or more.")


class KittiBox(NamedTuple):
    """A line of a label file.

    Attributes:
        name: class name.
        truncated: truncation, 0 to 1.
        occluded: occlusion level.
        corners: x1 y1 x2 y2 in pixels.
        has_score: whether the line has a 16th column.
    """

    name: str
    truncated: float
    occluded: float
    corners: list[float]
    has_score: bool


class KittiReader:
    """Reader of KITTI images. An image without a label file is not labeled; an empty label file means no boxes.

    Additional attribute: ``class_map`` (name -> the recipe's class); absent in a split without labels.
    """

    Config = KittiConfig

    def __init__(self, config: KittiConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.problems: Counter[str] = Counter()
        self.root = require_folder(root, config.root, "KITTI")
        base = f"{config.root}/{config.split}"
        folder = require_folder(root, f"{base}/image_2", "KITTI images")
        pictures = index_by_stem(list_images(folder, "*", root), folder)
        if config.image_list is not None:
            chosen = require_file(root, config.image_list, "image names")
            pictures = self._select_listed(chosen, pictures, folder, find_boundary(folder, root))
        self.images = list(pictures.values())
        calibrations = self._find_files(root, f"{base}/calib", pictures, "calibration")
        self._cameras = {stem: read_projection(path, "P2") for stem, path in calibrations.items()}
        if config.split != "testing":
            require_folder(root, f"{base}/label_2", "KITTI labels")
        labels = self._find_files(root, f"{base}/label_2", pictures, "label file")
        self.tasks = config.tasks if labels else ()
        self._stems = list(pictures)
        self._has_labels = [stem in labels for stem in pictures]
        self.class_maps: dict[str, ClassMap] = {}
        if labels:
            where = str(self.root / config.split / "label_2")
            self.class_map = map_classes(
                config.classes, classes[config.task], where, config.rename, config.ignore, config.background,
                config.labels_only,
            )  # fmt: skip
            self.class_maps[config.task] = self.class_map
            self.sizes = [_read_size_or_max(path) for path in self.images]
            self._box_table = self._build_box_table(labels)
        elif config.split != "testing":
            raise DataError(
                f"{self.root / config.split}: none of the {len(pictures)} images has a file in label_2. Expected "
                f"label_2/{next(iter(pictures))}.txt."
            )

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Instances]:
        """Return the boxes, clipped to the image; empty dict if it has no label file."""
        if not self._has_labels[index]:
            return {}
        check_label_size(f"The label file of {self.images[index].name}", self.sizes[index], self.images[index], size)
        return {self.config.task: self._box_table.instances(index)}

    def camera(self, index: int) -> Camera | None:
        """Return the intrinsics of the left color camera (P2); None if there is no calibration file."""
        return self._cameras.get(self._stems[index])

    def _select_listed(
        self, path: Path, image_paths: Mapping[str, Path], folder: Path, boundary: Path
    ) -> dict[str, Path]:
        """The images that a list file names, in its order."""
        listed: dict[str, Path] = {}
        for number, words in iterate_rows(read_text(path, MAX_LIST_BYTES)):
            name = " ".join(words)
            expected = resolve_inside(folder, f"{name}.png", f"{path}, line {number}", boundary)
            if name in listed:
                raise DataError(f"{path}, line {number}: {name} is given twice. Keep one.")
            listed[name] = image_paths.get(name, expected)
        found = find_present_files(list(listed.values()), folder, str(path), self.config.max_missing, self.problems)
        return {name: picture for (name, picture), there in zip(listed.items(), found, strict=True) if there}

    def _find_files(self, root: Path, name: str, image_paths: Mapping[str, Path], what: str) -> dict[str, Path]:
        """Name of an image -> its text file in another folder of the split."""
        if not (root / name).is_dir():
            return {}
        folder = require_folder(root, name, what)
        files = list_folder_files(folder, find_boundary(folder, root), ".txt")
        found = {stem: files[stem] for stem in image_paths if stem in files}
        if len(found) < len(image_paths):
            self.problems[f"images without a {what}"] += len(image_paths) - len(found)
        if self.config.image_list is None and len(found) < len(files):
            self.problems[f"{what}s without an image"] += len(files) - len(found)
        return found

    def _build_box_table(self, labels: Mapping[str, Path]) -> BoxTable:
        known = frozenset(self.config.classes)
        boxes = [
            (position, box)
            for position, stem in enumerate(self._stems)
            if stem in labels
            for box in read_kitti_boxes(labels[stem], known)
        ]
        if scored := sum(box.has_score for _, box in boxes):
            self.problems["boxes with a score: results, not labels"] += scored
        labels_of, doubts = map_box_labels(self.config.classes, self.class_map)
        meaning = dict(zip(self.config.classes, zip(labels_of, doubts, strict=True), strict=True))
        meaning[_IGNORE_CLASS] = (IGNORED, True)
        corners = np.array([box.corners for _, box in boxes], np.float64).reshape(-1, 4)
        places = [position for position, _ in boxes]
        values = [meaning[box.name][0] for _, box in boxes]
        ignore = [meaning[box.name][1] or self._is_beyond_limits(box) for _, box in boxes]
        return BoxTable(places, corners, values, ignore, self.sizes, self.class_map, self.problems)

    def _is_beyond_limits(self, box: KittiBox) -> bool:
        """Whether a box is beyond the limits of the config."""
        config = self.config
        return (
            (config.max_occluded is not None and not box.occluded <= config.max_occluded)
            or (config.max_truncated is not None and not box.truncated <= config.max_truncated)
            or not box.corners[3] - box.corners[1] >= config.min_height
        )


def read_kitti_boxes(path: Path, class_names: frozenset[str]) -> list[KittiBox]:
    """Read a label file. Raises DataError with the line number if a line is not a box of a known class."""
    boxes = []
    for number, words in iterate_rows(read_text(path)):
        where = f"{path}, line {number}"
        if len(words) not in (15, 16):
            raise DataError(f"{where}: {len(words)} columns. Expected 15: {_COLUMNS}.")
        name = _IGNORE_CLASS if words[0].lower() == _IGNORE_CLASS.lower() else words[0]
        if name != _IGNORE_CLASS and name not in class_names:
            raise DataError(
                f"{where}: class {name[:60]!r} is not among {', '.join(sorted(class_names))}. Correct it, or "
                "give this reader classes: [...] with all classes of the labels."
            )
        values = parse_floats(words[1:], where, f"numbers after the class: {_COLUMNS}")
        boxes.append(KittiBox(name, values[0], values[1], values[3:7], len(words) == 16))
    return boxes


def read_calibration(path: Path) -> dict[str, str]:
    """Read the lines ``key: text`` of a KITTI calibration, as key -> text. Raises DataError for an invalid line."""
    entries = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        key, colon, text = line.partition(":")
        if line.strip() and not (colon and key.strip()):
            raise DataError(f"{path}, line {number}: {line[:60]!r} is not an entry. Expected 'key: numbers'.")
        if line.strip():
            entries[key.strip()] = text
    return entries


def read_projection(path: Path, key: str) -> Camera:
    """Read the intrinsics from the 3x4 projection matrix ``key`` of a calibration. Raises DataError if invalid."""
    entries = read_calibration(path)
    if key not in entries:
        found = ", ".join(quote_value(name, 30)[1:-1] for name in list(entries)[:20])
        raise DataError(f"{path} has no entry {key}. Found {found}.")
    values = parse_floats(entries[key].split(), f"{path}, {key}", "the 12 numbers of a projection matrix")
    if len(values) != 12 or values[8:11] != [0, 0, 1] or values[4] != 0:
        raise DataError(
            f"{path}, {key}: {values[:16]} is not a projection. Expected 12 numbers, fx 0 cx _ 0 fy cy _ 0 0 1 _."
        )
    return make_camera(values[0], values[5], values[2], values[6], f"{path}, {key}")


def _read_size_or_max(path: Path) -> tuple[int, int]:
    """(height, width); a large size for a damaged image, whose error is reported when it is read."""
    try:
        return read_image_size(path)
    except ImageError:
        return (1 << 16, 1 << 16)
