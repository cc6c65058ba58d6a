"""NYU Depth V2 (Silberman et al. 2012) as folders of synchronized frames: Kinect depth, optional segmentation masks.

``<scene>/rgb_00045.jpg`` with ``<scene>/sync_depth_00045.png``, 16 bit, millimetres, 0 = not measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from perception.config import config_dataclass
from perception.data.class_names import ClassMap, ClassNames, Superclasses, map_pixel_classes
from perception.data.dataset import check_label_size
from perception.data.formats.depth_maps import check_intrinsics, make_camera, read_stored_depth, to_depth_map
from perception.data.formats.legend import build_lookup_table
from perception.data.formats.segmentation_masks import read_segmentation_mask
from perception.files.folders import (
    find_boundary,
    find_present_files,
    list_images,
    require_file,
    require_folder,
    resolve_inside,
)
from perception.files.images import ImageError, read_image_size
from perception.files.text_files import MAX_LIST_BYTES, iterate_rows, list_files, parse_floats, read_text
from perception.types import Annotation, Camera, ConfigError, DataError

CLASSES_40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refridgerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip
"""Classes of Gupta et al. 2013, in the order of their ids from 1. The original spelling is kept."""

CLASSES_13 = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv", "wall",
    "window",
)  # fmt: skip
"""Classes of Couprie et al. 2013, in the order of their ids from 1."""

OFFICIAL_CAMERA, OFFICIAL_SIZE = Camera(518.8579, 519.4696, 325.5824, 253.7362), (480, 640)
"""Intrinsics of the color camera in the data set's toolbox, and the (height, width) of its images."""


