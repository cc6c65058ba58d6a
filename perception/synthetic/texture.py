"""Noise for surfaces, clouds, rain and the sensor, computed once."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

TILE_SIZE = 512
"""Tiles have TILE_SIZE x TILE_SIZE pixels and repeat."""

GRAIN_OFFSET, LEAVES_OFFSET = 0, TILE_SIZE * TILE_SIZE
"""Start of each tile in `make_surface_tiles`."""


def _smooth_noise(noise: NDArray, sigma: float) -> NDArray[np.float32]:
    pad = int(4 * sigma) + 1
    wrapped = cv2.GaussianBlur(np.pad(noise, pad, mode="wrap"), (0, 0), sigma)[pad:-pad, pad:-pad]
    return ((wrapped - wrapped.mean()) / wrapped.std()).astype(np.float32)


@lru_cache(maxsize=1)
def make_surface_tiles() -> NDArray[np.float32]:
    """Return [2 * TILE_SIZE * TILE_SIZE]: two flat tiles, mean 0, deviation about 1: fine grain, and leaf clusters."""
    random = np.random.default_rng(11)
    noise = [random.standard_normal((TILE_SIZE, TILE_SIZE)).astype(np.float32) for _ in range(6)]
    grain = (
        0.7 * _smooth_noise(noise[0], 0.7) + 0.5 * _smooth_noise(noise[1], 3.0) + 0.5 * _smooth_noise(noise[2], 14.0)
    )
    clumps = (
        np.tanh(1.3 * _smooth_noise(noise[3], 1.3)) + 0.7 * np.tanh(1.5 * _smooth_noise(noise[4], 3.5)) + 0.3 * noise[5]
    )
    flat = [np.clip(grain, -2.5, 2.5).ravel(), np.clip(clumps, -2.0, 2.0).ravel()]
    return np.concatenate(flat).astype(np.float32)


@lru_cache(maxsize=1)
def make_cloud_tile() -> NDArray[np.float32]:
    """Return [TILE_SIZE, TILE_SIZE] in 0-1: octaves of noise, uniform, so that cloud cover is a threshold."""
    random = np.random.default_rng(12)
    total = np.zeros((TILE_SIZE, TILE_SIZE), np.float32)
    for octave in range(6):
        total += (
            _smooth_noise(random.standard_normal((TILE_SIZE, TILE_SIZE)).astype(np.float32), 40.0 / 2**octave)
            / 1.8**octave
        )
    ranks = np.empty(total.size, np.float32)
    ranks[np.argsort(total, axis=None)] = np.linspace(0, 1, total.size, dtype=np.float32)
    return ranks.reshape(TILE_SIZE, TILE_SIZE)


@lru_cache(maxsize=1)
def make_sensor_noise() -> NDArray[np.float32]:
    """Return [2 * TILE_SIZE, 2 * TILE_SIZE, 3]: slightly correlated color noise, deviation 1. Images use crops."""
    random = np.random.default_rng(13)
    noise = random.standard_normal((2 * TILE_SIZE, 2 * TILE_SIZE, 3)).astype(np.float32)
    gray = random.standard_normal((2 * TILE_SIZE, 2 * TILE_SIZE, 1)).astype(np.float32)
    return (cv2.GaussianBlur(noise, (0, 0), 0.5) * 1.04 + gray * 0.5).astype(np.float32)


@lru_cache(maxsize=1)
def make_rain_tile() -> NDArray[np.float32]:
    """Return [2 * TILE_SIZE, 2 * TILE_SIZE] in 0-1: streaks of falling drops."""
    random = np.random.default_rng(14)
    tile = np.zeros((2 * TILE_SIZE, 2 * TILE_SIZE), np.float32)
    for x, y, length, bright in zip(
        random.integers(0, 2 * TILE_SIZE, 3600),
        random.integers(0, 2 * TILE_SIZE, 3600),
        random.uniform(6, 26, 3600),
        random.uniform(0.25, 1.0, 3600),
        strict=True,
    ):
        cv2.line(tile, (int(x), int(y)), (int(x - 0.12 * length), int(y + length)), float(bright), 1, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(tile, (0, 0), 0.6), np.float32)


@lru_cache(maxsize=4)
def make_vignette(size: tuple[int, int]) -> NDArray[np.float32]:
    """Return an [H, W] factor that darkens the corners."""
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    return (1 - 0.16 * (0.5 * x**2 + 0.5 * y**2) ** 1.2).astype(np.float32)
