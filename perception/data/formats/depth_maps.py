"""A folder of depth maps, one per image: integers with a scale, or floats in metres."""

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
"""Limit in metres. Programs write larger values as placeholders for "no measurement"."""

MIN_BYTE_DISTANCE = 0.3
"""Smallest distance in metres of stored value 255 for which an 8-bit image is accepted as depth."""


@config_dataclass
class DepthMapsConfig:
    """Configuration of the reader for a folder of depth maps.

    Attributes:
        images: folder of the images, relative to the data root.
        depths: folder of the depth maps, relative to the data root. A map has its image's name, plus ``suffix``.
        scale: metres per stored unit (0.001 for millimetres). Required for integer images; default 1 for arrays and
            floats. Must be above 0. For several file types: {png: 0.001, npy: 1}.
        format: name of this reader.
        task: depth task of the recipe.
        suffix: text after the image's name in the name of its depth map.
        image: pattern for other names, such as "*_color.jpg"; "*" is the common part. A pattern without "/" matches
            the file name. One folder may contain both kinds of files.
        depth: pattern of the depth maps, such as "*_depth.png"; see ``image``.
        array_name: name of the array in a .npz with several arrays.
        max_depth: larger distances, in metres, are invalid; None = no limit.
        camera: intrinsics in pixels of the images; None = unknown.
        cameras: folder of ``<image's name>.txt`` with intrinsics per image, in its pixels: a 3x3 (or 4x4) matrix row
            by row, or fx fy cx cy. Images without a file use ``camera``.
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
        """Names of the tasks that the reader may label."""
        return (self.task,)

    @property
    def pairing(self) -> PairPatterns:
        """Name patterns that pair images with depth maps."""
        return PairPatterns(self.images, self.depths, self.suffix, self.image, self.depth, "depth", "depth map")

    def scale_of(self, path: Path) -> float | None:
        """Return the metres per stored unit of a file; None if not given."""
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
            raise ConfigError(f"depth_maps: max_depth is {self.max_depth}. Expected metres, more than 0.")
        check_intrinsics(self.camera, "depth_maps")


class DepthMapsReader:
    """Reader of images that have a depth map."""

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
        """Return depth float32 [H, W] in metres, 0 = invalid. Raises DataError if the file is not a depth map."""
        picture = self.images[index]
        path = self._pairs[picture]
        scale = self.config.scale_of(path)
        stored = read_map(path, self.config.array_name, merge_channels=scale is not None)
        _check_dtype(stored, path, scale)
        check_label_size(str(path), stored.shape, picture, size)
        return {self.config.task: to_depth_map(stored, self.config.max_depth, scale or 1.0)}

    def _check_scale(self, path: Path) -> None:
        """Raise ConfigError if a file contains integers and no scale is given for it."""
        if self.config.scale_of(path) is not None or path.suffix.lower() in (*ARRAY_SUFFIXES, ".pfm", ".exr"):
            return
        if path.suffix.lower() in (".tif", ".tiff"):
            try:
                stored = read_map(path)
            except DataError:  # reported when the map is read
                return
            if stored.dtype.kind == "f":
                return
        end = path.suffix.lower().lstrip(".")
        raise ConfigError(
            f"depth_maps: {path} is a {end.upper()} of integers, and scale is not given. Add scale: metres per "
            "stored unit, for example 0.001 for millimetres (Kinect, RealSense), 0.0002 for TUM, 0.00390625 for KITTI."
        )

    def camera(self, index: int) -> Camera | None:
        """Return the intrinsics in pixels of image ``index``; None if unknown."""
        return self._cameras.get(self.images[index], self.config.camera)

    def _read_cameras(self, images: Path, root: Path, name: str) -> dict[Path, Camera]:
        """Image -> intrinsics. All files are read now, so that errors are reported at once."""
        folder = require_folder(root, name, "intrinsics")
        files = index_by_stem(list_files(folder, ".txt", root), folder)
        named = list_images(images, root=root)
        stems = index_by_stem({picture: named[picture] for picture in self.images}, images)
        found = {picture: read_intrinsics(files[stem]) for stem, picture in stems.items() if stem in files}
        if not found:
            raise DataError(
                f"No image has intrinsics in a file of its name under {folder}. Expected {next(iter(stems))}.txt."
            )
        if len(found) < len(self.images):
            self.problems["images without intrinsics"] += len(self.images) - len(found)
        return found


def to_depth_map(values: NDArray, max_depth: float | None = None, scale: float = 1.0) -> DenseMap:
    """Convert stored numbers [H, W], times ``scale``, to a depth map float32 in metres.

    NaN, infinite, zero, negative and too large values (over ``max_depth``, or at least `MAX_DISTANCE`) become 0 and
    invalid.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        distances = values.astype(np.float32, order="C")
        if scale != 1:
            distances *= np.float32(scale)
        valid = (distances > 0) & (distances < MAX_DISTANCE)  # False for NaN
        if max_depth is not None:
            valid &= distances <= max_depth
    return DenseMap(np.where(valid, distances, np.float32(0)), valid)


