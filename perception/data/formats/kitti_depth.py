"""KITTI's depth completion and prediction (Uhrig et al. 2017): sparse distances of a laser scanner on raw pictures.

Maps: ``<split>/<drive>/proj_depth/groundtruth/image_02/0000000005.png``, 16 bit, metres * 256, 0 = nothing measured.
Pictures: ``<raw>/<date>/<drive>/image_02/data/0000000005.png``, or without ``<date>``; a drive is called
``2011_09_26_drive_0001_sync``, and its first ten letters are its date. Calibration: ``<date>/calib_cam_to_cam.txt``.
Selection: ``val_selection_cropped/{image,groundtruth_depth,intrinsics}``, complete in itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perception.config import configuration
from perception.data.class_names import ClassMap
from perception.data.dataset import check_size
from perception.data.formats.depth_maps import metres, read_depth, read_intrinsics
from perception.data.formats.kitti import read_calibration, read_projection
from perception.files.folders import boundary_of, existing_file, existing_folder, list_pictures
from perception.files.images import PICTURE_SUFFIXES
from perception.files.text_files import MAX_LIST_BYTES, files_in, floats, read_text, rows
from perception.types import Camera, ConfigError, DataError, DenseMap

SCALE = 1 / 256
"""Metres per stored unit."""

CameraName = Literal["image_02", "image_03"]
Frame = tuple[str, str, str]
"""Drive, camera, number of the picture ("0000000005")."""

_DRIVE = r"(\d{4}_\d\d_\d\d_drive_\d{4}_sync)"
_PATH = re.compile(_DRIVE + r"/(?:\S*/)?(image_0[23])/\S*?(\d{10})\.\w+$")
_SIDES = {"l": "image_02", "r": "image_03", "2": "image_02", "3": "image_03"}


@configuration
class KittiDepthConfig:
    """root: folder that holds ``train`` and ``val``, or ``val_selection_cropped``, relative to the data root.

    split:   "train", "val", "train+val" (for a list that was made for both), or "selection"
    raw:     folder of the raw pictures, relative to the data root; the selection needs none
    cameras: image_02 is the left colour camera, image_03 the right one
    list:    text file of the pictures to use, relative to the data root: lines that begin with the path of a raw
             picture, or ``<date>/<drive> 473 r``; such as Eigen's split. Default: all that have a map
    max:     metres beyond which a value is invalid; None = none
    """

    root: str
    split: Literal["train", "val", "train+val", "selection"] = "train"
    raw: str | None = None
    format: Literal["kitti_depth"] = "kitti_depth"
    task: str = "depth"
    cameras: tuple[CameraName, ...] = ("image_02", "image_03")
    list: str | None = None
    max: float | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        return (self.task,)

    def __post_init__(self) -> None:
        if self.split != "selection" and self.raw is None:
            raise ConfigError(
                f"kitti_depth: raw is not given. The maps of '{self.split}' belong to KITTI's raw pictures: name the "
                "folder that holds 2011_09_26/ and the other dates."
            )
        if self.split == "selection" and self.list is not None:
            raise ConfigError("kitti_depth: list is given, but the selection is a list in itself. Remove it.")
        if not self.cameras:
            raise ConfigError("kitti_depth: cameras is empty. Expected image_02, image_03 or both.")


@dataclass(frozen=True, slots=True)
class _Item:
    depth: Path
    camera: Camera | None
    size: tuple[int, int] | None


class KittiDepthReader:
    """Pictures that have a depth map. About a sixth of a map's pixels are valid."""

    Config = KittiDepthConfig

    def __init__(self, config: KittiDepthConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        self.class_maps: dict[str, ClassMap] = {}
        self.root = existing_folder(root, config.root, "KITTI depth maps")
        items = dict(self._selection(root) if config.split == "selection" else self._drives(root))
        if not items:
            raise DataError(
                f"None of the depth maps under {self.root} has its picture under {config.raw or self.root}. Expected "
                "<date>/<drive>/image_02/data/ (KITTI raw, synced and rectified)."
            )
        self._items = dict(sorted(items.items()))
        self.images = list(self._items)

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, DenseMap]:
        """values float32 [H, W] in metres, 0 where nothing was measured."""
        picture = self.images[index]
        item = self._items[picture]
        stored = read_depth(item.depth)
        check_size(str(item.depth), stored.shape, picture, size)
        if item.size is not None and item.size != stored.shape:
            raise DataError(
                f"{item.depth} is {stored.shape[1]} x {stored.shape[0]} pixels, but its camera was calibrated for "
                f"{item.size[1]} x {item.size[0]}. Use the maps and pictures as they were distributed."
            )
        return {self.config.task: metres(stored, self.config.max, SCALE)}

    def camera(self, index: int) -> Camera | None:
        return self._items[self.images[index]].camera

    def _selection(self, root: Path) -> Iterator[tuple[Path, _Item]]:
        folder = self.root
        for inner in ("val_selection_cropped", "depth_selection/val_selection_cropped"):
            if (self.root / inner).is_dir():
                folder = existing_folder(self.root, inner, "KITTI's selection")
        images = existing_folder(folder, "image", "pictures of KITTI's selection")
        depths = existing_folder(folder, "groundtruth_depth", "depth maps of KITTI's selection")
        maps = files_in(depths, boundary_of(depths, root), ".png")
        at = (folder / "intrinsics").resolve()
        cameras = files_in(at, boundary_of(at, root), ".txt")
        matched = 0
        for picture, name in list_pictures(images, "*", root).items():
            stem = Path(name).stem
            if not stem.endswith(self.config.cameras):
                continue
            depth = maps.get(stem.replace("_sync_image_", "_sync_groundtruth_depth_"))
            if depth is None:
                self.problems["pictures without a depth map"] += 1
                continue
            matched += 1
            text = cameras.get(stem)
            if text is None:
                self.problems["pictures without intrinsics"] += 1
            yield picture, _Item(depth, None if text is None else read_intrinsics(text), None)
        wanted = sum(stem.endswith(self.config.cameras) for stem in maps)
        if matched < wanted:
            self.problems["depth maps without a picture"] += wanted - matched

    def _drives(self, root: Path) -> Iterator[tuple[Path, _Item]]:
        raw = existing_folder(root, self.config.raw or "", "KITTI's raw pictures")
        wanted = None
        if self.config.list is not None:
            wanted = read_frames(existing_file(root, self.config.list, "KITTI pictures"))
        maps, calibrations, seen = self._maps(root), _Calibrations(raw), set()
        boundary = boundary_of(raw, root)
        for (drive, camera), depths in maps.items():
            pictures = _pictures(raw, boundary, drive, camera)
            if wanted is None:  # a drive's first and last pictures have none in any case
                gaps = sum(min(depths) < number < max(depths) and number not in depths for number in pictures)
                if gaps:
                    self.problems["pictures without a depth map"] += gaps
            for number, depth in depths.items():
                if wanted is not None and (drive, camera, number) not in wanted:
                    continue
                seen.add((drive, camera, number))
                if number not in pictures:
                    self.problems["depth maps without a picture"] += 1
                    continue
                intrinsics, size = calibrations.of(drive, camera)
                if intrinsics is None:
                    self.problems["pictures without a calibration"] += 1
                yield pictures[number], _Item(depth, intrinsics, size)
        if wanted is not None and len(seen) < len(wanted):
            chosen = sum(camera in self.config.cameras for _, camera, _ in wanted)
            if len(seen) < chosen:
                self.problems["listed pictures without a depth map"] += chosen - len(seen)

    def _maps(self, root: Path) -> dict[tuple[str, str], dict[str, Path]]:
        """(drive, camera) -> number of the picture -> depth map."""
        maps = {}
        for split in self.config.split.split("+"):
            folder = existing_folder(self.root, split, f"KITTI depth maps ({split})")
            drives = sorted(path for path in folder.iterdir() if re.fullmatch(_DRIVE, path.name))
            for drive in drives:
                for camera in self.config.cameras:
                    files = files_in(drive / "proj_depth/groundtruth" / camera, boundary_of(folder, root), ".png")
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


