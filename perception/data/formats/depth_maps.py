"""A folder of depth maps: whole numbers with a scale, or metres in floats, one per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perception.config import config_dataclass
from perception.data.class_names import ClassMap
from perception.data.dataset import check_label_size
from perception.files.arrays import ARRAY_SUFFIXES
from perception.files.folders import index_by_stem, list_images, require_folder
from perception.files.maps import read_map
from perception.files.pairs import PairPatterns, pair_files
from perception.files.text_files import list_files, parse_floats, read_text
from perception.types import Camera, ConfigError, DataError, DenseMap

MAX_DISTANCE = 1e5
"""Metres from which on a value is a program's word for "nothing there", not a distance."""

MIN_BYTE_DISTANCE = 0.3
"""Metres that the farthest of 256 steps must be away for 8 bits to be distances."""


@config_dataclass
class DepthMapsConfig:
    """images, depths: folders, relative to the data root; a depth map has its image's name (plus ``suffix``).

    image, depth: patterns instead, where names differ otherwise: "*_color.jpg" and "*_depth.png"; "*" is what is equal.
             Without "/" they are of the file's name. One folder may hold both
    scale:   metres per stored unit (0.001 for millimetres); needed for images of whole numbers, 1 by default for
             arrays and floats. 0 is invalid. For files of several kinds: {png: 0.001, npy: 1}
    array_name:   name of the array in a .npz that holds several
    max_depth:     metres beyond which a value is invalid; None = none
    camera:  intrinsics in pixels of the images; None = unknown
    cameras: folder of ``<image's name>.txt`` with intrinsics of single images, in their pixels: a 3x3 (or 4x4)
             matrix row by row, or fx fy cx cy. Images without one have ``camera``
    """

    images: str
    depths: str
    scale: float | dict[str, float] | None = None
    format: Literal["depth_maps"] = "depth_maps"
    task: str = "depth"
    suffix: str = ""
    image: str | None = None
    depth: str | None = None
    array_name: str | None = None
    max_depth: float | None = None
    camera: Camera | None = None
    cameras: str | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        return (self.task,)

    @property
    def pairing(self) -> PairPatterns:
        """How images and depth maps are called."""
        return PairPatterns(self.images, self.depths, self.suffix, self.image, self.depth, "depth", "depth map")

    def scale_of(self, path: Path) -> float | None:
        """Metres per stored unit of a file; None where it is not given."""
        if not isinstance(self.scale, dict):
            return self.scale
        scales = {end.lower().lstrip("."): scale for end, scale in self.scale.items()}
        return scales.get(path.suffix.lower().lstrip("."))

    def __post_init__(self) -> None:
        self.pairing.check("depth_maps")
        scales = [] if self.scale is None else self.scale.values() if isinstance(self.scale, dict) else [self.scale]
        if not all(0 < scale < float("inf") for scale in scales):
            raise ConfigError(f"depth_maps: scale is {self.scale}. Expected metres per stored unit, for example 0.001.")
        if self.max_depth is not None and not self.max_depth > 0:
            raise ConfigError(f"depth_maps: max is {self.max_depth}. Expected metres, more than 0.")
        check_intrinsics(self.camera, "depth_maps")


class DepthMapsReader:
    """Images that have a depth map."""

    Config = DepthMapsConfig

    def __init__(self, config: DepthMapsConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        self.class_maps: dict[str, ClassMap] = {}
        self._pairs = pair_files(root, config.pairing, self.problems)
        self.images = list(self._pairs)
        firsts = {path.suffix.lower(): path for path in reversed(self._pairs.values())}
        for path in firsts.values():
            self._check_scale(path)
        images = require_folder(root, config.images, "images")
        self._cameras = {} if config.cameras is None else self._read_cameras(images, root, config.cameras)

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, DenseMap]:
        """values float32 [H, W] in metres, 0 where invalid. Raises DataError where the file is no depth map."""
        picture = self.images[index]
        path = self._pairs[picture]
        scale = self.config.scale_of(path)
        stored = read_map(path, self.config.array_name, merge_channels=scale is not None)
        _check_dtype(stored, path, scale)
        check_label_size(str(path), stored.shape, picture, size)
        return {self.config.task: to_depth_map(stored, self.config.max_depth, scale or 1.0)}

    def _check_scale(self, path: Path) -> None:
        """Raise ConfigError where a file holds whole numbers, as an image does, and no scale is given for it."""
        if self.config.scale_of(path) is not None or path.suffix.lower() in (*ARRAY_SUFFIXES, ".pfm", ".exr"):
            return
        if path.suffix.lower() in (".tif", ".tiff"):
            try:
                stored = read_map(path)
            except DataError:  # told where it is used
                return
            if stored.dtype.kind == "f":
                return
        end = path.suffix.lower().lstrip(".")
        raise ConfigError(
            f"depth_maps: {path} is a {end.upper()} of whole numbers, and scale is not given. Add scale: metres per "
            "stored unit, for example 0.001 for millimetres (Kinect, RealSense), 0.0002 for TUM, 0.00390625 for KITTI."
        )

    def camera(self, index: int) -> Camera | None:
        return self._cameras.get(self.images[index], self.config.camera)

    def _read_cameras(self, images: Path, root: Path, name: str) -> dict[Path, Camera]:
        """Image -> intrinsics. All files are read now, so that a fault shows at once."""
        folder = require_folder(root, name, "intrinsics")
        files = index_by_stem(list_files(folder, ".txt", root), folder)
        named = list_images(images, root=root)
        stems = index_by_stem({picture: named[picture] for picture in self.images}, images)
        found = {picture: read_intrinsics(files[stem]) for stem, picture in stems.items() if stem in files}
        if not found:
            raise DataError(f"No image has intrinsics of its name under {folder}. Expected {next(iter(stems))}.txt.")
        if len(found) < len(self.images):
            self.problems["images without intrinsics"] += len(self.images) - len(found)
        return found


