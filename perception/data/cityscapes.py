"""The tree of Cityscapes (Cordts et al. 2016): label ids to the 19 training classes, disparity to metres.

``leftImg8bit/<split>/<city>/*_leftImg8bit.png``, ``gtFine/.../*_gtFine_labelIds.png``,
``disparity/.../*_disparity.png``, ``camera/.../*_camera.json``. The last two may be absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perception.config import configuration
from perception.data.class_names import Names, map_classes
from perception.data.dataset import check_size
from perception.data.depth_maps import check_camera, metres
from perception.data.folders import existing_folder, list_pictures
from perception.data.images import read_map
from perception.data.label_maps import lookup_table, read_label_map
from perception.data.strict_json import read_json
from perception.types import Annotation, Camera, ConfigError, DataError, DenseMap

LABEL_IDS = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""Label id -> name of the 19 training classes, in the order of their training ids. The other ids up to 33 are void."""

CLASSES = tuple(LABEL_IDS.values())


@configuration
class CityscapesConfig:
    """root: folder that holds ``leftImg8bit``, relative to the data root. split: train, val or test.

    fine:        "gtFine" or "gtCoarse"
    rename, ignore, labels_only: from the 19 names to the recipe's, as in `LabelMapsConfig`
    max_depth:   metres beyond which a disparity is not trusted; None = none
    """

    root: str
    split: str = "train"
    format: Literal["cityscapes"] = "cityscapes"
    segmentation_task: str = "segmentation"
    depth_task: str = "depth"
    fine: Literal["gtFine", "gtCoarse"] = "gtFine"
    rename: dict[str, str] | None = None
    ignore: Names = ()
    labels_only: tuple[str, ...] | None = None
    max_depth: float | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        return self.segmentation_task, self.depth_task


