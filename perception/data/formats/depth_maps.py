"""A folder of depth maps: 16-bit PNG, or .npy in metres, one per picture."""

from __future__ import annotations

import math
import tokenize
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perception.config import configuration
from perception.data.dataset import check_size
from perception.data.files.folders import by_stem, existing_folder, list_pictures, pair
from perception.data.files.images import read_map
from perception.data.files.picture_files import MAX_PIXELS
from perception.data.files.text_files import floats, list_files, read_text
from perception.data.formats.class_names import ClassMap
from perception.types import Camera, ConfigError, DataError, DenseMap

FARTHEST = 1e5
"""Metres from which on a value is a program's word for "nothing there", not a distance."""

_DAMAGE = (
    ValueError, KeyError, EOFError, SyntaxError, TypeError, MemoryError, RecursionError, OverflowError,
    tokenize.TokenError,
)  # fmt: skip
"""What numpy raises for headers that are none."""


@configuration
class DepthMapsConfig:
    """images, depths: folders, relative to the data root; a depth map has its picture's name (plus ``suffix``).

    scale:   metres per stored unit (0.001 for millimetres); needed for PNG, 1 by default for .npy. 0 is invalid
    max:     metres beyond which a value is invalid; None = none
    camera:  intrinsics in pixels of the pictures; None = unknown
    cameras: folder of ``<picture's name>.txt`` with intrinsics of single pictures, in their pixels: a 3x3 (or 4x4)
             matrix row by row, or fx fy cx cy. Pictures without one have ``camera``
    """

    images: str
    depths: str
    scale: float | None = None
    format: Literal["depth_maps"] = "depth_maps"
    task: str = "depth"
    suffix: str = ""
    max: float | None = None
    camera: Camera | None = None
    cameras: str | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        return (self.task,)

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise ConfigError(f"depth_maps: scale is {self.scale}. Expected metres per stored unit, for example 0.001.")
        if self.max is not None and not self.max > 0:
            raise ConfigError(f"depth_maps: max is {self.max}. Expected metres, more than 0.")
        check_camera(self.camera, "depth_maps")


class DepthMapsReader:
    """Pictures that have a depth map."""

    Config = DepthMapsConfig

    def __init__(self, config: DepthMapsConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        self.class_maps: dict[str, ClassMap] = {}
        images = existing_folder(root, config.images, "pictures")
        depths = existing_folder(root, config.depths, "depth maps")
        named = list_pictures(images, root=root)
        self._pairs = pair(named, images, depths, config.suffix, "depth map", self.problems, root)
        self.images = list(self._pairs)
        png = next((path for path in self._pairs.values() if path.suffix.lower() != ".npy"), None)
        if config.scale is None and png is not None:
            raise ConfigError(
                f"depth_maps: {png} is a PNG of whole numbers, and scale is not given. Add scale: metres per stored "
                "unit, for example 0.001 for millimetres (Kinect, RealSense), 0.0002 for TUM, 0.00390625 for KITTI."
            )
        self._cameras = {} if config.cameras is None else self._read_cameras(named, images, root, config.cameras)

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, DenseMap]:
        """values float32 [H, W] in metres, 0 where invalid. Raises DataError where the file is no depth map."""
        picture = self.images[index]
        path = self._pairs[picture]
        stored = read_depth(path)
        check_size(str(path), stored.shape, picture, size)
        return {self.config.task: metres(stored, self.config.max, self.config.scale or 1.0)}

    def camera(self, index: int) -> Camera | None:
        return self._cameras.get(self.images[index], self.config.camera)

    def _read_cameras(self, named: Mapping[Path, str], images: Path, root: Path, name: str) -> dict[Path, Camera]:
        """Picture -> intrinsics. All files are read now, so that a fault shows at once."""
        folder = existing_folder(root, name, "intrinsics")
        files = by_stem(list_files(folder, ".txt", root), folder)
        stems = by_stem({picture: named[picture] for picture in self.images}, images)
        found = {picture: read_intrinsics(files[stem]) for stem, picture in stems.items() if stem in files}
        if not found:
            raise DataError(f"No picture has intrinsics of its name under {folder}. Expected {next(iter(stems))}.txt.")
        if len(found) < len(self.images):
            self.problems["pictures without intrinsics"] += len(self.images) - len(found)
        return found