def to_depth_map(values: NDArray, max_depth: float | None = None, scale: float = 1.0) -> DenseMap:
    """Stored numbers [H, W] times ``scale`` as a depth map, float32.

    NaN, infinite, zero, negative and too far values (over ``max_depth``, or from `FARTHEST` on) are invalid, and 0.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        distances = values.astype(np.float32, order="C")
        if scale != 1:
            distances *= np.float32(scale)
        valid = (distances > 0) & (distances < MAX_DISTANCE)  # false for NaN
        if max_depth is not None:
            valid &= distances <= max_depth
    return DenseMap(np.where(valid, distances, np.float32(0)), valid)


_UNITS = (
    (1e-3, "millimetres"), (1e-2, "centimetres"), (1 / 256, "1/256 m"), (2e-4, "1/5000 m"), (1e3, "kilometres"),
)  # fmt: skip


def guess_unit(median: float, limits: tuple[float, float]) -> tuple[float, str] | None:
    """(metres, name) of the unit in which a median distance would lie within limits in metres; None where in none."""
    return next(((size, name) for size, name in _UNITS if limits[0] <= median * size <= limits[1]), None)


def check_intrinsics(camera: Camera | None, where: str) -> None:
    """Raise ConfigError where focal lengths are not positive numbers."""
    if camera is not None and not (
        0 < camera.fx < 1e7 and 0 < camera.fy < 1e7 and abs(camera.cx) + abs(camera.cy) < 1e7
    ):
        raise ConfigError(f"{where}: {camera} is no pinhole camera. Expected positive focal lengths in pixels.")


def make_camera(fx: float, fy: float, cx: float, cy: float, where: str) -> Camera:
    """A camera read from the file ``where``. Raises DataError where it is none."""
    camera = Camera(fx, fy, cx, cy)
    try:
        check_intrinsics(camera, where)
    except ConfigError as error:
        raise DataError(str(error)) from None
    return camera


def read_intrinsics(path: Path) -> Camera:
    """Intrinsics from a text of 4 numbers (fx fy cx cy), or of a 3x3 or 4x4 matrix. Raises DataError."""
    expected = "fx fy cx cy, or the 3x3 matrix (or 4x4) row by row"
    words = read_text(path, 1 << 16).replace(",", " ").split()
    numbers = parse_floats(words, str(path), expected)
    if len(numbers) == 4:
        return make_camera(numbers[0], numbers[1], numbers[2], numbers[3], str(path))
    side = {9: 3, 16: 4}.get(len(numbers))
    if side is None:
        raise DataError(f"{path} holds {len(numbers)} numbers. Expected {expected}.")
    matrix = np.array(numbers).reshape(side, side)
    if not (matrix[2, :3] == (0, 0, 1)).all() or matrix[1, 0] != 0:
        raise DataError(f"{path} is no matrix of intrinsics: {numbers}. Expected fx 0 cx, 0 fy cy, 0 0 1.")
    fx, fy, cx, cy = (float(matrix[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return make_camera(fx, fy, cx, cy, str(path))


def read_stored_depth(path: Path) -> NDArray:
    """Numbers [H, W] as stored in an image of more than 8 bits, or an array. Raises DataError where it is neither."""
    stored = read_map(path)
    _check_dtype(stored, path)
    return stored


def _check_dtype(stored: NDArray, path: Path, scale: float | None = None) -> None:
    """Raise DataError where numbers are truth values, or 8 bits of an image that ``scale`` makes no distances."""
    expected = "Expected a 16-bit PNG of distances, or an array of numbers"
    if stored.dtype == np.bool_:
        raise DataError(f"{path} holds truth values. {expected}.")
    array = path.suffix.lower() in ARRAY_SUFFIXES
    if stored.dtype == np.uint8 and not array and (scale is None or 255 * scale < MIN_BYTE_DISTANCE):
        far = "" if scale is None else f" With scale {scale:g} the farthest would be {255 * scale:.3g} m."
        raise DataError(f"{path} has 8 bits per pixel. {expected}; 8 bits are an image, not depth.{far}")
