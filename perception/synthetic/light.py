"""Weather and time of day: light sources, their direction, and haze."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

RgbColor = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Light:
    """Light of a scene. Colors are RGB, 1 = white paper in full light.

    Attributes:
        scene_class: one of `SCENE_CLASSES`.
        sun_direction: direction to the sun (right, up, forward).
        sun_color: color of the sunlight.
        ambient_color: color of the light from the sky.
        zenith_color: color of the sky at the zenith.
        horizon_color: color of the sky at the horizon.
        cloud_color: color of the clouds.
        cloud_cover: fraction of the sky with clouds.
        haze: extinction per metre (Beer-Lambert) towards the horizon's color; large for fog.
        noise: sensor noise, in eighths of a bit.
        exposure: exposure of the camera.
        tint: color tint of the camera.
        lit_fraction: fraction of lamps and windows that are on.
        darkness: how visible lamps are, from 0 (day) to 1 (night).
        wetness: fraction of the surroundings reflected by the road.
        rain_strength: strength of the rain streaks.
    """

    scene_class: str
    sun_direction: NDArray[np.float64]
    sun_color: RgbColor
    ambient_color: RgbColor
    zenith_color: RgbColor
    horizon_color: RgbColor
    cloud_color: RgbColor
    cloud_cover: float
    haze: float
    noise: float
    exposure: float
    tint: RgbColor
    lit_fraction: float = 0.0
    darkness: float = 0.0
    wetness: float = 0.0
    rain_strength: float = 0.0


def sample_light(scene_class: str, rng: Random) -> Light:
    """Sample the light of a scene class."""
    between = rng.uniform
    elevation = {"clear": between(0.45, 1.1), "dusk": between(0.1, 0.25)}.get(scene_class, 0.9)
    azimuth, level = between(-math.pi, math.pi), math.cos(elevation)
    common: dict[str, Any] = {
        "sun_direction": np.array([math.sin(azimuth) * level, math.sin(elevation), math.cos(azimuth) * level]),
        "exposure": between(0.86, 1.14),
        "tint": (between(0.97, 1.03), 1.0, between(0.97, 1.03)),
        "noise": between(1.0, 3.0),
    }
    return Light(**{"scene_class": scene_class, **common, **SCENE_SAMPLERS[scene_class](rng)})


def _tint_gray(value: float, red: float = 1.0, green: float = 1.0, blue: float = 1.0) -> RgbColor:
    return value * red, value * green, value * blue


def _sample_clear(rng: Random) -> dict[str, Any]:
    blue = rng.random()
    return {
        "sun_color": _tint_gray(rng.uniform(0.65, 0.9), 1.0, 0.94, 0.82), "ambient_color": (0.60, 0.64, 0.70),
        "zenith_color": (0.27 + 0.1 * blue, 0.5 + 0.08 * blue, 0.86), "horizon_color": (0.72, 0.82, 0.92),
        "cloud_color": (0.97, 0.97, 0.98), "cloud_cover": rng.uniform(0.05, 0.5), "haze": rng.uniform(0.0006, 0.002),
    }  # fmt: skip


def _sample_overcast(rng: Random) -> dict[str, Any]:
    gray = rng.uniform(0.72, 0.88)
    return {
        "sun_color": (0.1, 0.1, 0.1), "ambient_color": _tint_gray(gray, 1.12, 1.13, 1.15),
        "zenith_color": _tint_gray(gray, 0.98,
        1.02, 1.08),
        "horizon_color": _tint_gray(gray, 1.08, 1.09, 1.1), "cloud_color": _tint_gray(gray, 0.82, 0.85, 0.9),
        "cloud_cover": rng.uniform(0.5, 0.8), "haze": rng.uniform(0.001, 0.004),
    }  # fmt: skip


def _sample_rain(rng: Random) -> dict[str, Any]:
    gray = rng.uniform(0.5, 0.64)
    return {
        "sun_color": (0.02, 0.02, 0.02), "ambient_color": _tint_gray(gray, 1.0, 1.02, 1.07),
        "zenith_color": _tint_gray(gray, 0.72,
        0.77, 0.84),
        "horizon_color": _tint_gray(gray, 0.95, 1.0, 1.05), "cloud_color": _tint_gray(gray, 0.6, 0.64, 0.7),
        "cloud_cover": 0.7,
        "haze": rng.uniform(0.005, 0.01), "lit_fraction": rng.uniform(0.3, 0.5), "darkness": 0.22,
        "wetness": rng.uniform(0.4, 0.62), "rain_strength": rng.uniform(0.5, 1.0),
    }  # fmt: skip


def _sample_fog(rng: Random) -> dict[str, Any]:
    gray = rng.uniform(0.66, 0.82)
    return {
        "sun_color": (0.02, 0.02, 0.02), "ambient_color": _tint_gray(gray), "zenith_color": _tint_gray(gray, 0.97,
        0.98),
        "horizon_color": _tint_gray(gray, 0.97, 0.98), "cloud_color": _tint_gray(gray), "cloud_cover": 0.0,
        "haze": rng.uniform(0.015,
        0.034),
        "lit_fraction": rng.uniform(0.1, 0.4), "darkness": 0.12,
    }  # fmt: skip


def _sample_dusk(rng: Random) -> dict[str, Any]:
    warm = rng.random()
    return {
        "sun_color": (0.62, 0.38, 0.18), "ambient_color": (0.46, 0.39, 0.43), "zenith_color": (0.2 + 0.1 * warm, 0.22,
        0.42),
        "horizon_color": (0.98, 0.58 + 0.14 * warm, 0.32 + 0.1 * warm), "cloud_color": (0.72, 0.38, 0.36),
        "cloud_cover": rng.uniform(0.2, 0.6), "haze": rng.uniform(0.001, 0.004), "lit_fraction": rng.uniform(0.3, 0.6),
        "darkness": 0.4, "noise": rng.uniform(2.0, 5.0),
    }  # fmt: skip


def _sample_night(rng: Random) -> dict[str, Any]:
    glow = rng.random()
    return {
        "sun_color": (0.0, 0.0, 0.0), "ambient_color": (0.16, 0.16, 0.195), "zenith_color": (0.02, 0.025, 0.06),
        "horizon_color": (0.11 + 0.05 * glow, 0.1 + 0.03 * glow, 0.12), "cloud_color": (0.08, 0.07, 0.08),
        "cloud_cover": 0.4,
        "haze": rng.uniform(0.001, 0.004), "lit_fraction": rng.uniform(0.5, 0.85), "darkness": 1.0,
        "noise": rng.uniform(3.0, 6.0), "wetness": rng.choice((0.0, 0.0, 0.3)),
    }  # fmt: skip


SCENE_SAMPLERS = {
    "clear": _sample_clear,
    "overcast": _sample_overcast,
    "rain": _sample_rain,
    "fog": _sample_fog,
    "dusk": _sample_dusk,
    "night": _sample_night,
}
