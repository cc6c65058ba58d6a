"""The tree of BDD100K (Yu et al. 2020): boxes and attributes in JSON; drivable area, lanes and semantic maps in PNG.

``images/100k/<split>/*.jpg``, ``labels/det_20/det_<split>.json``, ``labels/drivable/masks/<split>/*.png``,
``labels/lane/masks/...``, ``labels/sem_seg/masks/...``. Labels may be absent; those of 2018 serve as well.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perception.config import configuration
from perception.data.class_names import ClassMap, Coarse, Names, map_classes, map_pixels
from perception.data.dataset import check_size
from perception.data.formats.bdd100k_maps import DRIVABLE_KIND, SEMANTIC_KIND, Maps, find_maps, lane_kind
from perception.data.formats.boxes import HUGE, BoxTable, labels_and_doubts
from perception.data.formats.scalabel import ATTRIBUTES, Frames, open_frames
from perception.files.folders import existing_folder, list_pictures, present
from perception.files.image_names import NamesBy, PictureNames
from perception.files.images import PictureError, read_size
from perception.types import Annotation, Camera, ConfigError, DataError, ImageLabel

CLASSES = (
    "pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "traffic light", "traffic sign",
)  # fmt: skip
CLASSES_2018 = ("person", "rider", "car", "truck", "bus", "train", "motor", "bike", "traffic light", "traffic sign")
OTHERS = ("other person", "other vehicle", "trailer")
"""Categories of 2020 that BDD100K's evaluation ignores."""

ATTRIBUTE_VALUES = {
    "weather": ("clear", "partly cloudy", "overcast", "rainy", "snowy", "foggy"),
    "scene": ("city street", "highway", "residential", "parking lot", "gas stations", "tunnel"),
    "timeofday": ("daytime", "dawn/dusk", "night"),
}
LABELS = ("labels/det_20/det_{split}.json", "labels/bdd100k_labels_images_{split}.json", "labels/100k/{split}")


@configuration
class Bdd100kConfig:
    """root: folder that holds ``images`` and ``labels``, relative to the data root. split: train, val or test.

    images:    folder that holds the split's folder of pictures: images/100k or images/10k
    labels:    file of boxes and attributes, or folder with a file per picture, under ``root``; default: those of 2020,
               else of 2018, for images/100k, and none for others
    size:      (height, width) of the pictures that boxes refer to, where the labels do not say; None = each picture's
    detection_task, drivable_task, lane_task, segmentation_task, classification_task: names in the recipe; None = not
               read. Those that the recipe does not have are not read
    lane:      what the classes of the lane task are
    attribute: what the classes of the classification task are; None = no classification
    <kind>_rename, ...: from BDD100K's names to those of the recipe's task; boxes as in `CocoConfig`, others as in
               `LabelMapsConfig`
    names:     "path" or "base", how ``labels`` names the pictures: as in `CocoConfig`
    allow_missing: largest fraction of the pictures in ``labels`` that may be missing
    """

    root: str
    split: str = "train"
    format: Literal["bdd100k"] = "bdd100k"
    images: str = "images/100k"
    labels: str | None = None
    size: tuple[int, int] | None = (720, 1280)
    detection_task: str | None = "detection"
    detection_rename: dict[str, str] | None = None
    detection_ignore: Names = ()
    detection_background: Names = ()
    detection_labels_only: tuple[str, ...] | None = None
    drivable_task: str | None = "drivable"
    drivable_rename: dict[str, str] | None = None
    drivable_ignore: Names = ()
    drivable_labels_only: tuple[str, ...] | None = None
    drivable_coarse: Coarse | None = None
    lane_task: str | None = "lane"
    lane: Literal["category", "direction", "style"] = "category"
    lane_rename: dict[str, str] | None = None
    lane_ignore: Names = ()
    lane_labels_only: tuple[str, ...] | None = None
    lane_coarse: Coarse | None = None
    segmentation_task: str | None = "segmentation"
    segmentation_rename: dict[str, str] | None = None
    segmentation_ignore: Names = ()
    segmentation_labels_only: tuple[str, ...] | None = None
    segmentation_coarse: Coarse | None = None
    classification_task: str | None = "classification"
    attribute: Literal["weather", "scene", "timeofday"] | None = None
    classification_rename: dict[str, str] | None = None
    classification_ignore: Names = ()
    classification_labels_only: tuple[str, ...] | None = None
    names: NamesBy = "path"
    allow_missing: float = 0.01

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        classification = None if self.attribute is None else self.classification_task
        maps = (self.drivable_task, self.lane_task, self.segmentation_task)
        return tuple(task for task in (self.detection_task, *maps, classification) if task is not None)

    def __post_init__(self) -> None:
        if len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(f"bdd100k: two kinds of labels go to one of the tasks {', '.join(self.tasks)}.")
        if self.size is not None and not all(0 < side <= HUGE for side in self.size):
            raise ConfigError(f"bdd100k: size is {list(self.size)}. Expected height and width in pixels.")


