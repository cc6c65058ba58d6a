"""KITTI's depth completion and prediction (Uhrig et al. 2017): sparse lidar depth for the raw images.

Maps: ``<split>/<drive>/proj_depth/groundtruth/image_02/0000000005.png``, 16 bit, metres * 256, 0 = not measured.
Images: ``<raw>/<date>/<drive>/image_02/data/0000000005.png``, or without ``<date>``; a drive is named
``2011_09_26_drive_0001_sync``; its first ten characters are the date. Calibration: ``<date>/calib_cam_to_cam.txt``.
Selection: ``val_selection_cropped/{image,groundtruth_depth,intrinsics}``; it needs no other files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perception.config import config_dataclass
from perception.data.class_names import ClassMap
from perception.data.dataset import check_label_size
from perception.data.formats.depth_maps import read_intrinsics, read_stored_depth, to_depth_map
from perception.data.formats.kitti import read_calibration, read_projection
from perception.files.folders import find_boundary, list_images, require_file, require_folder
from perception.files.images import IMAGE_SUFFIXES
from perception.files.text_files import MAX_LIST_BYTES, iterate_rows, list_folder_files, parse_floats, read_text
from perception.types import Camera, ConfigError, DataError, DenseMap

SCALE = 1 / 256
"""Metres per stored unit."""

CameraName = Literal["image_02", "image_03"]
KittiFrame = tuple[str, str, str]
"""Drive, camera, number of the image ("0000000005")."""

_DRIVE = r"(\d{4}_\d\d_\d\d_drive_\d{4}_sync)"
_PATH = re.compile(_DRIVE + r"/(?:\S*/)?(image_0[23])/\S*?(\d{10})\.\w+$")
_SIDES = {"l": "image_02", "r": "image_03", "2": "image_02", "3": "image_03"}


@config_dataclass
class KittiDepthConfig:
    """Configuration of the reader for KITTI's depth maps.

    Attributes:
        root: folder that contains ``train`` and ``val``, or ``val_selection_cropped``, relative to the data root.
        split: "train", "val", "train+val" (for a list that covers both), or "selection".
        raw_images: folder of the raw images, relative to the data root; not used for the selection.
        format: name of this reader.
        task: depth task of the recipe.
        cameras: image_02 is the left color camera, image_03 the right one.
        image_list: text file of the images to use, such as Eigen's split, relative to the data root. Each line starts
            with the path of a raw image or is ``<date>/<drive> 473 r``. Default: all images with a depth map.
        max_depth: larger distances, in metres, are invalid; None = no limit.
    """

    root: str
    split: Literal["train", "val", "train+val", "selection"] = "train"
    raw_images: str | None = None
    format: Literal["kitti_depth"] = "kitti_depth"
    task: str = "depth"
    cameras: tuple[CameraName, ...] = ("image_02", "image_03")
    image_list: str | None = None
    max_depth: float | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the reader may label."""
        return (self.task,)

    def __post_init__(self) -> None:
        if self.split != "selection" and self.raw_images is None:
            raise ConfigError(
                f"kitti_depth: raw_images is not given. The maps of '{self.split}' belong to KITTI's raw images: name "
                "the folder that contains 2011_09_26/ and the other dates."
            )
        if self.split == "selection" and self.image_list is not None:
            raise ConfigError("kitti_depth: image_list is given, but the selection is already a list. Remove it.")
        if not self.cameras:
            raise ConfigError("kitti_depth: cameras is empty. Expected image_02, image_03 or both.")


@dataclass(frozen=True, slots=True)
class _DepthRecord:
    depth_path: Path
    camera: Camera | None
    calibrated_size: tuple[int, int] | None


