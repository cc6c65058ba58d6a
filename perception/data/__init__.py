"""Data sets: readers of label formats, sources that join them, and their part of the recipe.

A new format needs a module with a reader (see `perception.data.dataset.DatasetReader`) and a line in `DATASETS`.
This module does not import torch. The mixture and the loader are in `perception.data.mixture` and
`perception.data.loader`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

from perception.config import config_dataclass
from perception.data.class_names import find_classes_by_exclusion, suggest_class_name
from perception.data.dataset import DatasetReader, DataSource
from perception.data.formats.bdd100k import Bdd100kConfig, Bdd100kReader
from perception.data.formats.cityscapes import CityscapesConfig, CityscapesReader
from perception.data.formats.coco import CocoConfig, CocoReader
from perception.data.formats.coco_panoptic import CocoPanopticConfig, CocoPanopticReader
from perception.data.formats.depth_maps import DepthMapsConfig, DepthMapsReader, check_intrinsics
from perception.data.formats.image_labels import ImageLabelsConfig, ImageLabelsReader
from perception.data.formats.kitti import KittiConfig, KittiReader
from perception.data.formats.kitti_depth import KittiDepthConfig, KittiDepthReader
from perception.data.formats.nyuv2 import Nyuv2Config, Nyuv2Reader
from perception.data.formats.segmentation_masks import SegmentationMasksConfig, SegmentationMasksReader
from perception.data.formats.voc import VocConfig, VocReader
from perception.data.formats.yolo import YoloConfig, YoloReader
from perception.data.formats.yolo_masks import YoloMasksConfig, YoloMasksReader
from perception.data.sampler import MixConfig
from perception.data.transforms import AugmentConfig
from perception.files.image_headers import MAX_PIXELS
from perception.types import Camera, ConfigError, DataError

DATASETS = {
    "coco": CocoReader,
    "coco_panoptic": CocoPanopticReader,
    "segmentation_masks": SegmentationMasksReader,
    "cityscapes": CityscapesReader,
    "depth_maps": DepthMapsReader,
    "image_labels": ImageLabelsReader,
    "kitti": KittiReader,
    "kitti_depth": KittiDepthReader,
    "nyuv2": Nyuv2Reader,
    "yolo": YoloReader,
    "yolo_masks": YoloMasksReader,
    "voc": VocReader,
    "bdd100k": Bdd100kReader,
}
"""Format -> reader. A new format also needs its config in `ReaderConfig`."""

try:
    from pydantic import Field

    _format_field = Field(discriminator="format")
except ImportError:  # installations that read images but no recipes
    _format_field = None

ReaderConfig: TypeAlias = Annotated[
    KittiConfig
    | KittiDepthConfig
    | Nyuv2Config
    | YoloConfig
    | YoloMasksConfig
    | CocoConfig
    | CocoPanopticConfig
    | SegmentationMasksConfig
    | CityscapesConfig
    | DepthMapsConfig
    | ImageLabelsConfig
    | VocConfig
    | Bdd100kConfig,
    _format_field,
]


@config_dataclass
class SourceConfig:
    """Images and the readers that label them.

    Attributes:
        name: name of the source, without "/".
        labels: the readers.
        weight: how often its images are used in training, relative to the other sources.
        camera: intrinsics in pixels of its images, if no reader gives any; None = unknown.
    """

    name: str
    labels: tuple[ReaderConfig, ...]
    weight: float = 1.0
    camera: Camera | None = None

    def __post_init__(self) -> None:
        if not self.labels:
            raise ConfigError(
                f"Source '{self.name}' has no labels. Give at least one reader, for example {{format: coco, ...}}."
            )
        if not self.name or "/" in self.name:
            raise ConfigError(f"The name of a source is '{self.name}'. Expected a name without '/'.")
        if not 1e-3 <= self.weight <= 1e6:
            raise ConfigError(
                f"Source '{self.name}' has weight {self.weight}. Expected 0.001 to 1000000; remove it instead of 0."
            )
        check_intrinsics(self.camera, f"Source '{self.name}'")


@config_dataclass
class DataConfig:
    """The data section of a recipe.

    Attributes:
        root: folder of the relative paths of the sources.
        size: (height, width) of the network's input in training and evaluation, multiples of 32.
        augment: random changes of the training images.
        mix: how the training sources are mixed.
        train: sources for training.
        validation: sources for evaluation.
        workers: processes that read and augment; 0 = the training process itself.
        timeout: seconds without a batch after which a worker counts as hanging.
        max_damaged: largest fraction of a source's images that training may skip as unreadable.
    """

    root: str = "data"
    size: tuple[int, int] = (256, 512)
    augment: AugmentConfig = AugmentConfig()
    mix: MixConfig = MixConfig()
    train: tuple[SourceConfig, ...] = ()
    validation: tuple[SourceConfig, ...] = ()
    workers: int = 2
    timeout: float = 50
    max_damaged: float = 0.01

    def __post_init__(self) -> None:
        if any(side < 32 or side % 32 for side in self.size):
            raise ConfigError(f"data.size is {list(self.size)}. Expected height and width in multiples of 32.")
        if self.size[0] * self.size[1] > MAX_PIXELS:
            raise ConfigError(f"data.size is {list(self.size)}. Expected at most {MAX_PIXELS:,} pixels.")
        if not 0 <= self.workers <= 256 or not self.timeout > 0:
            raise ConfigError(
                f"data.workers is {self.workers} and data.timeout {self.timeout}. Expected 0 to 256 and over 0 s."
            )
        for part in ("train", "validation"):
            names = [source.name for source in getattr(self, part)]
            if len(set(names)) < len(names):
                raise ConfigError(f"data.{part} has two sources with the same name: {', '.join(names)}. Rename one.")


def open_source(config: SourceConfig, root: str | Path, classes: Mapping[str, Sequence[str]]) -> DataSource | None:
    """Open a source. Readers of tasks that are not in ``classes`` are not opened.

    Args:
        config: the source.
        root: folder of the relative paths.
        classes: task -> its class list.

    Returns:
        The source, or None if it labels none of the tasks.

    Raises:
        DataError: the files do not match the config.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f"No data folder at {root.absolute()}. Set data.root in the recipe or on the command line: data.root=..."
        )
    recipe = {task: tuple(names) for task, names in classes.items()}
    trained = [labels for labels in config.labels if set(labels.tasks) & set(recipe)]
    readers: list[DatasetReader] = [DATASETS[labels.format](labels, root, recipe) for labels in trained]
    return DataSource(config.name, config.weight, readers, root, config.camera) if readers else None


