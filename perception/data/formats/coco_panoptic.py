"""Reader for COCO's panoptic format: a JSON of segments and one PNG per image whose colors are the segment ids.

Things become boxes. All segments together become a segmentation mask (https://cocodataset.org/#format-data, panoptic
segmentation).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perception.config import config_dataclass
from perception.data.class_names import ClassNames, Superclasses, map_classes, map_pixel_classes, mask_value
from perception.data.dataset import check_label_size
from perception.data.formats.coco import build_box_table
from perception.data.formats.coco_index import (
    category_names,
    find_existing_images,
    make_size_reader,
    read_panoptic_index,
)
from perception.data.formats.coco_records import Arrays
from perception.files.folders import find_boundary, require_file, require_folder, resolve_inside
from perception.files.image_finder import ImageFinder, ImageNaming
from perception.files.images import ImageError, read_image
from perception.files.index_cache import unpack_texts
from perception.types import IGNORE_INDEX, Annotation, Camera, ConfigError, DataError, DenseMap


@config_dataclass
class CocoPanopticConfig:
    """Configuration of the reader for COCO's panoptic format. A task that is not in the recipe is not read.

    Attributes:
        images: folder of the images, relative to the data root.
        annotations: panoptic JSON, relative to the data root.
        format: name of this reader.
        masks: folder of the PNGs; default: the JSON's path without ``.json``, as in COCO.
        detection_task: detection task of the recipe; None = not read.
        detection_rename: mapping of the thing classes to the recipe's, as in `CocoConfig`; also the next three.
        detection_ignore: see ``detection_rename``.
        detection_background: see ``detection_rename``.
        detection_labels_only: see ``detection_rename``.
        segmentation_task: segmentation task of the recipe; None = not read.
        segmentation_rename: mapping of the thing and stuff classes to the recipe's, as in `SegmentationMasksConfig`;
            also the next three.
        segmentation_ignore: see ``segmentation_rename``.
        segmentation_labels_only: see ``segmentation_rename``.
        segmentation_superclasses: see ``segmentation_rename``.
        match_by: how images are found by their names, as in `CocoConfig`.
        max_missing: largest fraction of the listed images that may be missing.
    """

    images: str
    annotations: str
    format: Literal["coco_panoptic"] = "coco_panoptic"
    masks: str | None = None
    detection_task: str | None = "detection"
    detection_rename: dict[str, str] | None = None
    detection_ignore: ClassNames = ()
    detection_background: ClassNames = ()
    detection_labels_only: tuple[str, ...] | None = None
    segmentation_task: str | None = "segmentation"
    segmentation_rename: dict[str, str] | None = None
    segmentation_ignore: ClassNames = ()
    segmentation_labels_only: tuple[str, ...] | None = None
    segmentation_superclasses: Superclasses | None = None
    match_by: ImageNaming = "path"
    max_missing: float = 0.01

    def __post_init__(self) -> None:
        if self.segmentation_task == self.detection_task:
            raise ConfigError(f"coco_panoptic: both tasks are called '{self.detection_task}'. Use two different names.")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the reader may label."""
        return tuple(task for task in (self.detection_task, self.segmentation_task) if task is not None)


