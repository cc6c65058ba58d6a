"""Reader for Cityscapes (Cordts et al. 2016): segmentation into 19 classes, boxes from instances, depth from disparity.

``leftImg8bit/<split>/<city>/*_leftImg8bit.png``, ``gtFine/.../*_gtFine_labelIds.png``, ``..._instanceIds.png``,
``disparity/.../*_disparity.png``, ``camera/.../*_camera.json``; any label may be absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.config import config_dataclass
from perception.data.class_names import ClassMap, ClassNames, Superclasses, map_classes, map_pixel_classes
from perception.data.dataset import check_label_size
from perception.data.formats.cityscapes_ids import (
    CLASSES,
    LABEL_IDS,
    THING_CLASSES,
    read_instance_ids,
    read_label_ids,
    to_instances,
    to_label_ids,
)
from perception.data.formats.depth_maps import check_intrinsics, to_depth_map
from perception.data.formats.legend import build_lookup_table
from perception.files.folders import find_boundary, list_images, require_folder
from perception.files.maps import read_map
from perception.files.strict_json import quote_value, read_json
from perception.files.text_files import list_folder_files
from perception.types import IGNORE_INDEX, Annotation, Camera, ConfigError, DataError, DenseMap


@config_dataclass
class CityscapesConfig:
    """Configuration of the reader for Cityscapes.

    The ``*_task`` fields are task names of the recipe; None = not read. ``rename``, ``ignore``, ``labels_only`` and
    ``superclasses`` map the 19 class names of the segmentation masks to the recipe's, as in `SegmentationMasksConfig`.
    The ``detection_*`` keys map the names of `THING_CLASSES` to the recipe's, as in `CocoConfig`.

    Attributes:
        root: folder that contains ``leftImg8bit``, relative to the data root.
        split: train, val, test or train_extra.
        annotations: "gtFine" or "gtCoarse".
        max_depth: largest valid depth, in metres; None = no limit.
        far_classes: those of the 19 classes that are infinitely far (sky). Their pixels get the depth ``max_depth`` in
            images with a segmentation mask. Without a depth label in training, a network predicts arbitrary depths
            there, even small ones.
    """

    root: str
    split: str = "train"
    format: Literal["cityscapes"] = "cityscapes"
    segmentation_task: str | None = "segmentation"
    depth_task: str | None = "depth"
    detection_task: str | None = None
    annotations: Literal["gtFine", "gtCoarse"] = "gtFine"
    rename: dict[str, str] | None = None
    ignore: ClassNames = ()
    labels_only: tuple[str, ...] | None = None
    superclasses: Superclasses | None = None
    detection_rename: dict[str, str] | None = None
    detection_ignore: ClassNames = ()
    detection_background: ClassNames = ()
    detection_labels_only: tuple[str, ...] | None = None
    max_depth: float | None = None
    far_classes: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the reader may label."""
        return tuple(t for t in (self.segmentation_task, self.depth_task, self.detection_task) if t is not None)

    def __post_init__(self) -> None:
        if len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(
                f"cityscapes: the tasks are {', '.join(self.tasks)}. Expected a different task for each kind of label."
            )
        if self.far_classes and self.max_depth is None:
            raise ConfigError(
                "cityscapes: far_classes is given without max_depth. Set max_depth in metres, for example 80."
            )
        if strange := sorted(set(self.far_classes) - set(CLASSES)):
            raise ConfigError(
                f"cityscapes: far_classes contains {', '.join(strange)}. Expected some of {', '.join(CLASSES)}."
            )


