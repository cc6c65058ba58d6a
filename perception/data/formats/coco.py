"""Reader for boxes and masks in COCO's instances JSON (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perception.config import config_dataclass
from perception.data.class_names import (
    BACKGROUND,
    UNMASKED,
    ClassMap,
    ClassNames,
    Superclasses,
    map_classes,
    map_mask_classes,
    mask_value,
)
from perception.data.dataset import check_label_size
from perception.data.formats.boxes import ROTATED_BOXES, BoxTable, LabeledClasses, UnlabeledPolicy, select_labeled_rows
from perception.data.formats.coco_index import (
    category_names,
    find_existing_images,
    make_size_reader,
    read_instance_index,
)
from perception.data.formats.coco_partial import find_labeled_classes
from perception.data.formats.coco_records import Arrays
from perception.data.formats.rle_masks import MASK_FAULTS, MaskTable
from perception.files.folders import require_file, require_folder
from perception.files.image_finder import ImageFinder, ImageNaming
from perception.types import IGNORE_INDEX, Annotation, Camera, ConfigError, DataError, DenseMap

logger = logging.getLogger(__name__)

BRUSHED_CROWDS = "ignore regions (iscrowd: 1) with a mask of one piece"
"""Problem kind: CVAT's brush writes such masks for every object; human annotators rarely do."""