class CityscapesReader:
    """All pictures of a split; a task is labelled where its file exists. Label maps of training ids serve as well."""

    Config = CityscapesConfig

    def __init__(self, config: CityscapesConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.problems: Counter[str] = Counter()
        self.root = existing_folder(root, config.root, "Cityscapes")
        self._folder = existing_folder(self.root, f"leftImg8bit/{config.split}", "Cityscapes pictures")
        pictures = list_pictures(self._folder, "*/*_leftImg8bit.*")
        self._maps = self._found(pictures, config.fine, f"{config.fine}_labelIds.png")
        self._train_maps = {
            picture: path
            for picture, path in self._found(pictures, config.fine, f"{config.fine}_labelTrainIds.png").items()
            if picture not in self._maps
        }
        self._disparities = self._found(pictures, "disparity", "disparity.png")
        self._cameras = self._found(pictures, "camera", "camera.json")
        self.tasks = self._tasks(pictures, classes)
        if config.segmentation_task in self.tasks:
            names = classes[config.segmentation_task]
            class_map = map_classes(
                CLASSES, names, str(self.root), config.rename, config.ignore, labels_only=config.labels_only
            )
            void = tuple(id for id in range(34) if id not in LABEL_IDS)
            self._table = lookup_table(LABEL_IDS, class_map, void)
            self._train_names = dict(enumerate(CLASSES))
            self._train_table = lookup_table(self._train_names, class_map)
        self.images = [picture for picture in pictures if self._labelled(picture)]

    def _labelled(self, picture: Path) -> bool:
        segmented = self.config.segmentation_task in self.tasks and self._label_path(picture) is not None
        return segmented or (self.config.depth_task in self.tasks and picture in self._disparities)

    def _tasks(self, pictures: list[Path], classes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        labelled = {
            self.config.segmentation_task: len(self._maps) + len(self._train_maps),
            self.config.depth_task: len(self._disparities),
        }
        for what, number in zip(("a label map", "a disparity"), labelled.values(), strict=True):
            if 0 < number < len(pictures):
                self.problems[f"pictures without {what}"] += len(pictures) - number
        tasks = tuple(task for task, number in labelled.items() if number and task in classes)
        if not tasks:
            raise DataError(
                f"{self.root} labels nothing that the recipe trains: {len(pictures)} pictures in split "
                f"'{self.config.split}', {labelled}. Expected {self.config.fine}/ or disparity/ beside leftImg8bit/."
            )
        without = sum(picture not in self._cameras for picture in self._disparities)
        if self.config.depth_task in tasks and without:
            raise DataError(
                f"{self.root}: {without} disparities have no camera. "
                f"Expected camera/{self.config.split}/*/*_camera.json."
            )
        return tasks

    def _found(self, pictures: list[Path], folder: str, ending: str) -> dict[Path, Path]:
        """Picture -> its file in a parallel tree, where there is one."""
        at = self.root / folder / self.config.split
        files = {path.relative_to(at).as_posix(): path for path in at.glob(f"*/*_{ending}")} if at.is_dir() else {}
        names = {p: f"{p.parent.name}/{p.stem.removesuffix('leftImg8bit')}{ending}" for p in pictures}
        return {picture: files[name] for picture, name in names.items() if name in files}

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Segmentation uint8 [H, W] and depth float32 [H, W] in metres, whichever the picture has."""
        picture, config = self.images[index], self.config
        result: dict[str, Annotation] = {}
        if config.segmentation_task in self.tasks and (path := self._label_path(picture)) is not None:
            label_map = self._label_map(picture, path)
            check_size(str(path), label_map.values.shape, picture, size)
            result[config.segmentation_task] = label_map
        if config.depth_task in self.tasks and picture in self._disparities:
            path = self._disparities[picture]
            depth = self._depth(picture, path)
            check_size(str(path), depth.values.shape, picture, size)
            result[config.depth_task] = depth
        return result

    def camera(self, index: int) -> Camera | None:
        path = self._cameras.get(self.images[index])
        return None if path is None else read_camera(path)[0]

    def _label_path(self, picture: Path) -> Path | None:
        return self._maps.get(picture) or self._train_maps.get(picture)

    def _label_map(self, picture: Path, path: Path) -> DenseMap:
        if picture in self._maps:
            hint = "Label ids are 0 to 33: these look like training ids. Name such files *_labelTrainIds.png."
            return read_label_map(path, self._table, dict.fromkeys(range(34), ""), hint)
        hint = "Training ids are 0 to 18 and 255: these look like label ids. Name such files *_labelIds.png."
        return read_label_map(path, self._train_table, self._train_names, hint)

    def _depth(self, picture: Path, path: Path) -> DenseMap:
        stored = read_map(path)
        if stored.dtype != np.uint16:
            raise DataError(f"{path} has 8 bits per pixel. Expected Cityscapes' disparity, a 16-bit PNG.")
        camera, baseline = read_camera(self._cameras[picture])
        disparity = (stored.astype(np.float32) - 1) / 256  # stored 0: no measurement; 1: infinitely far
        known = disparity > 0
        depth = np.divide(baseline * camera.fx, disparity, out=np.zeros_like(disparity), where=known)
        return metres(depth, self.config.max_depth)


@lru_cache(maxsize=4096)
def read_camera(path: Path) -> tuple[Camera, float]:
    """Intrinsics and baseline in metres from a Cityscapes camera file."""
    content: Any = read_json(path)
    try:
        intrinsic = {name: float(content["intrinsic"][name]) for name in ("fx", "fy", "u0", "v0")}
        baseline = float(content["extrinsic"]["baseline"])
        camera = Camera(intrinsic["fx"], intrinsic["fy"], intrinsic["u0"], intrinsic["v0"])
        check_camera(camera, str(path))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise DataError(
            f"{path} is no Cityscapes camera file ({error}). Expected intrinsic fx, fy, u0, v0 and extrinsic baseline."
        ) from error
    if not 0 < baseline < 1e3:
        raise DataError(f"{path}: baseline is {baseline}. Expected metres between the two cameras.")
    return camera, baseline