_UNITS = (
    (1e-3, "millimetres"), (1e-2, "centimetres"), (1 / 256, "1/256 m"), (2e-4, "1/5000 m"), (1e3, "kilometres"),
)  # fmt: skip


def guess_unit(median: float, limits: tuple[float, float]) -> tuple[float, str] | None:
    """Return (metres, name) of the unit in which the median lies within ``limits`` (metres); None if there is none."""
    return next(((size, name) for size, name in _UNITS if limits[0] <= median * size <= limits[1]), None)


def check_intrinsics(camera: Camera | None, where: str) -> None:
    """Raise ConfigError if the focal lengths are not positive numbers."""
    if camera is not None and not (
        0 < camera.fx < 1e7 and 0 < camera.fy < 1e7 and abs(camera.cx) + abs(camera.cy) < 1e7
    ):
        raise ConfigError(f"{where}: {camera} is not a pinhole camera. Expected positive focal lengths in pixels.")


def make_camera(fx: float, fy: float, cx: float, cy: float, where: str) -> Camera:
    """Return the camera of the file ``where``. Raises DataError if the intrinsics are invalid."""
    camera = Camera(fx, fy, cx, cy)
    try:
        check_intrinsics(camera, where)
    except ConfigError as error:
        raise DataError(str(error)) from None
    return camera


def read_intrinsics(path: Path) -> Camera:
    """Read intrinsics from a text file with fx fy cx cy, or a 3x3 or 4x4 matrix. Raises DataError if it is invalid."""
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
        raise DataError(f"{path} is not a matrix of intrinsics: {numbers}. Expected fx 0 cx, 0 fy cy, 0 0 1.")
    fx, fy, cx, cy = (float(matrix[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return make_camera(fx, fy, cx, cy, str(path))


def read_stored_depth(path: Path) -> NDArray:
    """Read the stored numbers [H, W] of an image with more than 8 bits, or of an array. Raises DataError if neither."""
    stored = read_map(path)
    _check_dtype(stored, path)
    return stored


def _check_dtype(stored: NDArray, path: Path, scale: float | None = None) -> None:
    """Raise DataError for booleans, and for 8-bit images whose values times ``scale`` cannot be distances."""
    expected = "Expected a 16-bit PNG of distances, or an array of numbers"
    if stored.dtype == np.bool_:
        raise DataError(f"{path} contains booleans. {expected}.")
    array = path.suffix.lower() in ARRAY_SUFFIXES
    if stored.dtype == np.uint8 and not array and (scale is None or 255 * scale < MIN_BYTE_DISTANCE):
        far = "" if scale is None else f" With scale {scale:g} the largest distance would be {255 * scale:.3g} m."
        raise DataError(f"{path} has 8 bits per pixel. {expected}; 8 bits are an image, not depth.{far}")