def _pictures(raw: Path, boundary: Path, drive: str, camera: str) -> dict[str, Path]:
    """Number -> picture of a drive, in either layout of the raw pictures."""
    for folder in (raw / drive[:10] / drive, raw / drive):
        files = {Path(name): path for name, path in files_in(folder / camera / "data", boundary, "").items()}
        pictures = {name.stem: path for name, path in files.items() if name.suffix.lower() in PICTURE_SUFFIXES}
        if pictures:
            return pictures
    return {}


class _Calibrations:
    """The cameras of the days on which KITTI was recorded, each file read once."""

    def __init__(self, raw: Path) -> None:
        self._raw = raw
        self._read: dict[Path, tuple[Camera, tuple[int, int] | None]] = {}

    def of(self, drive: str, camera: str) -> tuple[Camera | None, tuple[int, int] | None]:
        """(intrinsics, (height, width) of the rectified pictures); None where there is no calibration."""
        for folder in (self._raw / drive[:10], self._raw / drive):
            path = folder / "calib_cam_to_cam.txt"
            key = path / camera
            if key in self._read:
                return self._read[key]
            if path.is_file():
                return self._read.setdefault(key, read_raw_calibration(path, camera[-2:]))
        return None, None


def read_raw_calibration(path: Path, number: str) -> tuple[Camera, tuple[int, int] | None]:
    """Camera "02" or "03" of a ``calib_cam_to_cam.txt``, and the (height, width) that it was calibrated for."""
    camera = read_projection(path, f"P_rect_{number}")
    text = read_calibration(path).get(f"S_rect_{number}")
    if text is None:
        return camera, None
    sides = floats(text.split(), f"{path}, S_rect_{number}", "width and height")
    if len(sides) != 2 or not all(1 <= side < 1e5 for side in sides):
        raise DataError(f"{path}, S_rect_{number}: {sides[:4]} is no size. Expected width and height in pixels.")
    return camera, (round(sides[1]), round(sides[0]))


def read_frames(path: Path) -> set[Frame]:
    """The pictures of a list. Raises DataError with the line where one is no picture of KITTI."""
    frames = set()
    for number, words in rows(read_text(path, MAX_LIST_BYTES)):
        if found := _PATH.search(words[0]):
            frames.add(found.groups())
        elif len(words) == 3 and (drive := re.search(_DRIVE + "$", words[0])) and words[1].isdecimal():
            if words[2] not in _SIDES:
                raise DataError(f"{path}, line {number}: side {words[2][:20]!r}. Expected l or r.")
            frames.add((drive[1], _SIDES[words[2]], f"{int(words[1]):010d}"))
        else:
            raise DataError(
                f"{path}, line {number}: {' '.join(words)[:100]!r} names no picture of KITTI. Expected "
                "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png, or <date>/<drive> 69 l."
            )
    if not frames:
        raise DataError(f"{path} is empty. Expected a picture on every line.")
    return frames
