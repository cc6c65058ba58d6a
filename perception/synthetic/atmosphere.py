"""Sky, haze and fog, wet roads, glowing lamps, rain, and camera effects."""

from __future__ import annotations

from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic import texture
from perception.synthetic.light import Light
from perception.synthetic.mesh import Slot
from perception.synthetic.rasterize import VisibleFaces
from perception.synthetic.street_image import ROAD, SIDEWALK
from perception.synthetic.view import CameraView


def add_sky(
    image: NDArray[np.float32],
    light: Light,
    rays: NDArray[np.float32],
    mask: NDArray[np.bool_],
    texture_origin: tuple[float, float],
) -> None:
    """Paint the sky where ``mask`` is True. It is smooth, so it is computed at half resolution."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return
    last = min(len(mask), (int(rows[-1]) + 2) // 2 * 2)
    right, down, ahead = np.ascontiguousarray(rays[:, :last:2, ::2])
    up = np.maximum(-down, 0)
    rise = np.sqrt(np.minimum(up * np.float32(2.2), 1))
    cover = glare = None
    cloud = np.zeros((), np.float32)
    if light.cloud_cover > 0:
        flat = np.float32(26) / (up + np.float32(0.1))
        u, v = (
            (right * flat + np.float32(texture_origin[0])).astype(np.int32) & 511,
            (ahead * flat + np.float32(texture_origin[1])).astype(np.int32) & 511,
        )
        cloud = np.take(texture.make_cloud_tile(), (v << 9) + u)
        cover = np.clip((cloud + np.float32(light.cloud_cover - 1)) * 4, 0, 1) * np.minimum(up * 9, 1) * np.float32(0.9)
        cloud = cloud * np.float32(0.16) + np.float32(0.92)
    if max(light.sun_color) > 0.3:
        norm = right * right + down * down + ahead * ahead
        towards = (
            right * np.float32(light.sun_direction[0])
            - down * np.float32(light.sun_direction[1])
            + ahead * np.float32(light.sun_direction[2])
        )
        glare = np.maximum(towards, 0) ** 2 / norm
        glare = glare**12 * np.float32(0.7)
    channels = []
    for low, high, white, sun in zip(
        light.horizon_color, light.zenith_color, light.cloud_color, light.sun_color, strict=True
    ):
        channel = rise * np.float32(high - low) + np.float32(low)
        if cover is not None:
            channel += cover * (cloud * np.float32(white) - channel)
        if glare is not None:
            channel += glare * np.float32(sun)
        channels.append(channel)
    sky = cv2.resize(cv2.merge(channels), (image.shape[1], last), interpolation=cv2.INTER_LINEAR)
    cv2.copyTo(sky, mask[:last].view(np.uint8), image[:last])


def add_haze(
    image: NDArray[np.float32],
    light: Light,
    depth: NDArray[np.float32],
    sky: NDArray[np.bool_],
    labels: NDArray[np.uint8],
) -> None:
    """Add reflections on a wet road, then haze in front of everything except the sky."""
    if light.wetness > 0:
        _add_reflections(image, light, labels)
    clear = np.exp(depth * np.float32(-light.haze))
    clear[sky] = 1
    cv2.multiply(image, cv2.merge([clear, clear, clear]), dst=image)
    np.subtract(1, clear, out=clear)
    cv2.add(image, cv2.merge([clear * np.float32(part) for part in light.horizon_color]), dst=image)


def _add_reflections(image: NDArray[np.float32], light: Light, labels: NDArray[np.uint8]) -> None:
    """Blend in the image mirrored at the horizon and blurred downwards."""
    height = image.shape[0]
    paved = (labels == ROAD) | (labels == SIDEWALK)
    rows = np.flatnonzero(paved.any(1))
    if not len(rows):
        return
    first = int(rows[0])
    source = np.clip(2 * first - np.arange(first, height), 0, first)
    mirror = cv2.blur(image[source], (5, 15))
    fade = np.linspace(0.8, 0.45, height - first, dtype=np.float32) * np.float32(light.wetness)
    share = paved[first:] * fade[:, None]
    share = cv2.merge([share, share, share])
    cv2.multiply(mirror, share, dst=mirror)
    cv2.multiply(image[first:], 1 - share, dst=image[first:])
    image[first:] += mirror


HALO_STRENGTHS = {
    Slot.HEADLIGHT: 3.0,
    Slot.TAILLIGHT: 1.2,
    Slot.LAMP: 3.0,
    Slot.RED: 1.2,
    Slot.AMBER: 1.2,
    Slot.GREEN: 1.2,
    Slot.WINDOW: 0.08,
}
"""Strength of the halo around light sources."""


def add_glow(
    image: NDArray[np.float32], light: Light, view: CameraView, faces: VisibleFaces, face_ids: NDArray[np.intp]
) -> None:
    """Add halos around light sources, strong in the dark."""
    if light.darkness <= 0:
        return
    strength = np.zeros(len(faces.labels), np.float32)
    for slot, power in HALO_STRENGTHS.items():
        strength[faces.slots == slot] = power
    strength[faces.glow_thresholds >= light.lit_fraction] = 0
    power = np.take(strength, face_ids)
    source = cv2.multiply(image, cv2.merge([power, power, power]))
    height, width = view.size
    small = cv2.resize(source, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    halo = cv2.GaussianBlur(small, (0, 0), 1.3) * np.float32(0.9 * light.darkness) + cv2.GaussianBlur(
        small, (0, 0), 5.0
    ) * np.float32(1.6 * light.darkness)
    image += cv2.resize(halo, (width, height), interpolation=cv2.INTER_LINEAR)


def apply_camera_effects(image: NDArray[np.float32], light: Light, rng: Random) -> NDArray[np.uint8]:
    """Add rain, lens and sensor effects: float32 [H, W, 3] in 0-1 to uint8."""
    size = image.shape[0], image.shape[1]
    if light.rain_strength > 0:
        streaks = _crop_tile(texture.make_rain_tile(), size, rng) * np.float32(0.22 * light.rain_strength)
        cv2.add(image, cv2.merge([streaks, streaks, streaks]), dst=image)
    cv2.GaussianBlur(image, (3, 3), 0.55 if light.rain_strength == 0 else 0.75, dst=image)
    lens = texture.make_vignette(size)
    cv2.multiply(image, cv2.merge([lens * np.float32(255 * light.exposure * part) for part in light.tint]), dst=image)
    noise = _crop_tile(texture.make_sensor_noise(), size, rng)
    return cv2.addWeighted(image, 1.0, noise, light.noise, 0.0, dtype=cv2.CV_8U)  # type: ignore[return-value]


def _crop_tile(tile: NDArray[np.float32], size: tuple[int, int], rng: Random) -> NDArray[np.float32]:
    """Random crop of ``size`` from a repeating tile."""
    (height, width), (y, x) = size, (rng.randrange(tile.shape[0] // 2), rng.randrange(tile.shape[1] // 2))
    if y + height <= tile.shape[0] and x + width <= tile.shape[1]:
        return tile[y : y + height, x : x + width]
    return np.take(np.take(tile, np.arange(y, y + height), 0, mode="wrap"), np.arange(x, x + width), 1, mode="wrap")
