"""The tree of Cityscapes (Cordts et al. 2016): label ids to the 19 training classes, instances to boxes, disparity to
metres.

``leftImg8bit/<split>/<city>/*_leftImg8bit.png``, ``gtFine/.../*_gtFine_labelIds.png``, ``..._instanceIds.png``,
``disparity/.../*_disparity.png``, ``camera/.../*_camera.json``; any of the labels may be absent.
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

from perception.config import configuration
from perception.data.class_names import ClassMap, Coarse, Names, map_classes, map_pixels
from perception.data.dataset import check_size
from perception.data.formats.cityscapes_ids import (
    CLASSES,
    LABEL_IDS,
    THINGS,
    instances_of,
    label_ids_of,
    read_instance_ids,
    read_label_ids,
)
from perception.data.formats.depth_maps import check_camera, metres
from perception.data.formats.legend import lookup_table
from perception.files.folders import boundary_of, existing_folder, list_pictures
from perception.files.maps import read_map
from perception.files.strict_json import read_json, shown
from perception.files.text_files import files_in
from perception.types import IGNORE_INDEX, Annotation, Camera, ConfigError, DataError, DenseMap


@configuration
class CityscapesConfig:
    """root: folder that holds ``leftImg8bit``, relative to the data root. split: train, val, test or train_extra.

    segmentation_task, depth_task, detection_task: names in the recipe; None = not read
    fine:        "gtFine" or "gtCoarse"
    rename, ignore, labels_only, coarse: of label maps: from the 19 names to the recipe's, as in `LabelMapsConfig`
    detection_rename, ...: of boxes: from the names of `THINGS` to the recipe's, as in `CocoConfig`
    max_depth:   metres beyond which a disparity is not trusted; None = none
    far:         of the 19 names, those that are farther than anything (sky): their pixels are ``max_depth`` away, where
                 there is a label map. What has no distance in training, a network calls anything, near things too
    """

    root: str
    split: str = "train"
    format: Literal["cityscapes"] = "cityscapes"
    segmentation_task: str | None = "segmentation"
    depth_task: str | None = "depth"
    detection_task: str | None = None
    fine: Literal["gtFine", "gtCoarse"] = "gtFine"
    rename: dict[str, str] | None = None
    ignore: Names = ()
    labels_only: tuple[str, ...] | None = None
    coarse: Coarse | None = None
    detection_rename: dict[str, str] | None = None
    detection_ignore: Names = ()
    detection_background: Names = ()
    detection_labels_only: tuple[str, ...] | None = None
    max_depth: float | None = None
    far: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        return tuple(t for t in (self.segmentation_task, self.depth_task, self.detection_task) if t is not None)

    def __post_init__(self) -> None:
        if len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(f"cityscapes: two kinds of labels go to one of the tasks {', '.join(self.tasks)}.")
        if self.far and self.max_depth is None:
            raise ConfigError("cityscapes: far is given without max_depth. Say how far that is, for example 80.")
        if strange := sorted(set(self.far) - set(CLASSES)):
            raise ConfigError(f"cityscapes: far names {', '.join(strange)}. Expected some of {', '.join(CLASSES)}.")


class CityscapesReader:
    """All pictures of a split; a task is labelled where its file exists. Label maps of training ids serve as well."""

    Config = CityscapesConfig

    def __init__(self, config: CityscapesConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.problems: Counter[str] = Counter()
        self.root = existing_folder(root, config.root, "Cityscapes")
        self._folder = existing_folder(self.root, f"leftImg8bit/{config.split}", "Cityscapes pictures")
        self._data, pictures = root, list_pictures(self._folder, "*/*_leftImg8bit.*", root)
        self._maps = self._found(pictures, config.fine, f"{config.fine}_labelIds.png")
        self._train_maps = self._found(pictures, config.fine, f"{config.fine}_labelTrainIds.png")
        self._cameras = self._found(pictures, "camera", "camera.json")
        self._files: dict[str, dict[Path, Path]] = {}
        for task, what, files in (
            (config.segmentation_task, "a label map", self._train_maps | self._maps),
            (config.depth_task, "a disparity", self._found(pictures, "disparity", "disparity.png")),
            (config.detection_task, "instances", self._found(pictures, config.fine, f"{config.fine}_instanceIds.png")),
        ):
            if task is not None and task in classes and files:
                self._files[task] = files
                if len(files) < len(pictures):
                    self.problems[f"pictures without {what}"] += len(pictures) - len(files)
        self.tasks = tuple(self._files)
        self._check(len(pictures))
        self.class_maps: dict[str, ClassMap] = {}
        if config.segmentation_task in self.tasks:
            names = classes[config.segmentation_task]
            class_map = self.class_maps[config.segmentation_task] = map_pixels(
                CLASSES, names, str(self.root), config.rename, config.ignore, config.labels_only, config.coarse
            )
            self._space = class_map.space
            void = tuple(id for id in range(34) if id not in LABEL_IDS)
            self._table = lookup_table(LABEL_IDS, class_map, void)
            self._train_table = lookup_table(dict(enumerate(CLASSES)), class_map)
        if config.detection_task is not None and config.detection_task in self.tasks:
            self._things = self.class_maps[config.detection_task] = map_classes(
                THINGS.values(), classes[config.detection_task], f"{self.root}, keys detection_...",
                config.detection_rename, config.detection_ignore, config.detection_background,
                config.detection_labels_only,
            )  # fmt: skip
        self.images = [picture for picture in pictures if any(picture in files for files in self._files.values())]

    def _check(self, pictures: int) -> None:
        config = self.config
        if not self.tasks:
            raise DataError(
                f"{self.root} labels nothing that the recipe trains: {pictures} pictures in split '{config.split}' "
                f"without labels of {', '.join(config.tasks)}. Expected {config.fine}/ or disparity/ beside "
                "leftImg8bit/."
            )
        without = sum(picture not in self._cameras for picture in self._files.get(config.depth_task or "", ()))
        if without:
            raise DataError(
                f"{self.root}: {without} disparities have no camera. Expected camera/{config.split}/*/*_camera.json."
            )

    def _found(self, pictures: Mapping[Path, str], folder: str, ending: str) -> dict[Path, Path]:
        """Picture -> its file in a parallel tree, where there is one."""
        at = self.root / folder / self.config.split
        if not at.is_dir():
            return {}
        at = at.resolve()
        files = {
            (city.name, name): path
            for city in sorted(at.glob("*/"))
            for name, path in files_in(city, boundary_of(at, self._data), f"_{ending}").items()
        }
        names = {p: (n.partition("/")[0], Path(n).stem.removesuffix("_leftImg8bit")) for p, n in pictures.items()}
        result = {picture: files[name] for picture, name in names.items() if name in files}
        if len(result) < len(files):
            self.problems[f"{ending} without a picture"] += len(files) - len(result)
        return result

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Segmentation uint8 [H, W], depth float32 [H, W] in metres, and boxes, whichever the picture has."""
        picture, config = self.images[index], self.config
        result: dict[str, Annotation] = {}
        label_map = None
        if config.segmentation_task and (path := self._path(config.segmentation_task, picture)):
            label_map = self._label_map(picture, path)
            check_size(str(path), label_map.values.shape, picture, size)
            result[config.segmentation_task] = label_map
        if config.depth_task and (path := self._path(config.depth_task, picture)):
            depth = self._depth(picture, path)
            check_size(str(path), depth.values.shape, picture, size)
            result[config.depth_task] = depth
        if config.detection_task and (path := self._path(config.detection_task, picture)):
            ids = read_instance_ids(path)
            check_size(str(path), ids.map.shape, picture, size)
            if label_map is not None:
                self._check_agreement(path, ids.map, label_map)
            if (instances := instances_of(ids, self._things)) is not None:
                result[config.detection_task] = instances
        return result

    def _path(self, task: str, picture: Path) -> Path | None:
        return self._files.get(task, {}).get(picture)

    def camera(self, index: int) -> Camera | None:
        path = self._cameras.get(self.images[index])
        return None if path is None else read_camera(path)[0]

    def _label_map(self, picture: Path, path: Path) -> DenseMap:
        training = picture not in self._maps
        values = cv2.LUT(read_label_ids(path, training), self._train_table if training else self._table)
        return DenseMap(values, values != IGNORE_INDEX, classes=self._space)

    def _check_agreement(self, path: Path, ids: NDArray[np.uint16], label_map: DenseMap) -> None:
        """Raise DataError where instances and label map are of different pictures."""
        check_size(str(path), ids.shape, Path("the label map beside it"), label_map.values.shape)
        every = slice(None, None, 8)  # rows; what is meant are other pictures, not a few pixels
        differing = (self._table[label_ids_of(ids[every])] != label_map.values[every]).mean()
        if differing > 0.05:
            raise DataError(
                f"{path}: {differing:.0%} of the pixels are of another class in the label map beside it. Expected "
                "instances and label map of the same picture: fetch both again."
            )

    def _depth(self, picture: Path, path: Path) -> DenseMap:
        stored = read_map(path)
        if stored.dtype != np.uint16:
            raise DataError(f"{path} has 8 bits per pixel. Expected Cityscapes' disparity, a 16-bit PNG.")
        camera, baseline = read_camera(self._cameras[picture])
        disparity = (stored.astype(np.float32) - 1) / 256  # stored 0: no measurement; 1: infinitely far
        known = disparity > 0
        depth = np.divide(baseline * camera.fx, disparity, out=np.zeros_like(disparity), where=known)
        return self._with_far(metres(depth, self.config.max_depth), picture)

    def _with_far(self, depth: DenseMap, picture: Path) -> DenseMap:
        training = picture not in self._maps
        path = self._train_maps.get(picture) if training else self._maps[picture]
        if not self.config.far or path is None:
            return depth
        names = dict(enumerate(CLASSES)) if training else LABEL_IDS
        ids = read_label_ids(path, training)
        check_size(str(path), ids.shape, picture, depth.values.shape)
        far = np.isin(ids, [id for id, name in names.items() if name in self.config.far])
        return DenseMap(np.where(far, np.float32(self.config.max_depth or 0), depth.values), depth.valid | far)


@lru_cache(maxsize=4096)
def read_camera(path: Path) -> tuple[Camera, float]:
    """Intrinsics and baseline in metres from a Cityscapes camera file."""
    content: Any = read_json(path)
    try:
        intrinsic = {name: float(content["intrinsic"][name]) for name in ("fx", "fy", "u0", "v0")}
        baseline = float(content["extrinsic"]["baseline"])
        camera = Camera(intrinsic["fx"], intrinsic["fy"], intrinsic["u0"], intrinsic["v0"])
        check_camera(camera, str(path))
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise DataError(
            f"{path} is no Cityscapes camera file ({shown(str(error), 200)}). Expected intrinsic fx, fy, u0, v0 and "
            "extrinsic baseline."
        ) from error
    if not 0 < baseline < 1e3:
        raise DataError(f"{path}: baseline is {baseline}. Expected metres between the two cameras.")
    return camera, baseline