def open_sources(
    configs: Sequence[SourceConfig],
    root: str | Path,
    classes: Mapping[str, Sequence[str]],
    require_all_classes: bool = False,
) -> list[DataSource]:
    """Open the sources that label any of the tasks in ``classes``.

    Args:
        configs: the sources.
        root: folder of the relative paths.
        classes: task -> its class list.
        require_all_classes: require a label source for every task and class, as training does.

    Raises:
        DataError: no source labels any of the tasks, or a required class is missing.
    """
    sources = [source for config in configs if (source := open_source(config, root, classes)) is not None]
    if not sources:
        raise DataError(
            f"None of the {len(configs)} sources labels any of the tasks {', '.join(classes)}. Add one to the recipe."
        )
    for task, names in classes.items() if require_all_classes else ():
        check_label_coverage(task, names, sources)
    return sources


def check_label_coverage(task: str, class_names: Sequence[str], sources: Sequence[DataSource]) -> None:
    """Raise DataError if no source labels ``task``, or no source labels one of its ``class_names``."""
    mine = [source for source in sources if task in source.tasks]
    if not mine:
        raise DataError(
            f"No source labels task '{task}'. Add such a source, or train without the task (--tasks). Sources: "
            + "; ".join(f"{source.name}: {', '.join(source.tasks)}" for source in sources)
        )
    maps = [reader.class_maps[task] for source in mine for reader in source.readers if task in reader.class_maps]
    if any(found.labeled_classes is None for found in maps) or not maps:
        return
    excluded = find_classes_by_exclusion([found for found in maps if found.label_space is not None], len(class_names))
    for index, name in enumerate(class_names):
        if not excluded[index] and not any(
            found.labeled_classes is not None and found.labeled_classes[index] for found in maps
        ):
            theirs = sorted({theirs for found in maps for theirs in found.indices})
            raise DataError(
                f"Class '{name}' of task '{task}' is labeled by none of the sources "
                f"{', '.join(source.name for source in mine)}.{suggest_class_name(name, theirs)} Give a reader "
                f"rename: {{...: {name}}}, or remove the class from the recipe."
            )


__all__ = [
    "DATASETS",
    "AugmentConfig",
    "DataConfig",
    "DataSource",
    "MixConfig",
    "ReaderConfig",
    "SourceConfig",
    "open_source",
    "open_sources",
]