class KittiDepthReader:
    """Reader of images that have a depth map. About a sixth of the pixels of a map are valid."""

    Config = KittiDepthConfig

    def __init__(self, config: KittiDepthConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        self.class_maps: dict[str, ClassMap] = {}
        self.root = require_folder(root, config.root, "KITTI depth maps")
        items = dict(self._find_selection(root) if config.split == "selection" else self._find_drives(root))
        if not items:
            raise DataError(
                f"None of the depth maps under {self.root} has its image under "
                f"{config.raw_images or self.root}. Expected "
                "<date>/<drive>/image_02/data/ (KITTI raw, synced and rectified)."
            )
        self._records = dict(sorted(items.items()))
        self.images = list(self._records)

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, DenseMap]:
        """Return depth float32 [H, W] in metres, 0 = not measured."""
        picture = self.images[index]
        item = self._records[picture]
        stored = read_stored_depth(item.depth_path)
        check_label_size(str(item.depth_path), stored.shape, picture, size)
        if item.calibrated_size is not None and item.calibrated_size != stored.shape:
            raise DataError(
                f"{item.depth_path} is {stored.shape[1]} x {stored.shape[0]} pixels, but its camera was calibrated for "
                f"{item.calibrated_size[1]} x {item.calibrated_size[0]}. Use the "
                "maps and images as they were distributed."
            )
        return {self.config.task: to_depth_map(stored, self.config.max_depth, SCALE)}

    def camera(self, index: int) -> Camera | None:
        """Return the intrinsics in pixels of image ``index``; None if unknown."""
        return self._records[self.images[index]].camera

    def _find_selection(self, root: Path) -> Iterator[tuple[Path, _DepthRecord]]:
        folder = self.root
        for inner in ("val_selection_cropped", "depth_selection/val_selection_cropped"):
            if (self.root / inner).is_dir():
                folder = require_folder(self.root, inner, "KITTI's selection")
        images = require_folder(folder, "image", "images of KITTI's selection")
        depths = require_folder(folder, "groundtruth_depth", "depth maps of KITTI's selection")
        maps = list_folder_files(depths, find_boundary(depths, root), ".png")
        at = (folder / "intrinsics").resolve()
        cameras = list_folder_files(at, find_boundary(at, root), ".txt")
        matched = 0
        for picture, name in list_images(images, "*", root).items():
            stem = Path(name).stem
            if not stem.endswith(self.config.cameras):
                continue
            depth = maps.get(stem.replace("_sync_image_", "_sync_groundtruth_depth_"))
            if depth is None:
                self.problems["images without a depth map"] += 1
                continue
            matched += 1
            text = cameras.get(stem)
            if text is None:
                self.problems["images without intrinsics"] += 1
            yield picture, _DepthRecord(depth, None if text is None else read_intrinsics(text), None)
        wanted = sum(stem.endswith(self.config.cameras) for stem in maps)
        if matched < wanted:
            self.problems["depth maps without an image"] += wanted - matched

    def _find_drives(self, root: Path) -> Iterator[tuple[Path, _DepthRecord]]:
        raw = require_folder(root, self.config.raw_images or "", "KITTI's raw images")
        wanted = None
        if self.config.image_list is not None:
            wanted = read_frame_list(require_file(root, self.config.image_list, "KITTI images"))
        maps, calibrations, seen = self._find_depth_maps(root), _CalibrationCache(raw), set()
        boundary = find_boundary(raw, root)
        for (drive, camera), depths in maps.items():
            pictures = _find_images(raw, boundary, drive, camera)
            if wanted is None:  # the first and last images of a drive never have a map
                gaps = sum(min(depths) < number < max(depths) and number not in depths for number in pictures)
                if gaps:
                    self.problems["images without a depth map"] += gaps
            for number, depth in depths.items():
                if wanted is not None and (drive, camera, number) not in wanted:
                    continue
                seen.add((drive, camera, number))
                if number not in pictures:
                    self.problems["depth maps without an image"] += 1
                    continue
                intrinsics, size = calibrations.find_calibration(drive, camera)
                if intrinsics is None:
                    self.problems["images without a calibration"] += 1
                yield pictures[number], _DepthRecord(depth, intrinsics, size)
        if wanted is not None and len(seen) < len(wanted):
            chosen = sum(camera in self.config.cameras for _, camera, _ in wanted)
            if len(seen) < chosen:
                self.problems["listed images without a depth map"] += chosen - len(seen)

    def _find_depth_maps(self, root: Path) -> dict[tuple[str, str], dict[str, Path]]:
        """(drive, camera) -> number of the image -> depth map."""
        maps = {}
        for split in self.config.split.split("+"):
            folder = require_folder(self.root, split, f"KITTI depth maps ({split})")
            drives = sorted(path for path in folder.iterdir() if re.fullmatch(_DRIVE, path.name))
            for drive in drives:
                for camera in self.config.cameras:
                    files = list_folder_files(
                        drive / "proj_depth/groundtruth" / camera, find_boundary(folder, root), ".png"
                    )
                    if files:
                        maps[drive.name, camera] = files
                    else:
                        self.problems[f"drives without depth maps of {camera}"] += 1
        if not maps:
            raise DataError(
                f"No depth map under {self.root} for split '{self.config.split}' and {', '.join(self.config.cameras)}. "
                "Expected <split>/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000005.png."
            )
        return maps