def metres(values: NDArray, limit: float | None = None, scale: float = 1.0) -> DenseMap:
    """Stored numbers [H, W] times ``scale`` as a depth map, float32.

    NaN, infinite, zero, negative and too far values (over ``limit``, or from `FARTHEST` on) are invalid, and 0.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        distances = values.astype(np.float32, order="C")
        if scale != 1:
            distances *= np.float32(scale)
        valid = (distances > 0) & (distances < FARTHEST)  # false for NaN
        if limit is not None:
            valid &= distances <= limit
    return DenseMap(np.where(valid, distances, np.float32(0)), valid)


def check_camera(camera: Camera | None, where: str) -> None:
    """Raise ConfigError where focal lengths are not positive numbers."""
    if camera is not None and not (
        0 < camera.fx < 1e7 and 0 < camera.fy < 1e7 and abs(camera.cx) + abs(camera.cy) < 1e7
    ):
        raise ConfigError(f"{where}: {camera} is no pinhole camera. Expected positive focal lengths in pixels.")


def intrinsics(fx: float, fy: float, cx: float, cy: float, where: str) -> Camera:
    """A camera read from the file ``where``. Raises DataError where it is none."""
    camera = Camera(fx, fy, cx, cy)
    try:
        check_camera(camera, where)
    except ConfigError as error:
        raise DataError(str(error)) from None
    return camera


def read_intrinsics(path: Path) -> Camera:
    """Intrinsics from a text of 4 numbers (fx fy cx cy), or of a 3x3 or 4x4 matrix. Raises DataError."""
    expected = "fx fy cx cy, or the 3x3 matrix (or 4x4) row by row"
    words = read_text(path, 1 << 16).replace(",", " ").split()
    numbers = floats(words, str(path), expected)
    if len(numbers) == 4:
        return intrinsics(numbers[0], numbers[1], numbers[2], numbers[3], str(path))
    side = {9: 3, 16: 4}.get(len(numbers))
    if side is None:
        raise DataError(f"{path} holds {len(numbers)} numbers. Expected {expected}.")
    matrix = np.array(numbers).reshape(side, side)
    if not (matrix[2, :3] == (0, 0, 1)).all() or matrix[1, 0] != 0:
        raise DataError(f"{path} is no matrix of intrinsics: {numbers}. Expected fx 0 cx, 0 fy cy, 0 0 1.")
    fx, fy, cx, cy = (float(matrix[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return intrinsics(fx, fy, cx, cy, str(path))


def read_depth(path: Path) -> NDArray:
    """Numbers [H, W] as stored in a 16-bit PNG or a .npy. Raises DataError where it is neither."""
    if path.suffix.lower() == ".npy":
        stored = read_array(path)
        stored = stored[..., 0] if stored.ndim == 3 and stored.shape[2] == 1 else stored
        if stored.ndim != 2 or stored.size > MAX_PIXELS:
            raise DataError(f"{path} is {stored.dtype} {stored.shape}. Expected a number for every pixel, [H, W].")
        return stored
    stored = read_map(path)
    if stored.dtype != np.uint16:
        raise DataError(
            f"{path} has 8 bits per pixel. Expected a 16-bit PNG of distances; 8 bits are a picture, not depth."
        )
    return stored


def read_array(path: Path) -> NDArray:
    """A plain .npy array of numbers with 1 to 3 axes, at most 4 values for each of `MAX_PIXELS` pixels.

    The header is checked against the file's size before memory is taken; pickles are refused. Raises DataError.
    """
    expected = "Expected a plain .npy array of numbers; save it anew with numpy.save."
    if not path.is_file():
        raise DataError(f"No array at {path}. Restore the file.")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            with warnings.catch_warnings():  # of headers that Python 2 wrote
                warnings.simplefilter("ignore")
                shape, by_column, kind = read(file)
            held = path.stat().st_size - file.tell()
            if kind.hasobject:
                raise DataError(f"{path} cannot be read: it holds pickled objects. {expected}")
            count = math.prod(shape)
            if kind.kind not in "fiu" or len(shape) > 3 or min(shape, default=0) < 1 or count > 4 * MAX_PIXELS:
                raise DataError(f"{path} is {kind} {shape}. {expected}")
            if held != count * kind.itemsize:
                raise DataError(f"{path} is {kind} {shape} by its header, but holds {held} bytes. It is damaged.")
            data = np.frombuffer(file.read(held), kind)
    except (OSError, *_DAMAGE) as error:
        raise DataError(f"{path} cannot be read: {error}. {expected}") from error
    if data.size != count:
        raise DataError(f"{path} changed while it was read. Read it again.")
    return data.reshape(shape, order="F" if by_column else "C")
