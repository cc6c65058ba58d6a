"""Reader for BDD100K (Yu et al. 2020): boxes and attributes in JSON; drivable area, lanes and semantic masks in PNG.

``images/100k/<split>/*.jpg``, ``labels/det_20/det_<split>.json``, ``labels/drivable/masks/<split>/*.png``,
``labels/lane/masks/...``, ``labels/sem_seg/masks/...``. Labels may be absent. The labels of 2018 are also supported.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perception.config import config_dataclass
from perception.data.class_names import ClassMap, ClassNames, Superclasses, map_classes, map_pixel_classes
from perception.data.dataset import check_label_size
from perception.data.formats.bdd100k_masks import (
    DRIVABLE_KIND,
    SEMANTIC_KIND,
    MaskFiles,
    find_mask_files,
    make_lane_kind,
)
from perception.data.formats.boxes import MAX_COORDINATE, BoxTable, map_box_labels
from perception.data.formats.scalabel import ATTRIBUTES, ScalabelFrames, read_scalabel_frames
from perception.files.folders import find_present_files, list_images, require_folder
from perception.files.image_finder import ImageFinder, ImageNaming
from perception.files.images import ImageError, read_image_size
from perception.types import Annotation, Camera, ConfigError, DataError, ImageLabel

CLASSES = (
    "pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "traffic light", "traffic sign",
)  # fmt: skip
CLASSES_2018 = ("person", "rider", "car", "truck", "bus", "train", "motor", "bike", "traffic light", "traffic sign")
EVALUATION_IGNORED = ("other person", "other vehicle", "trailer")
"""Categories of 2020 that BDD100K's evaluation ignores."""

ATTRIBUTE_VALUES = {
    "weather": ("clear", "partly cloudy", "overcast", "rainy", "snowy", "foggy"),
    "scene": ("city street", "highway", "residential", "parking lot", "gas stations", "tunnel"),
    "timeofday": ("daytime", "dawn/dusk", "night"),
}
LABEL_PATHS = ("labels/det_20/det_{split}.json", "labels/bdd100k_labels_images_{split}.json", "labels/100k/{split}")