@config_dataclass
class CocoConfig:
    """Configuration of the reader for COCO's instances.

    Attributes:
        images: folder of the images, relative to the data root.
        annotations: JSON file, relative to the data root.
        format: name of this reader.
        task: detection task of the recipe.
        rename: category -> class of the recipe. Several categories may become one class.
        ignore: categories whose boxes become ignore regions, neither object nor background.
        background: categories whose boxes are dropped, because they are background for the recipe.
        labels_only: classes of the recipe that this source labels; default: those that its categories map to.
        match_by: "path": file names are paths below ``images``; "base": only the last part counts (`ImageFinder`).
        crowds: what annotations with ``iscrowd: 1`` become: ignore regions (COCO) or normal objects. CVAT's brush
            writes ``iscrowd: 1`` for normal objects.
        difficult: what annotations with the flag ``difficult`` become: ignore regions, objects or background.
        unlabeled: meaning of an image without annotations: it contains no object ("empty") or it is not labeled yet
            ("skip"). None = empty, and the doctor reports it.
        max_missing: largest fraction of the listed images that may be missing.
        segmentation_task: task that gets the masks as a segmentation mask, small ones on top; None = not used.
        unmasked_class: class of the pixels without a mask; "rest" = any class that the masks do not label; None =
            ignored.
        segmentation_rename: class mapping of the masks, as in `SegmentationMasksConfig`; also the next three. The keys
            without ``segmentation_`` apply only to the boxes.
        segmentation_ignore: see ``segmentation_rename``; ``rest`` = all categories that are not in the recipe.
        segmentation_labels_only: see ``segmentation_rename``.
        segmentation_superclasses: see ``segmentation_rename``.
    """

    images: str
    annotations: str
    format: Literal["coco"] = "coco"
    task: str = "detection"
    rename: dict[str, str] | None = None
    ignore: ClassNames = ()
    background: ClassNames = ()
    labels_only: tuple[str, ...] | None = None
    match_by: ImageNaming = "path"
    crowds: Literal["ignore", "object"] = "ignore"
    difficult: Literal["ignore", "object", "background"] = "ignore"
    unlabeled: UnlabeledPolicy = None
    max_missing: float = 0.01
    segmentation_task: str | None = None
    unmasked_class: str | None = None
    segmentation_rename: dict[str, str] | None = None
    segmentation_ignore: ClassNames = ()
    segmentation_labels_only: tuple[str, ...] | None = None
    segmentation_superclasses: Superclasses | None = None

    def __post_init__(self) -> None:
        keys = (
            "unmasked_class",
            *(f"segmentation_{key}" for key in ("rename", "ignore", "labels_only", "superclasses")),
        )
        if self.segmentation_task is None and any(getattr(self, key) for key in keys):
            raise ConfigError(
                "coco: unmasked_class or segmentation_* is given without segmentation_task. Set segmentation_task."
            )
        if self.segmentation_task == self.task:
            raise ConfigError(f"coco: task and segmentation_task are both '{self.task}'. Use two different names.")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the reader may label."""
        return (self.task,) if self.segmentation_task is None else (self.task, self.segmentation_task)


class CocoReader:
    """Reader of COCO images. All images of the JSON are labeled; no annotations means no objects (see ``unlabeled``).

    If the images list the categories that they are labeled for (LVIS), other categories are not labeled.
    Additional attributes: ``categories`` (JSON id -> name), and ``class_map`` and ``segmentation_class_map``
    (name -> the recipe's class; None if the recipe does not train the task).
    """

    Config = CocoConfig

    def __init__(self, config: CocoConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = tuple(task for task in config.tasks if task in classes)
        self.problems: Counter[str] = Counter()
        self.path = require_file(root, config.annotations, "COCO annotations")
        names = ImageFinder(require_folder(root, config.images, "images"), root, config.match_by)
        index = read_instance_index(self.path, config.segmentation_task in classes, make_size_reader(names))
        self.categories = self._select_categories(index, classes)
        self.class_map = self.segmentation_class_map = None
        if config.task in classes:
            self.class_map = map_classes(
                self.categories.values(), classes[config.task], str(self.path), config.rename, config.ignore,
                config.background, config.labels_only,
            )  # fmt: skip
        if config.segmentation_task is not None and config.segmentation_task in classes:
            self.segmentation_class_map = map_mask_classes(
                self.categories.values(), config.unmasked_class, classes[config.segmentation_task],
                f"{self.path}, keys segmentation_...", config.segmentation_rename, config.segmentation_ignore,
                config.segmentation_labels_only, config.segmentation_superclasses,
            )  # fmt: skip
        maps = {config.task: self.class_map, config.segmentation_task: self.segmentation_class_map}
        self.class_maps = {task: found for task, found in maps.items() if task is not None and found is not None}
        annotated = np.zeros(len(index["image_ids"]), bool)
        annotated[index["image_of"][~index["absent"]]] = True
        annotated[index.get("negatives", index["image_sizes"][:0])[:, 0]] = True
        partial = "negatives" in index and self.segmentation_class_map is None  # other images have no labels
        unlabelled = "skip" if partial else config.unlabeled
        rows, self.num_unannotated = select_labeled_rows(annotated, unlabelled, str(self.path), self.problems)
        records = find_existing_images(index, rows, names, self.path, config.max_missing, self.problems)
        self.images = [path for path, _, _ in records]
        self.sizes = [size for _, size, _ in records]
        self._rows = np.array([row for _, _, row in records], np.int64)
        positions = np.full(len(annotated), -1)
        positions[self._rows] = np.arange(len(self._rows))
        places = positions[index["image_of"]]
        every = list(category_names(index).values())
        if self.class_map is not None:
            self._count_anomalies(index, places)
            self._box_table = self._build_box_table(index, positions, every, self.class_map, len(classes[config.task]))
        if self.segmentation_class_map is not None:
            self._mask_table = self._build_mask_table(index, places, every, self.segmentation_class_map)

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Return the boxes, clipped to the image, and the segmentation mask, uint8 [H, W].

        Raises DataError if the JSON has a different image size.
        """
        check_label_size(
            f"{self.path}: the record of {self.images[index].name}", self.sizes[index], self.images[index], size
        )
        result: dict[str, Annotation] = {}
        if self.class_map is not None:
            instances = self._box_table.instances(index)
            if instances.labeled_classes is None or instances.labeled_classes.any():
                result[self.config.task] = instances
        if self.segmentation_class_map is not None and self.config.segmentation_task is not None:
            outside = mask_value(self.segmentation_class_map, UNMASKED)
            values = self._mask_table.draw_mask(int(self._rows[index]), self.sizes[index], outside)
            space = self.segmentation_class_map.label_space
            result[self.config.segmentation_task] = DenseMap(values, values != IGNORE_INDEX, label_space=space)
        return result

    def camera(self, index: int) -> Camera | None:
        """Return None: COCO has no intrinsics."""
        return None

    def _select_categories(self, index: Arrays, classes: Mapping[str, tuple[str, ...]]) -> dict[int, str]:
        """Id -> name, without placeholder categories, unless the recipe names them."""
        config = self.config
        named = {name for task in config.tasks for name in classes.get(task, ())}
        options = (config.rename, config.ignore, config.background, config.segmentation_rename)
        options = (*options, config.segmentation_ignore, config.segmentation_superclasses)
        named |= {name for option in options if option and option != "rest" for name in option}
        nothing = dict(zip(index["category_ids"].tolist(), index["category_idle"].tolist(), strict=True))
        every = category_names(index)
        kept = {id: name for id, name in every.items() if not nothing[id] or name in named}
        if idle := len(every) - len(kept):
            self.problems["placeholder categories skipped: background or common supercategory, no annotations"] += idle
        return kept

    def _count_anomalies(self, index: Arrays, image_indices: NDArray) -> None:
        """Count the annotations in which a tool deviates from COCO's format."""
        here = image_indices >= 0
        for kind, count in (
            (ROTATED_BOXES, int(index["turned"][here].sum())),
            ("annotations without box and mask skipped", int(index["absent"][here].sum())),
            (BRUSHED_CROWDS, int(index["brushed"][0]) if self.config.crowds == "ignore" else 0),
        ):
            if count:
                self.problems[kind] += count

    def _build_box_table(
        self, index: Arrays, positions: NDArray, names: list[str], class_map: ClassMap, num_classes: int
    ) -> BoxTable:
        config = self.config
        places = np.where(index["absent"], -1, positions[index["image_of"]])
        regions = index["ignored"] | (index["crowds"] & (config.crowds == "ignore"))
        if config.difficult == "ignore":
            regions = regions | index["difficult"]
        elif config.difficult == "background":
            places = np.where(index["difficult"], -1, places)
        known = None
        if "negatives" in index:
            labelled, partly = (
                np.stack([positions[pairs[:, 0]], pairs[:, 1]], 1)[positions[pairs[:, 0]] >= 0]
                for pairs in find_labeled_classes(index, names, class_map, num_classes)
            )
            known = LabeledClasses(labelled, partly, len(self.sizes), num_classes)
        return build_box_table(index, places, regions, names, class_map, self.sizes, self.problems, known)

    def _build_mask_table(
        self, index: Arrays, image_indices: NDArray, names: list[str], class_map: ClassMap
    ) -> MaskTable:
        """Masks with their class values. The box of a faulty mask is ignored, counted and logged."""
        faults = index["mask_faults"]
        if len(faults) and faults.all():
            raise DataError(
                f"{self.path}: none of its {len(faults)} annotations has a mask; "
                f"of the first: {MASK_FAULTS[faults[0]]}. "
                "Use the file with segmentations, or remove segmentation_task."
            )
        for fault in np.unique(faults[image_indices >= 0]).tolist():
            if fault:
                which = np.flatnonzero((faults == fault) & (image_indices >= 0))
                self.problems[f"masks dropped: {MASK_FAULTS[fault]}"] += len(which)
                logger.warning(
                    "%s: the masks of %d annotations are dropped and their boxes are ignored, the first in %s: %s",
                    self.path, len(which), self.images[image_indices[which[0]]].name, MASK_FAULTS[fault],
                )  # fmt: skip
        values = np.array([mask_value(class_map, name) for name in names], np.uint8)[index["category_of"]]
        values[faults > 0] = IGNORE_INDEX
        return MaskTable(index["masks"], index["mask_offsets"], index["mask_starts"], values[index["mask_rows"]])


def build_box_table(
    index: Arrays, image_indices: NDArray, ignore_regions: NDArray[np.bool_], names: Sequence[str], class_map: ClassMap,
    sizes: Sequence[tuple[int, int]], problems: Counter[str], labeled_classes: LabeledClasses | None = None,
) -> BoxTable:  # fmt: skip
    """Build the table of the boxes of an index. Boxes of categories that are not in ``class_map`` are dropped.

    Args:
        index: arrays of `read_instance_index` or `read_panoptic_index`.
        image_indices: [M], the image of each box; -1 = not used.
        ignore_regions: [M], boxes that become ignore regions, as do those of categories that are not labeled.
        names: [C], names of the categories.
        class_map: category name -> the recipe's class.
        sizes: (height, width) of the images.
        problems: counts of the problems found.
        labeled_classes: which classes are labeled in each image; None = those of ``class_map``.
    """
    label_of = np.array([class_map.indices.get(name, BACKGROUND) for name in names])
    doubtful = np.array([name in class_map.indices and not class_map.is_labeled(name) for name in names])
    corners = index["boxes"].copy()
    with np.errstate(all="ignore"):  # infinite numbers
        corners[:, 2:] += corners[:, :2]
    category_of = index["category_of"]
    labels, ignore = label_of[category_of], doubtful[category_of] | ignore_regions
    return BoxTable(image_indices, corners, labels, ignore, sizes, class_map, problems, labeled_classes)