@config_dataclass
class Nyuv2Config:
    """Configuration of the reader for NYU Depth V2.

    Attributes:
        root: folder of the scenes, relative to the data root.
        format: name of this reader.
        depth_task: depth task of the recipe.
        segmentation_task: segmentation task of the recipe.
        image_list: text file of the images to use, relative to the data root. Each line: image, depth map ("None" =
            none) and, if known, focal length in pixels; a leading "/" means ``root``. Default: every rgb_*.jpg (or
            .png) with the sync_depth_*.png beside it.
        labels: folder of segmentation masks, relative to the data root: <scene>/rgb_00045.png, label_00045.png or
            00045.png.
        num_classes: number of classes in the segmentation masks: 40 or 13.
        first_id: id of the first class in the masks: 1 (then 0 is ignored) or 0. 255 is always ignored.
        rename: class mapping to the recipe, as in `SegmentationMasksConfig`; also the next three.
        ignore: see ``rename``.
        labels_only: see ``rename``.
        superclasses: see ``rename``.
        scale: metres per stored unit.
        max_depth: larger distances, in metres, are invalid; None = no limit.
        camera: intrinsics in pixels of the images. Default: the official ones, scaled, for images of aspect ratio
            4:3; unknown for others. A focal length in the list has priority.
        max_missing: largest fraction of the listed images that may be missing.
    """

    root: str
    format: Literal["nyuv2"] = "nyuv2"
    depth_task: str = "depth"
    segmentation_task: str = "segmentation"
    image_list: str | None = None
    labels: str | None = None
    num_classes: Literal[13, 40] = 40
    first_id: Literal[0, 1] = 1
    rename: dict[str, str] | None = None
    ignore: ClassNames = ()
    labels_only: tuple[str, ...] | None = None
    superclasses: Superclasses | None = None
    scale: float = 0.001
    max_depth: float | None = None
    camera: Camera | None = None
    max_missing: float = 0.01

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the reader may label."""
        return (self.depth_task, *(() if self.labels is None else (self.segmentation_task,)))

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise ConfigError(f"nyuv2: scale is {self.scale}. Expected metres per stored unit, for example 0.001.")
        check_intrinsics(self.camera, "nyuv2")


class Nyuv2Reader:
    """Reader of images with a depth map or a segmentation mask. A task is labeled if its file exists."""

    Config = Nyuv2Config

    def __init__(self, config: Nyuv2Config, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.problems: Counter[str] = Counter()
        self.root = require_folder(root, config.root, "NYU Depth V2")
        self._data_root, self._focal_lengths = root, dict[Path, float]()
        if config.image_list is None:
            pictures, self._depth_paths = self._find_images()
        else:
            pictures, self._depth_paths = self._read_list(require_file(root, config.image_list, "NYU Depth V2 images"))
        self._mask_paths = {} if config.labels is None else self._find_masks(root, config.labels, pictures)
        labelled = {config.depth_task: self._depth_paths, config.segmentation_task: self._mask_paths}
        self.tasks = tuple(task for task in config.tasks if labelled[task] and task in classes)
        if not self.tasks:
            raise DataError(
                f"{self.root} labels nothing that the recipe trains: {len(pictures)} "
                f"images, {len(self._depth_paths)} "
                f"depth maps, {len(self._mask_paths)} segmentation masks. "
                "Expected rgb_00045.jpg beside sync_depth_00045.png."
            )
        self.class_maps: dict[str, ClassMap] = {}
        if config.segmentation_task in self.tasks:
            first, names = config.first_id, {13: CLASSES_13, 40: CLASSES_40}[config.num_classes]
            class_map = self.class_maps[config.segmentation_task] = map_pixel_classes(
                names, classes[config.segmentation_task], f"nyuv2, {config.num_classes} classes", config.rename,
                config.ignore, config.labels_only, config.superclasses,
            )  # fmt: skip
            self._label_space = class_map.label_space
            self._names = dict(enumerate(names, first))
            self._table = build_lookup_table(self._names, class_map, (0, 255) if first else (255,))
        self.images = [p for p in pictures if any(p in labelled[task] for task in self.tasks)]

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Return depth float32 [H, W] in metres and segmentation uint8 [H, W], as far as the image has them."""
        picture, config = self.images[index], self.config
        result: dict[str, Annotation] = {}
        if config.depth_task in self.tasks and (path := self._depth_paths.get(picture)) is not None:
            stored = read_stored_depth(path)
            check_label_size(str(path), stored.shape, picture, size)
            result[config.depth_task] = to_depth_map(stored, config.max_depth, config.scale)
        if config.segmentation_task in self.tasks and (path := self._mask_paths.get(picture)) is not None:
            hint = "Correct num_classes (13 or 40) or first_id (0 or 1) of this reader, or convert the mask."
            label_map = read_segmentation_mask(path, self._table, self._names, hint, self._label_space)
            check_label_size(str(path), label_map.values.shape, picture, size)
            result[config.segmentation_task] = label_map
        return result

    def camera(self, index: int) -> Camera | None:
        """Return the intrinsics in pixels of image ``index``; None if unknown."""
        picture = self.images[index]
        camera = self.config.camera
        if camera is None:
            try:
                height, width = read_image_size(picture)
            except ImageError:
                return None
            if width * OFFICIAL_SIZE[0] != height * OFFICIAL_SIZE[1]:
                return None
            scale = width / OFFICIAL_SIZE[1]
            camera = Camera(
                *(
                    scale * value
                    for value in (OFFICIAL_CAMERA.fx, OFFICIAL_CAMERA.fy, OFFICIAL_CAMERA.cx, OFFICIAL_CAMERA.cy)
                )
            )
        focal = self._focal_lengths.get(picture, camera.fx)
        return Camera(focal, camera.fy * focal / camera.fx, camera.cx, camera.cy)

    def _find_images(self) -> tuple[dict[Path, str], dict[Path, Path]]:
        """All images with their paths under the root, and image -> depth map of the same number beside it."""
        named = list_images(self.root, "**/rgb_*", self._data_root)
        maps = {name: path for path, name in list_files(self.root, ".png", self._data_root).items()}
        beside = {
            picture: (Path(name).with_name(f"sync_depth_{Path(name).stem.removeprefix('rgb_')}.png")).as_posix()
            for picture, name in named.items()
        }
        depths = {picture: maps[name] for picture, name in beside.items() if name in maps}
        number = sum(name.rpartition("/")[2].startswith("sync_depth_") for name in maps)
        for kind, count in (
            ("images without a depth map", len(named) - len(depths)),
            ("depth maps without an image", number - len(depths)),
        ):
            if count:
                self.problems[kind] += count
        return named, depths

    def _read_list(self, path: Path) -> tuple[dict[Path, str], dict[Path, Path]]:
        """The listed images that exist, with their paths in the list, and image -> depth map."""
        depths: dict[Path, Path | None] = {}
        named: dict[Path, str] = {}
        boundary = find_boundary(self.root, self._data_root)
        for number, words in iterate_rows(read_text(path, MAX_LIST_BYTES)):
            where = f"{path}, line {number}"
            if len(words) not in (2, 3):
                raise DataError(
                    f"{where}: {len(words)} words. Expected an image, its depth map, and optionally a focal length."
                )
            picture = resolve_inside(self.root, words[0].lstrip("/"), where, boundary)
            if picture in depths:
                raise DataError(f"{where}: {words[0]} is given twice. Keep one line.")
            named[picture] = words[0].lstrip("/")
            depths[picture] = (
                None if words[1] == "None" else resolve_inside(self.root, words[1].lstrip("/"), where, boundary)
            )
            if len(words) == 3:
                focal = parse_floats(words[2:], where, "the focal length in pixels")[0]
                self._focal_lengths[picture] = make_camera(focal, focal, 0, 0, where).fx
        found = find_present_files(list(depths), self.root, str(path), self.config.max_missing, self.problems)
        pictures = {picture: named[picture] for picture, there in zip(depths, found, strict=True) if there}
        maps = {p: depth for p in pictures if (depth := depths[p]) is not None}
        if maps:
            there = find_present_files(list(maps.values()), self.root, str(path), self.config.max_missing, Counter())
            maps = {p: depth for (p, depth), exists in zip(maps.items(), there, strict=True) if exists}
        if len(maps) < len(pictures):
            self.problems["images without a depth map"] += len(pictures) - len(maps)
        return pictures, maps

    def _find_masks(self, root: Path, name: str, image_paths: Mapping[Path, str]) -> dict[Path, Path]:
        """Image -> segmentation mask of the same name or number in the same scene."""
        folder = require_folder(root, name, "segmentation masks")
        files = {name: path for path, name in list_files(folder, ".png", root).items()}
        found = {}
        for picture, own in ((picture, Path(name)) for picture, name in image_paths.items()):
            number = own.stem.removeprefix("rgb_")
            names = ((own.parent / f"{stem}.png").as_posix() for stem in (own.stem, f"label_{number}", number))
            path = next((files[name] for name in names if name in files), None)
            if path is not None:
                found[picture] = path
        if not found:
            raise DataError(
                f"None of the {len(image_paths)} images under {self.root} has "
                f"a segmentation mask under {folder} ({len(files)} "
                "files). Expected <scene>/rgb_00045.png, label_00045.png or 00045.png."
            )
        if len(found) < len(image_paths):
            self.problems["images without a segmentation mask"] += len(image_paths) - len(found)
        return found