class Bdd100kReader:
    """Pictures with any of the labels that the recipe trains. A frame without boxes labels its picture as empty."""

    Config = Bdd100kConfig

    def __init__(self, config: Bdd100kConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.problems: Counter[str] = Counter()
        self.root = existing_folder(root, config.root, "BDD100K")
        folder = existing_folder(self.root, f"{config.images}/{config.split}", "BDD100K pictures")
        named = list_pictures(folder, root=root)
        pictures, self._stem_of = list(named), {picture: Path(name).stem for picture, name in named.items()}
        classification = config.classification_task if config.attribute else None
        path = self._label_path() if config.detection_task in classes or classification in classes else None
        frames = None if path is None else open_frames(path)
        finder = PictureNames(folder, root, config.names)
        frame_of = {} if frames is None else self._frame_of(frames, pictures, finder, str(path))
        self._detection = config.detection_task if frames is not None and config.detection_task in classes else None
        self._classification = classification if frames is not None and classification in classes else None
        self.class_maps: dict[str, ClassMap] = {}
        self._values = {}
        if frames is not None and self._classification is not None:
            self._values = self._classified(frames, frame_of, classes[self._classification], str(path))
        self._maps = self._label_maps(root, classes)
        self.class_maps |= {task: class_map for task, (_, class_map) in self._maps.items()}
        self.tasks = tuple(task for task in (self._detection, *self._maps, self._classification) if task is not None)
        self.images = [
            picture
            for picture in pictures
            if (self._detection is not None and picture in frame_of)
            or picture in self._values
            or any(self._stem_of[picture] in maps.files for maps, _ in self._maps.values())
        ]
        if not self.images:
            raise DataError(
                f"{self.root} labels nothing that the recipe trains: {len(pictures)} pictures in {config.images}/"
                f"{config.split}, none with labels of {', '.join(config.tasks)}. Correct root, split, images or labels."
            )
        self._sizes: list[tuple[int, int] | None] = [None] * len(self.images)
        if frames is not None and self._detection is not None:
            self._boxes = self._read_boxes(frames, frame_of, classes[self._detection], str(path))

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Whichever the picture has: boxes clipped to it, label maps uint8 [H, W], the class of its attribute."""
        picture = self.images[index]
        result: dict[str, Annotation] = {}
        made_for = self._sizes[index]
        if self._detection is not None and made_for is not None:
            check_size(f"{self.root}: boxes of {picture.name} (size in the recipe)", made_for, picture, size)
            result[self._detection] = self._boxes.instances(index)
        for task, (maps, class_map) in self._maps.items():
            if self._stem_of[picture] in maps.files:
                path, label_map = maps.read(self._stem_of[picture], class_map)
                check_size(str(path), label_map.values.shape, picture, size)
                result[task] = label_map
        if self._classification is not None and picture in self._values:
            values = np.zeros(self._count, np.float32)
            values[self._values[picture]] = 1
            result[self._classification] = ImageLabel(values)
        return result

    def camera(self, index: int) -> Camera | None:
        return None

    def _label_path(self) -> Path | None:
        """The file or folder of boxes and attributes; None where there is none."""
        config = self.config
        usual = LABELS if config.images == "images/100k" else ()
        for name in [config.labels] if config.labels else [name.format(split=config.split) for name in usual]:
            path = self.root / name
            if os.path.isfile(path) or os.path.isdir(path):  # noqa: PTH112, PTH113 - those of Path raise for odd names
                return path
        if config.labels:
            raise DataError(f"No labels at {self.root / config.labels}. Correct the key labels.")
        return None

    def _frame_of(self, frames: Frames, pictures: list[Path], finder: PictureNames, where: str) -> dict[Path, int]:
        """Picture -> its frame, of the pictures that exist."""
        paths = [finder.find(name, where) for name in frames.names]
        found = present(paths, finder.folder, where, self.config.allow_missing, self.problems, finder.mend)
        result = {path: i for i, (path, there) in enumerate(zip(paths, found, strict=True)) if there}
        if len(result) < sum(found):
            raise DataError(f"{where}: two frames are of the same picture. Keep one of them.")
        if without := sum(picture not in result for picture in pictures):
            self.problems["pictures without a frame of labels"] += without
        if frames.bare:
            self.problems["labels without a shape skipped"] += frames.bare
        return result

    def _class_map(self, kind: str, names: Iterable[str], recipe: tuple[str, ...], where: str) -> ClassMap:
        """The names of a kind of label to those of its task, by the keys that begin with the kind."""
        options: dict[str, Any] = {
            key: getattr(self.config, f"{kind}_{key}", ()) for key in ("rename", "ignore", "background", "labels_only")
        }
        return map_classes(names, recipe, f"{where}, keys {kind}_...", **options)

    def _label_maps(self, data: Path, classes: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[Maps, ClassMap]]:
        """Task -> its label maps."""
        config, stems = self.config, set(self._stem_of.values())
        result = {}
        for name, task, kind in (
            ("drivable", config.drivable_task, DRIVABLE_KIND),
            ("lane", config.lane_task, lane_kind(config.lane)),
            ("segmentation", config.segmentation_task, SEMANTIC_KIND),
        ):
            maps = find_maps(kind, self.root, config.split, data) if task in classes else None
            if task is None or maps is None or not maps.files.keys() & stems:
                continue
            options = (getattr(config, f"{name}_{key}") for key in ("rename", "ignore", "labels_only", "coarse"))
            result[task] = maps, map_pixels(kind.classes, classes[task], f"{maps.folder}, keys {name}_...", *options)
            for problem, number in (
                (f"pictures without a {name} map", len(stems - maps.files.keys())),
                (f"{name} maps without a picture", len(maps.files.keys() - stems)),
            ):
                if number:
                    self.problems[problem] += number
        return result

    def _classified(
        self, frames: Frames, frame_of: dict[Path, int], recipe: tuple[str, ...], where: str
    ) -> dict[Path, int]:
        """Picture -> class of the recipe, of the pictures whose attribute is one."""
        attribute = self.config.attribute or ""
        column = frames.attributes[:, ATTRIBUTES.index(attribute)]
        found = [frames.values[i] for i in np.unique(column[column >= 0])]
        names = dict.fromkeys((*ATTRIBUTE_VALUES[attribute], *found))
        class_map = self._class_map("classification", names, recipe, where)
        self.class_maps[self.config.classification_task or ""] = class_map
        labels = [class_map.index[v] if v in names and class_map.labels(v) else -1 for v in frames.values]
        self._count = len(recipe)
        of_frame = [labels[value] if value >= 0 else -1 for value in column.tolist()]
        return {picture: of_frame[frame] for picture, frame in frame_of.items() if of_frame[frame] >= 0}

    def _read_boxes(self, frames: Frames, frame_of: dict[Path, int], recipe: tuple[str, ...], where: str) -> BoxTable:
        """The boxes of all pictures. Scalabel's corners are pixels, both inclusive: the right edge is ``x2 + 1``."""
        positions = np.full(len(frames.names), -1)
        sizes = [(0, 0)] * len(self.images)
        for index, picture in enumerate(self.images):
            if (frame := frame_of.get(picture)) is not None:
                height, width = frames.sizes[frame].tolist()
                positions[frame] = index
                self._sizes[index] = sizes[index] = (height, width) if height else self.config.size or _size_of(picture)
        names = _category_names(set(frames.categories), self.config)
        class_map = self._class_map("detection", names, recipe, where)
        self.class_maps[self.config.detection_task or ""] = class_map
        labels, doubts = labels_and_doubts(frames.categories, class_map)
        return BoxTable(
            positions[frames.frame], frames.corners + [0, 0, 1, 1], np.array(labels, np.int64)[frames.category],
            frames.ignore | np.array(doubts, bool)[frames.category], sizes, class_map, self.problems,
        )  # fmt: skip


def _category_names(found: set[str], config: Bdd100kConfig) -> list[str]:
    """The class names of the release that a file is of, whether or not it has boxes of all; of other sets, its own."""
    options = (config.detection_rename, config.detection_ignore, config.detection_background)
    named = {name for option in options if option and option != "rest" for name in option}
    for release in (CLASSES, CLASSES_2018):
        if found <= {*release, *OTHERS}:
            return [*release, *sorted((found | named) & set(OTHERS))]
    return sorted(found)


def _size_of(picture: Path) -> tuple[int, int]:
    try:
        return read_size(picture)
    except PictureError:  # whoever reads the picture will say so
        return int(HUGE), int(HUGE)
