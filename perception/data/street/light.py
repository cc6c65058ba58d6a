"""Weather and time of day: what shines, from where, and what hangs in the air."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

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
    lights: float
    dark: float
    wet: float
    rain: float
    noise: float
    exposure: float
    tint: Colour


def sample_light(scene: str, choose: Random) -> Light:
    """The light of one of the scenes, with its own variation."""
    between = choose.uniform
    azimuth = between(-math.pi, math.pi)
    elevation = {"clear": between(0.45, 1.1), "dusk": between(0.1, 0.25)}.get(scene, 0.9)
    sun = np.array(
        [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)]
    )
    common = {
        "scene": scene, "sun": sun, "exposure": between(0.86, 1.14),
        "tint": (between(0.97, 1.03), 1.0, between(0.97, 1.03)), "rain": 0.0, "wet": 0.0, "lights": 0.0, "dark": 0.0, "noise": between(1.0, 3.0),
    }  # fmt: skip
    match scene:
        case "clear":
            strength, blue = between(0.65, 0.9), between(0.0, 1.0)
            special = {
                "direct": (strength, strength * 0.94, strength * 0.82), "ambient": (0.60, 0.64, 0.70), "zenith": (0.27 + 0.1 * blue, 0.5 + 0.08 * blue, 0.86),
                "horizon": (0.72, 0.82, 0.92), "cloud": (0.97, 0.97, 0.98), "cover": between(0.05, 0.5), "haze": between(0.0006, 0.002),
            }  # fmt: skip
        case "overcast":
            gray = between(0.72, 0.88)
            special = {
                "direct": (0.1, 0.1, 0.1), "ambient": (gray * 1.12, gray * 1.13, gray * 1.15), "zenith": (gray * 0.98, gray * 1.02, gray * 1.08),
                "horizon": (gray * 1.08, gray * 1.09, gray * 1.1), "cloud": (gray * 0.82, gray * 0.85, gray * 0.9), "cover": between(0.5, 0.8), "haze": between(0.001, 0.004),
            }  # fmt: skip
        case "rain":
            gray = between(0.5, 0.64)
            special = {
                "direct": (0.02, 0.02, 0.02), "ambient": (gray, gray * 1.02, gray * 1.07), "zenith": (gray * 0.72, gray * 0.77, gray * 0.84), "horizon": (gray * 0.95, gray, gray * 1.05),
                "cloud": (gray * 0.6, gray * 0.64, gray * 0.7), "cover": 0.7, "haze": between(0.005, 0.01), "lights": between(0.3, 0.5), "dark": 0.22, "wet": between(0.4, 0.62), "rain": between(0.5, 1.0),
            }  # fmt: skip
        case "fog":
            gray = between(0.66, 0.82)
            special = {
                "direct": (0.02, 0.02, 0.02), "ambient": (gray, gray, gray), "zenith": (gray * 0.97, gray * 0.98, gray), "horizon": (gray * 0.97, gray * 0.98, gray),
                "cloud": (gray, gray, gray), "cover": 0.0, "haze": between(0.022, 0.05), "lights": between(0.1, 0.4), "dark": 0.12,
            }  # fmt: skip
        case "dusk":
            warm = between(0.0, 1.0)
            special = {
                "direct": (0.62, 0.38, 0.18), "ambient": (0.46, 0.39, 0.43), "zenith": (0.20 + 0.1 * warm, 0.22, 0.42), "horizon": (0.98, 0.58 + 0.14 * warm, 0.32 + 0.1 * warm),
                "cloud": (0.72, 0.38, 0.36), "cover": between(0.2, 0.6), "haze": between(0.001, 0.004), "lights": between(0.3, 0.6), "dark": 0.4, "noise": between(2.0, 5.0),
            }  # fmt: skip
        case _:
            glow = between(0.0, 1.0)
            special = {
                "direct": (0.0, 0.0, 0.0), "ambient": (0.155, 0.155, 0.19), "zenith": (0.015, 0.02, 0.05), "horizon": (0.08 + 0.05 * glow, 0.07 + 0.03 * glow, 0.09), "cloud": (0.07, 0.06, 0.07),
                "cover": 0.4, "haze": between(0.001, 0.004), "lights": between(0.5, 0.85), "dark": 1.0, "noise": between(3.0, 6.0), "wet": choose.choice((0.0, 0.0, 0.3)),
            }  # fmt: skip
    return Light(**{**common, **special})
