"""Random changes of the colors and the quality of an image, without moving pixels.

Brightness, contrast, hue and saturation are one matrix: in albumentations, which uses HSV, they take twice as long as
decoding the image, and noise takes seven times as long. All other changes use albumentations.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from albumentations import Compose

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise its import requests the latest version from a server

BRIGHTNESS, CONTRAST, SATURATION = 0.25, 0.25, 0.4
HUE = math.radians(24)
GAMMA = 0.75, 1.3
NOISE = 0.01, 0.05
"""Standard deviation as a fraction of white."""

_GRAY_AXIS = np.ones(3) / math.sqrt(3)
_AXIS_PROJECTION, _AXIS_CROSS = np.outer(_GRAY_AXIS, _GRAY_AXIS), np.cross(np.eye(3), _GRAY_AXIS)
_GRAY = np.tile([0.299, 0.587, 0.114], (3, 1))
"""RGB to luma, as three equal rows."""

_NOISE_STEPS = 32
"""Steps of the stored noise per standard deviation: int8 covers four standard deviations."""


def jitter_color(image: NDArray[np.uint8], probability: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change brightness and contrast, hue and saturation of uint8 RGB [H, W, 3] with ``probability`` each.

    Gamma is changed with half of it.
    """
    matrix = None
    if rng.random() < probability:
        gain, offset = 1 + rng.uniform(-CONTRAST, CONTRAST), 255 * rng.uniform(-BRIGHTNESS, BRIGHTNESS)
        matrix = color_matrix(gain=gain, offset=offset)
    if rng.random() < probability:
        turn = color_matrix(rng.uniform(-HUE, HUE), 1 + rng.uniform(-SATURATION, SATURATION))
        matrix = turn if matrix is None else turn[:, :3] @ matrix
    if matrix is not None:
        image = apply_color_matrix(image, matrix)
    if rng.random() < 0.5 * probability:
        table = np.round(255 * (np.arange(256) / 255) ** rng.uniform(*GAMMA)).astype(np.uint8)
        image = np.asarray(cv2.LUT(image, table), np.uint8)
    return image


def color_matrix(
    hue: float = 0.0, saturation: float = 1.0, gain: float | NDArray = 1.0, offset: float = 0.0
) -> NDArray[np.float64]:
    """Return a color matrix [3, 4]: the first three columns multiply RGB, the last one is added.

    Args:
        hue: rotation of the colors about the gray axis in radians, with luma unchanged.
        saturation: factor for the distance from gray.
        gain: factor for RGB, or one factor per channel.
        offset: value that is added to RGB.
    """
    turned = math.cos(hue) * np.eye(3) - math.sin(hue) * _AXIS_CROSS + (1 - math.cos(hue)) * _AXIS_PROJECTION
    matrix = np.empty((3, 4))
    matrix[:, :3] = _GRAY + saturation * (turned - _GRAY @ turned)
    matrix[:, :3] *= np.reshape(gain, (-1, 1))
    matrix[:, 3] = offset
    return matrix


def apply_color_matrix(image: NDArray[np.uint8], matrix: NDArray) -> NDArray[np.uint8]:
    """Apply a `color_matrix` to uint8 RGB [H, W, 3], rounded and clipped to 0 to 255."""
    return np.asarray(cv2.transform(image, matrix.astype(np.float32)), np.uint8)


def degrade_image(image: NDArray[np.uint8], probability: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add blur, noise and JPEG artifacts to uint8 RGB [H, W, 3], with ``probability`` each."""
    blur, noise, jpeg = rng.random(3) < probability
    if blur:
        image = _apply_albumentation(_blur_transform(), image, rng)
    if noise:
        image = add_noise(image, rng.uniform(*NOISE), rng)
    if jpeg:
        image = _apply_albumentation(_jpeg_transform(), image, rng)
    return image


def add_noise(image: NDArray[np.uint8], deviation: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add Gaussian noise to uint8 RGB [H, W, 3]. ``deviation`` is its standard deviation as a fraction of white.

    The noise is a random window of a field that is generated once.
    """
    height, width = image.shape[:2]
    field = _noise_field(-(-(height + 64) // 512) * 512, -(-(width + 64) // 512) * 512)
    y, x = (int(rng.integers(whole - part + 1)) for whole, part in zip(field.shape, (height, width), strict=False))
    weight = float(deviation * 255 / _NOISE_STEPS * rng.choice((-1, 1)))
    window = field[y : y + height, x : x + width]
    return np.asarray(cv2.addWeighted(image, 1.0, window, weight, 0.0, dtype=cv2.CV_8U), np.uint8)


def add_weather(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change uint8 RGB [H, W, 3] to night, haze or rain, or cast a shadow on the lower half."""
    match int(rng.integers(4)):
        case 0:
            gain = rng.uniform(0.2, 0.5) * np.array([0.85, 0.95, 1.1])
            dark = apply_color_matrix(image, color_matrix(saturation=rng.uniform(0.4, 0.8), gain=gain))
            return add_noise(dark, rng.uniform(0.01, 0.04), rng)
        case 1:
            clear = rng.uniform(0.3, 0.7)
            return apply_color_matrix(image, color_matrix(gain=clear, offset=(1 - clear) * rng.uniform(150, 220)))
        case 2:
            dull = apply_color_matrix(image, color_matrix(saturation=0.7, gain=rng.uniform(0.7, 0.9), offset=15))
            return _apply_albumentation(_rain_transform(), dull, rng)
        case _:
            return _apply_albumentation(_shadow_transform(), image, rng)


def _apply_albumentation(transform: Compose, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    transform.set_random_seed(int(rng.integers(2**31)))
    return transform(image=image)["image"]


@lru_cache(maxsize=4)
def _noise_field(height: int, width: int) -> NDArray[np.int8]:
    normal = np.random.default_rng([height, width]).standard_normal((height, width, 3), np.float32)
    return np.clip(np.round(_NOISE_STEPS * normal), -127, 127).astype(np.int8)


@lru_cache(maxsize=1)
def _blur_transform() -> Compose:
    import albumentations as changes

    kinds = [changes.GaussianBlur(blur_limit=(3, 5)), changes.MotionBlur(blur_limit=(3, 7))]
    return changes.Compose([changes.OneOf(kinds, p=1)])


@lru_cache(maxsize=1)
def _jpeg_transform() -> Compose:
    import albumentations as changes

    return changes.Compose([changes.ImageCompression(quality_range=(40, 90), p=1)])


@lru_cache(maxsize=1)
def _rain_transform() -> Compose:
    import albumentations as changes

    return changes.Compose([changes.RandomRain(rain_type="heavy", drop_color=(160, 160, 165), blur_value=3, p=1)])


@lru_cache(maxsize=1)
def _shadow_transform() -> Compose:
    import albumentations as changes

    return changes.Compose([changes.RandomShadow(shadow_intensity_range=(0.3, 0.6), p=1)])