class CocoPanopticReader:
    """Reader of images with a panoptic annotation. PNGs are read only if the recipe trains the segmentation.

    Additional attributes: ``categories`` (JSON id -> name), and ``class_map`` and ``segmentation_class_map``
    (name -> the recipe's class; None if the recipe does not train the task).
    """

    Config = CocoPanopticConfig

    def __init__(self, config: CocoPanopticConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = tuple(task for task in config.tasks if task in classes)
        self.problems: Counter[str] = Counter()
        self.path = require_file(root, config.annotations, "COCO panoptic annotations")
        found = ImageFinder(require_folder(root, config.images, "images"), root, config.match_by)
        index = read_panoptic_index(self.path, make_size_reader(found))
        self.categories = category_names(index)
        names = list(self.categories.values())
        things = [name for name, thing in zip(names, index["category_things"].tolist(), strict=True) if thing]
        self.class_map = self.segmentation_class_map = None
        if config.detection_task is not None and config.detection_task in classes:
            self.class_map = map_classes(
                things, classes[config.detection_task], f"{self.path}, keys detection_...", config.detection_rename,
                config.detection_ignore, config.detection_background, config.detection_labels_only,
            )  # fmt: skip
        if config.segmentation_task is not None and config.segmentation_task in classes:
            self.segmentation_class_map = map_pixel_classes(
                names, classes[config.segmentation_task], f"{self.path}, keys segmentation_...",
                config.segmentation_rename, config.segmentation_ignore, config.segmentation_labels_only,
                config.segmentation_superclasses,
            )  # fmt: skip
        maps = {config.detection_task: self.class_map, config.segmentation_task: self.segmentation_class_map}
        self.class_maps = {task: found for task, found in maps.items() if task is not None and found is not None}
        annotation_of = dict(zip(index["map_images"].tolist(), range(len(index["map_images"])), strict=True))
        rows = sorted(annotation_of)
        records = find_existing_images(index, rows, found, self.path, config.max_missing, self.problems)
        if len(index["image_ids"]) > len(rows):
            self.problems["images without an annotation"] += len(index["image_ids"]) - len(rows)
        self.images = [path for path, _, _ in records]
        self.sizes = [size for _, size, _ in records]
        self._annotation_rows = np.array([annotation_of[row] for _, _, row in records], np.int64)
        if self.class_map is not None:
            places = np.full(len(annotation_of), -1)
            places[self._annotation_rows] = np.arange(len(records))
            places = np.repeat(places, np.diff(index["segment_starts"]))
            self._box_table = build_box_table(
                index, places, index["crowds"], names, self.class_map, self.sizes, self.problems
            )
        if self.segmentation_class_map is not None:
            class_map = self.segmentation_class_map
            self._mask_paths = self._find_mask_paths(index, root)
            values = np.array([mask_value(class_map, name) for name in names], np.uint8)
            self._values = values[index["category_of"]]
            self._starts, self._ids = index["segment_starts"], index["segment_ids"].astype(np.int32)

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Return the boxes, clipped to the image, and the segmentation mask, uint8 [H, W].

        Raises DataError if the sizes of image, JSON and PNG differ, or if PNG and JSON have different segments.
        """
        picture = self.images[index]
        check_label_size(f"{self.path}: the record of {picture.name}", self.sizes[index], picture, size)
        result: dict[str, Annotation] = {}
        if self.class_map is not None and self.config.detection_task is not None:
            result[self.config.detection_task] = self._box_table.instances(index)
        if self.segmentation_class_map is not None and self.config.segmentation_task is not None:
            path = self._mask_paths[index]
            ids = read_panoptic_ids(path)
            check_label_size(str(path), ids.shape, picture, self.sizes[index])
            values = self._build_mask(ids, index, path)
            space = self.segmentation_class_map.label_space
            result[self.config.segmentation_task] = DenseMap(values, values != IGNORE_INDEX, label_space=space)
        return result

    def camera(self, index: int) -> Camera | None:
        """Return None: COCO has no intrinsics."""
        return None

    def _find_mask_paths(self, index: Arrays, root: Path) -> list[Path]:
        """The PNG of every image. Raises DataError if one is missing."""
        config = self.config
        folder = require_folder(root, config.masks or config.annotations.removesuffix(".json"), "panoptic PNGs")
        names, boundary = unpack_texts(index["map_names"], index["map_name_offsets"]), find_boundary(folder, root)
        paths = [
            resolve_inside(folder, names[annotation], f"{self.path}, annotation of {picture.name}", boundary)
            for annotation, picture in zip(self._annotation_rows.tolist(), self.images, strict=True)
        ]
        missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113 - raises if a name is too long
        if missing:
            raise DataError(
                f"{self.path}: {len(missing)} of {len(paths)} PNGs are not under {folder}, the first is "
                f"{missing[0].name}. Download them, or correct masks."
            )
        return paths

    def _build_mask(self, ids: NDArray[np.int32], index: int, path: Path) -> NDArray[np.uint8]:
        """uint8 [H, W], the recipe's class of every pixel's segment."""
        segments = slice(*self._starts[self._annotation_rows[index] :][:2].tolist())
        known = self._ids[segments]
        number_of = np.zeros(1 << 24, np.uint16)  # few of its memory pages are ever touched
        number_of[known] = np.arange(1, len(known) + 1)
        numbers = number_of[ids]
        counts = np.bincount(numbers.ravel(), minlength=len(known) + 1)
        if counts[0] != np.count_nonzero(ids == 0):
            unknown, pixels = np.unique(ids[(numbers == 0) & (ids != 0)], return_counts=True)
            found = ", ".join(f"{id}: {n}" for id, n in zip(unknown[:20].tolist(), pixels[:20].tolist(), strict=True))
            raise DataError(
                f"{path} contains {len(unknown)} segments that {self.path.name} does not list for it: {{id: pixels}} "
                f"{{{found}}}. Expected {', '.join(map(str, known[:20].tolist()))} or 0 (ignored). Download both again."
            )
        if not counts[1:].all():
            raise DataError(
                f"{path} has no pixel of the segments {known[counts[1:] == 0][:20].tolist()} that {self.path.name} "
                "lists for it. Download both again, or remove these segments."
            )
        values = np.concatenate([np.array([IGNORE_INDEX], np.uint8), self._values[segments]])
        return values[numbers]


def read_panoptic_ids(path: Path) -> NDArray[np.int32]:
    """Read the segment ids R + 256 G + 65536 B of a panoptic PNG, int32 [H, W].

    Raises DataError if the file is missing, damaged or not an 8-bit RGB PNG.
    """
    try:
        with path.open("rb") as file:
            header = file.read(26)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Restore the file.") from error
    if header[:8] != b"\x89PNG\r\n\x1a\n" or header[24:26] != b"\x08\x02":
        raise DataError(
            f"{path} is not an 8-bit RGB PNG. Expected COCO's panoptic PNG, whose colors are segment ids. Convert it."
        )
    try:
        colors = read_image(path)
    except ImageError as error:  # a damaged image may be skipped, damaged labels may not
        raise DataError(str(error)) from error
    ids = colors[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids = (ids << 8) | colors[..., channel]
    return ids