class CityscapesReader:
    """Reader of a Cityscapes split. An image is labeled for a task if the file exists.

    Segmentation masks with training ids are also supported.
    """

    Config = CityscapesConfig

    def __init__(self, config: CityscapesConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.problems: Counter[str] = Counter()
        self.root = require_folder(root, config.root, "Cityscapes")
        self._folder = require_folder(self.root, f"leftImg8bit/{config.split}", "Cityscapes images")
        self._data_root, pictures = root, list_images(self._folder, "*/*_leftImg8bit.*", root)
        self._label_id_paths = self._find_files(pictures, config.annotations, f"{config.annotations}_labelIds.png")
        self._train_id_paths = self._find_files(pictures, config.annotations, f"{config.annotations}_labelTrainIds.png")
        self._camera_paths = self._find_files(pictures, "camera", "camera.json")
        self._label_paths: dict[str, dict[Path, Path]] = {}
        for task, what, files in (
            (config.segmentation_task, "a segmentation mask", self._train_id_paths | self._label_id_paths),
            (config.depth_task, "a disparity", self._find_files(pictures, "disparity", "disparity.png")),
            (
                config.detection_task,
                "instances",
                self._find_files(pictures, config.annotations, f"{config.annotations}_instanceIds.png"),
            ),
        ):
            if task is not None and task in classes and files:
                self._label_paths[task] = files
                if len(files) < len(pictures):
                    self.problems[f"images without {what}"] += len(pictures) - len(files)
        self.tasks = tuple(self._label_paths)
        self._check_tasks(len(pictures))
        self.class_maps: dict[str, ClassMap] = {}
        if config.segmentation_task in self.tasks:
            names = classes[config.segmentation_task]
            class_map = self.class_maps[config.segmentation_task] = map_pixel_classes(
                CLASSES, names, str(self.root), config.rename, config.ignore, config.labels_only, config.superclasses
            )
            self._label_space = class_map.label_space
            void = tuple(id for id in range(34) if id not in LABEL_IDS)
            self._table = build_lookup_table(LABEL_IDS, class_map, void)
            self._train_table = build_lookup_table(dict(enumerate(CLASSES)), class_map)
        if config.detection_task is not None and config.detection_task in self.tasks:
            self._thing_class_map = self.class_maps[config.detection_task] = map_classes(
                THING_CLASSES.values(), classes[config.detection_task], f"{self.root}, keys detection_...",
                config.detection_rename, config.detection_ignore, config.detection_background,
                config.detection_labels_only,
            )  # fmt: skip
        self.images = [picture for picture in pictures if any(picture in files for files in self._label_paths.values())]

    def _check_tasks(self, num_images: int) -> None:
        config = self.config
        if not self.tasks:
            raise DataError(
                f"{self.root} has no labels for the tasks of the recipe: {num_images} images in split "
                f"'{config.split}' without labels of {', '.join(config.tasks)}. "
                f"Expected {config.annotations}/ or disparity/ beside leftImg8bit/."
            )
        without = sum(
            picture not in self._camera_paths for picture in self._label_paths.get(config.depth_task or "", ())
        )
        if without:
            raise DataError(
                f"{self.root}: {without} disparities have no camera file. "
                f"Expected camera/{config.split}/*/*_camera.json."
            )

    def _find_files(self, image_paths: Mapping[Path, str], folder: str, ending: str) -> dict[Path, Path]:
        """Image -> its file in a parallel folder tree, for images that have one."""
        at = self.root / folder / self.config.split
        if not at.is_dir():
            return {}
        at = at.resolve()
        files = {
            (city.name, name): path
            for city in sorted(at.glob("*/"))
            for name, path in list_folder_files(city, find_boundary(at, self._data_root), f"_{ending}").items()
        }
        names = {p: (n.partition("/")[0], Path(n).stem.removesuffix("_leftImg8bit")) for p, n in image_paths.items()}
        result = {picture: files[name] for picture, name in names.items() if name in files}
        if len(result) < len(files):
            self.problems[f"{ending} without an image"] += len(files) - len(result)
        return result

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Return the available labels: segmentation uint8 [H, W], depth float32 [H, W] in metres, boxes."""
        picture, config = self.images[index], self.config
        result: dict[str, Annotation] = {}
        label_map = None
        if config.segmentation_task and (path := self._find_path(config.segmentation_task, picture)):
            label_map = self._read_mask(picture, path)
            check_label_size(str(path), label_map.values.shape, picture, size)
            result[config.segmentation_task] = label_map
        if config.depth_task and (path := self._find_path(config.depth_task, picture)):
            depth = self._read_depth(picture, path)
            check_label_size(str(path), depth.values.shape, picture, size)
            result[config.depth_task] = depth
        if config.detection_task and (path := self._find_path(config.detection_task, picture)):
            ids = read_instance_ids(path)
            check_label_size(str(path), ids.map.shape, picture, size)
            if label_map is not None:
                self._check_agreement(path, ids.map, label_map)
            if (instances := to_instances(ids, self._thing_class_map)) is not None:
                result[config.detection_task] = instances
        return result

    def _find_path(self, task: str, image_path: Path) -> Path | None:
        return self._label_paths.get(task, {}).get(image_path)

    def camera(self, index: int) -> Camera | None:
        """Return the intrinsics from the camera file; None if absent."""
        path = self._camera_paths.get(self.images[index])
        return None if path is None else read_camera_file(path)[0]

    def _read_mask(self, image_path: Path, path: Path) -> DenseMap:
        training = image_path not in self._label_id_paths
        values = cv2.LUT(read_label_ids(path, training), self._train_table if training else self._table)
        return DenseMap(values, values != IGNORE_INDEX, label_space=self._label_space)

    def _check_agreement(self, path: Path, ids: NDArray[np.uint16], label_map: DenseMap) -> None:
        """Raise DataError if the instances and the segmentation mask belong to different images."""
        check_label_size(str(path), ids.shape, Path("the segmentation mask beside it"), label_map.values.shape)
        every = slice(None, None, 8)  # every 8th row suffices to detect another image
        differing = (self._table[to_label_ids(ids[every])] != label_map.values[every]).mean()
        if differing > 0.05:
            raise DataError(
                f"{path}: {differing:.0%} of the pixels have another class in the segmentation mask beside it. "
                "Expected instances and segmentation mask of the same image. Download both again."
            )

    def _read_depth(self, image_path: Path, path: Path) -> DenseMap:
        stored = read_map(path)
        if stored.dtype != np.uint16:
            raise DataError(f"{path} has 8 bits per pixel. Expected Cityscapes' disparity, a 16-bit PNG.")
        camera, baseline = read_camera_file(self._camera_paths[image_path])
        disparity = (stored.astype(np.float32) - 1) / 256  # stored 0: no measurement; 1: infinitely far
        known = disparity > 0
        depth = np.divide(baseline * camera.fx, disparity, out=np.zeros_like(disparity), where=known)
        return self._fill_far_depth(to_depth_map(depth, self.config.max_depth), image_path)

    def _fill_far_depth(self, depth: DenseMap, image_path: Path) -> DenseMap:
        training = image_path not in self._label_id_paths
        path = self._train_id_paths.get(image_path) if training else self._label_id_paths[image_path]
        if not self.config.far_classes or path is None:
            return depth
        names = dict(enumerate(CLASSES)) if training else LABEL_IDS
        ids = read_label_ids(path, training)
        check_label_size(str(path), ids.shape, image_path, depth.values.shape)
        far = np.isin(ids, [id for id, name in names.items() if name in self.config.far_classes])
        return DenseMap(np.where(far, np.float32(self.config.max_depth or 0), depth.values), depth.valid | far)


@lru_cache(maxsize=4096)
def read_camera_file(path: Path) -> tuple[Camera, float]:
    """Read the intrinsics and the baseline in metres from a camera file. Raises DataError if it is invalid."""
    content: Any = read_json(path)
    try:
        intrinsic = {name: float(content["intrinsic"][name]) for name in ("fx", "fy", "u0", "v0")}
        baseline = float(content["extrinsic"]["baseline"])
        camera = Camera(intrinsic["fx"], intrinsic["fy"], intrinsic["u0"], intrinsic["v0"])
        check_intrinsics(camera, str(path))
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise DataError(
            f"{path} is not a valid Cityscapes camera file ({quote_value(str(error), 200)}). "
            "Expected intrinsic fx, fy, u0, v0 and extrinsic baseline."
        ) from error
    if not 0 < baseline < 1e3:
        raise DataError(f"{path}: baseline is {baseline}. Expected metres between the two cameras, 0 to 1000.")
    return camera, baseline
