"""Weather and time of day: what shines, from where, and what hangs in the air."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Light:
    """Colours are RGB, 1 = white paper under full light.

    sun: direction towards it (right, up, forward), ``direct`` its colour, ``ambient`` that of the sky's light
    zenith, horizon, cloud: colours of the sky; ``cover`` share of clouds
    haze: extinction per metre (Beer-Lambert) towards the horizon's colour; fog when large
    lights: share of lamps and windows that are on; ``dark`` how much they matter (0 day - 1 night)
    wet: share of the surroundings that the road mirrors; ``rain`` strength of streaks
    noise: of the sensor, in eighths of a bit; ``exposure`` and ``tint`` of the camera
    """

    scene: str
    sun: NDArray[np.float64]
    direct: Colour
    ambient: Colour
    zenith: Colour
    horizon: Colour
    cloud: Colour
    cover: float
    haze: float
    noise: float
    exposure: float
    tint: Colour
    lights: float = 0.0
    dark: float = 0.0
    wet: float = 0.0
    rain: float = 0.0


def sample_light(scene: str, choose: Random) -> Light:
    """The light of one of the scenes, with its own variation."""
    between = choose.uniform
    elevation = {"clear": between(0.45, 1.1), "dusk": between(0.1, 0.25)}.get(scene, 0.9)
    azimuth, level = between(-math.pi, math.pi), math.cos(elevation)
    common: dict[str, Any] = {
        "sun": np.array([math.sin(azimuth) * level, math.sin(elevation), math.cos(azimuth) * level]),
        "exposure": between(0.86, 1.14),
        "tint": (between(0.97, 1.03), 1.0, between(0.97, 1.03)),
        "noise": between(1.0, 3.0),
    }
    return Light(**{"scene": scene, **common, **VARIATIONS[scene](choose)})


def _gray(value: float, red: float = 1.0, green: float = 1.0, blue: float = 1.0) -> Colour:
    return value * red, value * green, value * blue


def _clear(choose: Random) -> dict[str, Any]:
    blue = choose.random()
    return {
        "direct": _gray(choose.uniform(0.65, 0.9), 1.0, 0.94, 0.82), "ambient": (0.60, 0.64, 0.70),
        "zenith": (0.27 + 0.1 * blue, 0.5 + 0.08 * blue, 0.86), "horizon": (0.72, 0.82, 0.92),
        "cloud": (0.97, 0.97, 0.98), "cover": choose.uniform(0.05, 0.5), "haze": choose.uniform(0.0006, 0.002),
    }  # fmt: skip


def _overcast(choose: Random) -> dict[str, Any]:
    gray = choose.uniform(0.72, 0.88)
    return {
        "direct": (0.1, 0.1, 0.1), "ambient": _gray(gray, 1.12, 1.13, 1.15), "zenith": _gray(gray, 0.98, 1.02, 1.08),
        "horizon": _gray(gray, 1.08, 1.09, 1.1), "cloud": _gray(gray, 0.82, 0.85, 0.9),
        "cover": choose.uniform(0.5, 0.8), "haze": choose.uniform(0.001, 0.004),
    }  # fmt: skip


def _rain(choose: Random) -> dict[str, Any]:
    gray = choose.uniform(0.5, 0.64)
    return {
        "direct": (0.02, 0.02, 0.02), "ambient": _gray(gray, 1.0, 1.02, 1.07), "zenith": _gray(gray, 0.72, 0.77, 0.84),
        "horizon": _gray(gray, 0.95, 1.0, 1.05), "cloud": _gray(gray, 0.6, 0.64, 0.7), "cover": 0.7,
        "haze": choose.uniform(0.005, 0.01), "lights": choose.uniform(0.3, 0.5), "dark": 0.22,
        "wet": choose.uniform(0.4, 0.62), "rain": choose.uniform(0.5, 1.0),
    }  # fmt: skip


def _fog(choose: Random) -> dict[str, Any]:
    gray = choose.uniform(0.66, 0.82)
    return {
        "direct": (0.02, 0.02, 0.02), "ambient": _gray(gray), "zenith": _gray(gray, 0.97, 0.98),
        "horizon": _gray(gray, 0.97, 0.98), "cloud": _gray(gray), "cover": 0.0, "haze": choose.uniform(0.015, 0.034),
        "lights": choose.uniform(0.1, 0.4), "dark": 0.12,
    }  # fmt: skip


def _dusk(choose: Random) -> dict[str, Any]:
    warm = choose.random()
    return {
        "direct": (0.62, 0.38, 0.18), "ambient": (0.46, 0.39, 0.43), "zenith": (0.2 + 0.1 * warm, 0.22, 0.42),
        "horizon": (0.98, 0.58 + 0.14 * warm, 0.32 + 0.1 * warm), "cloud": (0.72, 0.38, 0.36),
        "cover": choose.uniform(0.2, 0.6), "haze": choose.uniform(0.001, 0.004), "lights": choose.uniform(0.3, 0.6),
        "dark": 0.4, "noise": choose.uniform(2.0, 5.0),
    }  # fmt: skip


def _night(choose: Random) -> dict[str, Any]:
    glow = choose.random()
    return {
        "direct": (0.0, 0.0, 0.0), "ambient": (0.16, 0.16, 0.195), "zenith": (0.02, 0.025, 0.06),
        "horizon": (0.11 + 0.05 * glow, 0.1 + 0.03 * glow, 0.12), "cloud": (0.08, 0.07, 0.08), "cover": 0.4,
        "haze": choose.uniform(0.001, 0.004), "lights": choose.uniform(0.5, 0.85), "dark": 1.0,
        "noise": choose.uniform(3.0, 6.0), "wet": choose.choice((0.0, 0.0, 0.3)),
    }  # fmt: skip


VARIATIONS = {"clear": _clear, "overcast": _overcast, "rain": _rain, "fog": _fog, "dusk": _dusk, "night": _night}
