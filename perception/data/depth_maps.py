"""A folder of depth maps: 16-bit PNG (or float .npy), one per picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perception.config import configuration
from perception.data.dataset import check_size
from perception.data.folders import existing_folder, list_pictures, pair
from perception.data.images import read_map
from perception.types import Camera, ConfigError, DataError, DenseMap


@configuration
class DepthMapsConfig:
    """images, depths: folders, relative to the data root; a depth map has its picture's name (plus ``suffix``).

    scale:  metres per stored unit (0.001 for millimetres); 0 is invalid
    max:    metres beyond which a value is invalid; None = none
    camera: intrinsics in pixels of the pictures; None = unknown
    """

    images: str
    depths: str
    scale: float
    format: Literal["depth_maps"] = "depth_maps"
    task: str = "depth"
    suffix: str = ""
    max: float | None = None
    camera: Camera | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        return (self.task,)

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ConfigError(f"depth_maps: scale is {self.scale}. Expected metres per stored unit, for example 0.001.")
        check_camera(self.camera, "depth_maps")


class DepthMapsReader:
    """Pictures that have a depth map."""

    Config = DepthMapsConfig

    def __init__(self, config: DepthMapsConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        images = existing_folder(root, config.images, "pictures")
        depths = existing_folder(root, config.depths, "depth maps")
        self._pairs = pair(list_pictures(images), images, depths, config.suffix, "depth map", self.problems)
        self.images = list(self._pairs)

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, DenseMap]:
        """values float32 [H, W] in metres, 0 where invalid. Raises DataError where the file has 8 bits."""
        picture = self.images[index]
        path = self._pairs[picture]
        stored = _read(path)
        check_size(str(path), stored.shape, picture, size)
        return {self.config.task: metres(stored.astype(np.float32) * np.float32(self.config.scale), self.config.max)}

    def camera(self, index: int) -> Camera | None:
        return self.config.camera


def metres(values: NDArray[np.float32], limit: float | None = None) -> DenseMap:
    """A depth map whose NaN, infinite, zero, negative and too far values are invalid (and 0)."""
    valid = np.isfinite(values) & (values > 0)
    if limit is not None:
        valid &= values <= limit
    return DenseMap(np.where(valid, values, np.float32(0)), valid)


def check_camera(camera: Camera | None, where: str) -> None:
    """Raise ConfigError where focal lengths are not positive numbers."""
    if camera is not None and not (
        0 < camera.fx < 1e7 and 0 < camera.fy < 1e7 and abs(camera.cx) + abs(camera.cy) < 1e7
    ):
        raise ConfigError(f"{where}: {camera} is no pinhole camera. Expected positive focal lengths in pixels.")


def _read(path: Path) -> NDArray:
    if path.suffix == ".npy":
        try:
            stored = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} cannot be read: {error}. Expected a plain .npy array of numbers.") from error
        if stored.ndim != 2 or stored.dtype.kind not in "fiu":
            raise DataError(f"{path} is {stored.dtype} {stored.shape}. Expected a number for every pixel, [H, W].")
        return stored
    stored = read_map(path)
    if stored.dtype != np.uint16:
        raise DataError(
            f"{path} has 8 bits per pixel. Expected a 16-bit PNG of distances; 8 bits are a picture, not depth."
        )
    return stored