def _find_images(raw: Path, boundary: Path, drive: str, camera: str) -> dict[str, Path]:
    """Number -> image of a drive, in either folder layout of the raw images."""
    for folder in (raw / drive[:10] / drive, raw / drive):
        files = {Path(name): path for name, path in list_folder_files(folder / camera / "data", boundary, "").items()}
        pictures = {name.stem: path for name, path in files.items() if name.suffix.lower() in IMAGE_SUFFIXES}
        if pictures:
            return pictures
    return {}


class _CalibrationCache:
    """The cameras per recording date; each file is read once."""

    def __init__(self, raw: Path) -> None:
        self._raw_folder = raw
        self._cache: dict[Path, tuple[Camera, tuple[int, int] | None]] = {}

    def find_calibration(self, drive: str, camera: str) -> tuple[Camera | None, tuple[int, int] | None]:
        """Return (intrinsics, (height, width) of the rectified images); None for unknown parts."""
        for folder in (self._raw_folder / drive[:10], self._raw_folder / drive):
            path = folder / "calib_cam_to_cam.txt"
            key = path / camera
            if key in self._cache:
                return self._cache[key]
            if path.is_file():
                return self._cache.setdefault(key, read_raw_calibration(path, camera[-2:]))
        return None, None


def read_raw_calibration(path: Path, camera_number: str) -> tuple[Camera, tuple[int, int] | None]:
    """Read camera "02" or "03" of a ``calib_cam_to_cam.txt``, and the (height, width) of its calibrated images."""
    camera = read_projection(path, f"P_rect_{camera_number}")
    text = read_calibration(path).get(f"S_rect_{camera_number}")
    if text is None:
        return camera, None
    sides = parse_floats(text.split(), f"{path}, S_rect_{camera_number}", "width and height")
    if len(sides) != 2 or not all(1 <= side < 1e5 for side in sides):
        raise DataError(
            f"{path}, S_rect_{camera_number}: {sides[:4]} is not a size. Expected width and height in pixels."
        )
    return camera, (round(sides[1]), round(sides[0]))


def read_frame_list(path: Path) -> set[KittiFrame]:
    """Read a list of images. Raises DataError with the line number if a line is not a KITTI image."""
    frames = set()
    for number, words in iterate_rows(read_text(path, MAX_LIST_BYTES)):
        if found := _PATH.search(words[0]):
            frames.add(found.groups())
        elif len(words) == 3 and (drive := re.search(_DRIVE + "$", words[0])) and words[1].isdecimal():
            if words[2] not in _SIDES:
                raise DataError(f"{path}, line {number}: side {words[2][:20]!r}. Expected l or r.")
            frames.add((drive[1], _SIDES[words[2]], f"{int(words[1]):010d}"))
        else:
            raise DataError(
                f"{path}, line {number}: {' '.join(words)[:100]!r} is not a KITTI image. Expected "
                "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png, or <date>/<drive> 69 l."
            )
    if not frames:
        raise DataError(f"{path} is empty. Expected an image on every line.")
    return frames