@config_dataclass
class Bdd100kConfig:
    """Configuration of the reader for BDD100K.

    The ``*_task`` fields are task names of the recipe. None, or a task that is not in the recipe: not read. The keys
    ``<kind>_rename``, ``<kind>_ignore``, ... map BDD100K's class names to the classes of the recipe's task: boxes as
    in `CocoConfig`, all others as in `SegmentationMasksConfig`.

    Attributes:
        root: folder that contains ``images`` and ``labels``, relative to the data root.
        split: train, val or test.
        images: folder that contains the split's image folder: images/100k or images/10k.
        labels: file with boxes and attributes, or folder with one file per image, under ``root``. Default for
            images/100k: the labels of 2020 or, if absent, of 2018. Default for other folders: none.
        size: (height, width) of the images that the boxes refer to, if the labels do not contain it; None = the size
            of each image file.
        lane: lane property that defines the classes of the lane task.
        attribute: image attribute that defines the classes of the classification task; None = no classification.
        match_by: "path" or "base": how image names in ``labels`` are matched to files, as in `CocoConfig`.
        max_missing: largest fraction of the images in ``labels`` that may be missing.
    """

    root: str
    split: str = "train"
    format: Literal["bdd100k"] = "bdd100k"
    images: str = "images/100k"
    labels: str | None = None
    size: tuple[int, int] | None = (720, 1280)
    detection_task: str | None = "detection"
    detection_rename: dict[str, str] | None = None
    detection_ignore: ClassNames = ()
    detection_background: ClassNames = ()
    detection_labels_only: tuple[str, ...] | None = None
    drivable_task: str | None = "drivable"
    drivable_rename: dict[str, str] | None = None
    drivable_ignore: ClassNames = ()
    drivable_labels_only: tuple[str, ...] | None = None
    drivable_superclasses: Superclasses | None = None
    lane_task: str | None = "lane"
    lane: Literal["category", "direction", "style"] = "category"
    lane_rename: dict[str, str] | None = None
    lane_ignore: ClassNames = ()
    lane_labels_only: tuple[str, ...] | None = None
    lane_superclasses: Superclasses | None = None
    segmentation_task: str | None = "segmentation"
    segmentation_rename: dict[str, str] | None = None
    segmentation_ignore: ClassNames = ()
    segmentation_labels_only: tuple[str, ...] | None = None
    segmentation_superclasses: Superclasses | None = None
    classification_task: str | None = "classification"
    attribute: Literal["weather", "scene", "timeofday"] | None = None
    classification_rename: dict[str, str] | None = None
    classification_ignore: ClassNames = ()
    classification_labels_only: tuple[str, ...] | None = None
    match_by: ImageNaming = "path"
    max_missing: float = 0.01

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the reader may label."""
        classification = None if self.attribute is None else self.classification_task
        maps = (self.drivable_task, self.lane_task, self.segmentation_task)
        return tuple(task for task in (self.detection_task, *maps, classification) if task is not None)

    def __post_init__(self) -> None:
        if len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(
                f"bdd100k: the tasks are {', '.join(self.tasks)}. Expected a different task for each kind of label."
            )
        if self.size is not None and not all(0 < side <= MAX_COORDINATE for side in self.size):
            raise ConfigError(f"bdd100k: size is {list(self.size)}. Expected height and width in pixels.")


class Bdd100kReader:
    """Reader of BDD100K images with a label that the recipe uses. A frame without boxes is an empty image."""

    Config = Bdd100kConfig

    def __init__(self, config: Bdd100kConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.problems: Counter[str] = Counter()
        self.root = require_folder(root, config.root, "BDD100K")
        folder = require_folder(self.root, f"{config.images}/{config.split}", "BDD100K images")
        named = list_images(folder, root=root)
        pictures, self._stem_of = list(named), {picture: Path(name).stem for picture, name in named.items()}
        classification = config.classification_task if config.attribute else None
        path = self._find_label_path() if config.detection_task in classes or classification in classes else None
        frames = None if path is None else read_scalabel_frames(path)
        finder = ImageFinder(folder, root, config.match_by)
        frame_of = {} if frames is None else self._match_frames(frames, pictures, finder, str(path))
        self._detection_task = (
            config.detection_task if frames is not None and config.detection_task in classes else None
        )
        self._classification_task = classification if frames is not None and classification in classes else None
        self.class_maps: dict[str, ClassMap] = {}
        self._class_of_image = {}
        if frames is not None and self._classification_task is not None:
            self._class_of_image = self._read_image_classes(
                frames, frame_of, classes[self._classification_task], str(path)
            )
        self._masks = self._find_masks(root, classes)
        self.class_maps |= {task: class_map for task, (_, class_map) in self._masks.items()}
        self.tasks = tuple(
            task for task in (self._detection_task, *self._masks, self._classification_task) if task is not None
        )
        self.images = [
            picture
            for picture in pictures
            if (self._detection_task is not None and picture in frame_of)
            or picture in self._class_of_image
            or any(self._stem_of[picture] in maps.files for maps, _ in self._masks.values())
        ]
        if not self.images:
            raise DataError(
                f"{self.root} has no labels for the tasks of the recipe: {len(pictures)} images in {config.images}/"
                f"{config.split}, none with labels of {', '.join(config.tasks)}. Correct root, split, images or labels."
            )
        self._sizes: list[tuple[int, int] | None] = [None] * len(self.images)
        if frames is not None and self._detection_task is not None:
            self._box_table = self._build_box_table(frames, frame_of, classes[self._detection_task], str(path))

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Return the available labels: boxes clipped to the image, masks uint8 [H, W], the class of the attribute."""
        picture = self.images[index]
        result: dict[str, Annotation] = {}
        made_for = self._sizes[index]
        if self._detection_task is not None and made_for is not None:
            check_label_size(f"{self.root}: boxes of {picture.name} (size in the recipe)", made_for, picture, size)
            result[self._detection_task] = self._box_table.instances(index)
        for task, (maps, class_map) in self._masks.items():
            if self._stem_of[picture] in maps.files:
                path, label_map = maps.read_mask(self._stem_of[picture], class_map)
                check_label_size(str(path), label_map.values.shape, picture, size)
                result[task] = label_map
        if self._classification_task is not None and picture in self._class_of_image:
            values = np.zeros(self._num_classes, np.float32)
            values[self._class_of_image[picture]] = 1
            result[self._classification_task] = ImageLabel(values)
        return result

    def camera(self, index: int) -> Camera | None:
        """Return None: BDD100K has no intrinsics."""
        return None

    def _find_label_path(self) -> Path | None:
        """The file or folder of boxes and attributes; None if absent."""
        config = self.config
        usual = LABEL_PATHS if config.images == "images/100k" else ()
        for name in [config.labels] if config.labels else [name.format(split=config.split) for name in usual]:
            path = self.root / name
            if os.path.isfile(path) or os.path.isdir(path):  # noqa: PTH112, PTH113 - Path raises for odd names
                return path
        if config.labels:
            raise DataError(f"No labels at {self.root / config.labels}. Correct the key labels.")
        return None

    def _match_frames(
        self, frames: ScalabelFrames, image_paths: list[Path], finder: ImageFinder, where: str
    ) -> dict[Path, int]:
        """Image -> index of its frame, for images that exist."""
        paths = [finder.find(name, where) for name in frames.names]
        found = find_present_files(paths, finder.folder, where, self.config.max_missing, self.problems, finder.hint)
        result = {path: i for i, (path, there) in enumerate(zip(paths, found, strict=True)) if there}
        if len(result) < sum(found):
            raise DataError(f"{where}: two frames refer to the same image. Keep one of them.")
        if without := sum(picture not in result for picture in image_paths):
            self.problems["images without a frame of labels"] += without
        if frames.num_shapeless:
            self.problems["labels without a shape skipped"] += frames.num_shapeless
        return result

    def _map_class_names(
        self, kind: str, names: Iterable[str], recipe_classes: tuple[str, ...], where: str
    ) -> ClassMap:
        """Map the class names of a label kind to its task, with the keys ``<kind>_...``."""
        options: dict[str, Any] = {
            key: getattr(self.config, f"{kind}_{key}", ()) for key in ("rename", "ignore", "background", "labels_only")
        }
        return map_classes(names, recipe_classes, f"{where}, keys {kind}_...", **options)

    def _find_masks(
        self, data_root: Path, classes: Mapping[str, tuple[str, ...]]
    ) -> dict[str, tuple[MaskFiles, ClassMap]]:
        """Task -> its segmentation masks and class mapping."""
        config, stems = self.config, set(self._stem_of.values())
        result = {}
        for name, task, kind in (
            ("drivable", config.drivable_task, DRIVABLE_KIND),
            ("lane", config.lane_task, make_lane_kind(config.lane)),
            ("segmentation", config.segmentation_task, SEMANTIC_KIND),
        ):
            maps = find_mask_files(kind, self.root, config.split, data_root) if task in classes else None
            if task is None or maps is None or not maps.files.keys() & stems:
                continue
            options = (getattr(config, f"{name}_{key}") for key in ("rename", "ignore", "labels_only", "superclasses"))
            result[task] = (
                maps,
                map_pixel_classes(kind.classes, classes[task], f"{maps.folder}, keys {name}_...", *options),
            )
            for problem, number in (
                (f"images without a {name} map", len(stems - maps.files.keys())),
                (f"{name} maps without an image", len(maps.files.keys() - stems)),
            ):
                if number:
                    self.problems[problem] += number
        return result

    def _read_image_classes(
        self, frames: ScalabelFrames, frame_of: dict[Path, int], recipe_classes: tuple[str, ...], where: str
    ) -> dict[Path, int]:
        """Image -> class of the recipe, for images whose attribute maps to one."""
        attribute = self.config.attribute or ""
        column = frames.attributes[:, ATTRIBUTES.index(attribute)]
        found = [frames.values[i] for i in np.unique(column[column >= 0])]
        names = dict.fromkeys((*ATTRIBUTE_VALUES[attribute], *found))
        class_map = self._map_class_names("classification", names, recipe_classes, where)
        self.class_maps[self.config.classification_task or ""] = class_map
        labels = [class_map.indices[v] if v in names and class_map.is_labeled(v) else -1 for v in frames.values]
        self._num_classes = len(recipe_classes)
        of_frame = [labels[value] if value >= 0 else -1 for value in column.tolist()]
        return {picture: of_frame[frame] for picture, frame in frame_of.items() if of_frame[frame] >= 0}

    def _build_box_table(
        self, frames: ScalabelFrames, frame_of: dict[Path, int], recipe_classes: tuple[str, ...], where: str
    ) -> BoxTable:
        """The boxes of all images. Scalabel's corners are inclusive pixels: the right edge is ``x2 + 1``."""
        positions = np.full(len(frames.names), -1)
        sizes = [(0, 0)] * len(self.images)
        for index, picture in enumerate(self.images):
            if (frame := frame_of.get(picture)) is not None:
                height, width = frames.sizes[frame].tolist()
                positions[frame] = index
                self._sizes[index] = sizes[index] = (
                    (height, width) if height else self.config.size or _read_size_or_max(picture)
                )
        names = _choose_class_names(set(frames.categories), self.config)
        class_map = self._map_class_names("detection", names, recipe_classes, where)
        self.class_maps[self.config.detection_task or ""] = class_map
        labels, doubts = map_box_labels(frames.categories, class_map)
        return BoxTable(
            positions[frames.frame_indices], frames.corners + [0, 0, 1, 1], np.array(labels,
            np.int64)[frames.category_indices],
            frames.ignore | np.array(doubts, bool)[frames.category_indices], sizes, class_map, self.problems,
        )  # fmt: skip


def _choose_class_names(found: set[str], config: Bdd100kConfig) -> list[str]:
    """All class names of the matching BDD100K release; for other data sets, the names in the file."""
    options = (config.detection_rename, config.detection_ignore, config.detection_background)
    named = {name for option in options if option and option != "rest" for name in option}
    for release in (CLASSES, CLASSES_2018):
        if found <= {*release, *EVALUATION_IGNORED}:
            return [*release, *sorted((found | named) & set(EVALUATION_IGNORED))]
    return sorted(found)


def _read_size_or_max(image_path: Path) -> tuple[int, int]:
    try:
        return read_image_size(image_path)
    except ImageError:  # the error is reported when the image is read
        return int(MAX_COORDINATE), int(MAX_COORDINATE)
