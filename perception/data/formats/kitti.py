"""KITTI's object detection benchmark (Geiger et al. 2012): boxes of the left colour camera, and its calibration.

``<part>/image_2/000000.png``, ``<part>/label_2/000000.txt``, ``<part>/calib/000000.txt``; part = training or testing.

Boxes are taken as they stand, as the benchmark itself does: ``left top right bottom`` are continuous coordinates, the
width is ``right - left``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from perception.config import configuration
from perception.data.class_names import IGNORED, ClassMap, Names, map_classes
from perception.data.dataset import check_size
from perception.data.formats.boxes import BoxTable, labels_and_doubts
from perception.data.formats.depth_maps import intrinsics
from perception.files.folders import (
    boundary_of,
    by_stem,
    existing_file,
    existing_folder,
    inside,
    list_pictures,
    present,
)
from perception.files.images import PictureError, read_size
from perception.files.strict_json import shown
from perception.files.text_files import MAX_LIST_BYTES, files_in, floats, read_text, rows
from perception.types import Camera, ConfigError, DataError, Instances

CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
_REGION = "DontCare"
_COLUMNS = "type truncated occluded alpha left top right bottom height width length x y z rotation_y (and score)"


@configuration
class KittiConfig:
    """root: folder that holds ``training``, relative to the data root. part: the folder in it, training or testing.

    list:          text file with the names of the pictures to use, one per line (000012), relative to the data root;
                   default: all
    names:         the classes of the labels; KITTI's own by default. ``DontCare`` is an ignore region in any case
    max_occluded, max_truncated, min_height: boxes beyond are ignore regions. KITTI's own levels are easy: 0, 0.15,
                   40 px; moderate: 1, 0.3, 25 px; hard: 2, 0.5, 25 px
    rename, ignore, background, labels_only: from these classes to the recipe's, as in `CocoConfig`
    allow_missing: largest fraction of the pictures in ``list`` that may be missing
    """

    root: str
    part: str = "training"
    format: Literal["kitti"] = "kitti"
    task: str = "detection"
    list: str | None = None
    names: tuple[str, ...] = CLASSES
    max_occluded: int | None = None
    max_truncated: float | None = None
    min_height: float = 0
    rename: dict[str, str] | None = None
    ignore: Names = ()
    background: Names = ()
    labels_only: tuple[str, ...] | None = None
    allow_missing: float = 0.01

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        return (self.task,)

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names) or not self.names:
            raise ConfigError(f"kitti: names is {self.names}. Expected class names, each once.")
        if not 0 <= self.min_height < 1e5:
            raise ConfigError(f"kitti: min_height is {self.min_height}. Expected pixels, 0 or more.")


class Box(NamedTuple):
    """A line of a label file. corners: x1 y1 x2 y2 in pixels. scored: it has a 16th column."""

    name: str
    truncated: float
    occluded: float
    corners: list[float]
    scored: bool


class KittiReader:
    """Pictures of a part. Those without a label file are not labelled; an empty label file is a picture without boxes.

    Attributes beside the protocol's: ``class_map`` (name -> the recipe's class), absent in a part without labels.
    """

    Config = KittiConfig

    def __init__(self, config: KittiConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.problems: Counter[str] = Counter()
        self.root = existing_folder(root, config.root, "KITTI")
        base = f"{config.root}/{config.part}"
        folder = existing_folder(root, f"{base}/image_2", "KITTI pictures")
        pictures = by_stem(list_pictures(folder, "*", root), folder)
        if config.list is not None:
            chosen = existing_file(root, config.list, "picture names")
            pictures = self._chosen(chosen, pictures, folder, boundary_of(folder, root))
        self.images = list(pictures.values())
        calibrations = self._files(root, f"{base}/calib", pictures, "calibration")
        self._cameras = {stem: read_projection(path, "P2") for stem, path in calibrations.items()}
        if config.part != "testing":
            existing_folder(root, f"{base}/label_2", "KITTI labels")
        labels = self._files(root, f"{base}/label_2", pictures, "label file")
        self.tasks = config.tasks if labels else ()
        self._stems = list(pictures)
        self._labelled = [stem in labels for stem in pictures]
        self.class_maps: dict[str, ClassMap] = {}
        if labels:
            where = str(self.root / config.part / "label_2")
            self.class_map = map_classes(
                config.names, classes[config.task], where, config.rename, config.ignore, config.background,
                config.labels_only,
            )  # fmt: skip
            self.class_maps[config.task] = self.class_map
            self.sizes = [_size(path) for path in self.images]
            self._boxes_of = self._boxes(labels)
        elif config.part != "testing":
            raise DataError(
                f"{self.root / config.part}: none of the {len(pictures)} pictures has a file in label_2. Expected "
                f"label_2/{next(iter(pictures))}.txt."
            )

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Instances]:
        """Boxes clipped to the picture; nothing where it has no label file."""
        if not self._labelled[index]:
            return {}
        check_size(f"The label file of {self.images[index].name}", self.sizes[index], self.images[index], size)
        return {self.config.task: self._boxes_of.instances(index)}

    def camera(self, index: int) -> Camera | None:
        """Intrinsics of the left colour camera (P2), where there is a calibration file."""
        return self._cameras.get(self._stems[index])

    def _chosen(self, path: Path, pictures: Mapping[str, Path], folder: Path, boundary: Path) -> dict[str, Path]:
        """The pictures that a split file lists, in its order."""
        listed: dict[str, Path] = {}
        for number, words in rows(read_text(path, MAX_LIST_BYTES)):
            name = " ".join(words)
            expected = inside(folder, f"{name}.png", f"{path}, line {number}", boundary)
            if name in listed:
                raise DataError(f"{path}, line {number}: {name} is given twice. Keep one.")
            listed[name] = pictures.get(name, expected)
        found = present(list(listed.values()), folder, str(path), self.config.allow_missing, self.problems)
        return {name: picture for (name, picture), there in zip(listed.items(), found, strict=True) if there}

    def _files(self, root: Path, name: str, pictures: Mapping[str, Path], what: str) -> dict[str, Path]:
        """Name of a picture -> its text file in another folder of the part."""
        if not (root / name).is_dir():
            return {}
        folder = existing_folder(root, name, what)
        files = files_in(folder, boundary_of(folder, root), ".txt")
        found = {stem: files[stem] for stem in pictures if stem in files}
        if len(found) < len(pictures):
            self.problems[f"pictures without a {what}"] += len(pictures) - len(found)
        if self.config.list is None and len(found) < len(files):
            self.problems[f"{what}s without a picture"] += len(files) - len(found)
        return found

    def _boxes(self, labels: Mapping[str, Path]) -> BoxTable:
        known = frozenset(self.config.names)
        boxes = [
            (position, box)
            for position, stem in enumerate(self._stems)
            if stem in labels
            for box in read_boxes(labels[stem], known)
        ]
        if scored := sum(box.scored for _, box in boxes):
            self.problems["boxes with a score: results, not labels"] += scored
        labels_of, doubts = labels_and_doubts(self.config.names, self.class_map)
        meaning = dict(zip(self.config.names, zip(labels_of, doubts, strict=True), strict=True))
        meaning[_REGION] = (IGNORED, True)
        corners = np.array([box.corners for _, box in boxes], np.float64).reshape(-1, 4)
        places = [position for position, _ in boxes]
        values = [meaning[box.name][0] for _, box in boxes]
        ignore = [meaning[box.name][1] or self._beyond(box) for _, box in boxes]
        return BoxTable(places, corners, values, ignore, self.sizes, self.class_map, self.problems)

    def _beyond(self, box: Box) -> bool:
        """Whether a box is beyond the levels of the config."""
        config = self.config
        return (
            (config.max_occluded is not None and not box.occluded <= config.max_occluded)
            or (config.max_truncated is not None and not box.truncated <= config.max_truncated)
            or not box.corners[3] - box.corners[1] >= config.min_height
        )


def read_boxes(path: Path, known: frozenset[str]) -> list[Box]:
    """The lines of a label file. Raises DataError with the line where one is no box of a known class."""
    boxes = []
    for number, words in rows(read_text(path)):
        where = f"{path}, line {number}"
        if len(words) not in (15, 16):
            raise DataError(f"{where}: {len(words)} columns. Expected 15: {_COLUMNS}.")
        name = _REGION if words[0].lower() == _REGION.lower() else words[0]
        if name != _REGION and name not in known:
            raise DataError(
                f"{where}: class {name[:60]!r} is not among {', '.join(sorted(known))}. Correct it, or "
                "give this reader names: [...] with all classes of the labels."
            )
        values = floats(words[1:], where, f"numbers after the class: {_COLUMNS}")
        boxes.append(Box(name, values[0], values[1], values[3:7], len(words) == 16))
    return boxes


def read_calibration(path: Path) -> dict[str, str]:
    """Key -> text of the lines ``key: text`` of a KITTI calibration. Raises DataError where one is none."""
    entries = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        key, colon, text = line.partition(":")
        if line.strip() and not (colon and key.strip()):
            raise DataError(f"{path}, line {number}: {line[:60]!r} is no entry. Expected 'key: numbers'.")
        if line.strip():
            entries[key.strip()] = text
    return entries


def read_projection(path: Path, key: str) -> Camera:
    """Intrinsics from the 3x4 projection matrix ``key`` of a KITTI calibration. Raises DataError where it is none."""
    entries = read_calibration(path)
    if key not in entries:
        found = ", ".join(shown(name, 30)[1:-1] for name in list(entries)[:20])
        raise DataError(f"{path} has no entry {key}. Found {found}.")
    values = floats(entries[key].split(), f"{path}, {key}", "the 12 numbers of a projection matrix")
    if len(values) != 12 or values[8:11] != [0, 0, 1] or values[4] != 0:
        raise DataError(
            f"{path}, {key}: {values[:16]} is no projection. Expected 12 numbers, fx 0 cx _ 0 fy cy _ 0 0 1 _."
        )
    return intrinsics(values[0], values[5], values[2], values[6], f"{path}, {key}")


def _size(path: Path) -> tuple[int, int]:
    """(height, width); of a damaged picture a large one: whoever asks for the picture is told."""
    try:
        return read_size(path)
    except PictureError:
        return (1 << 16, 1 << 16)
