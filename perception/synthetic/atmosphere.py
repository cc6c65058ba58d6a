"""Sky, haze and fog, wet roads, glowing lamps, rain, and the camera's own marks."""

from __future__ import annotations

from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic import texture
from perception.synthetic.canvas import ROAD, SIDEWALK
from perception.synthetic.light import Light
from perception.synthetic.mesh import Slot
from perception.synthetic.rasterize import Faces
from perception.synthetic.view import View


def add_sky(
    image: NDArray[np.float32],
    light: Light,
    rays: NDArray[np.float32],
    mask: NDArray[np.bool_],
    origin: tuple[float, float],
) -> None:
    """Paint the sky where ``mask`` is set; worked out at half resolution, for it is smooth."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return
    last = min(len(mask), (int(rows[-1]) + 2) // 2 * 2)
    right, down, ahead = np.ascontiguousarray(rays[:, :last:2, ::2])
    up = np.maximum(-down, 0)
    rise = np.sqrt(np.minimum(up * np.float32(2.2), 1))
    cover = glare = None
    if light.cover > 0:
        flat = np.float32(26) / (up + np.float32(0.1))
        u, v = (
            (right * flat + np.float32(origin[0])).astype(np.int32) & 511,
            (ahead * flat + np.float32(origin[1])).astype(np.int32) & 511,
        )
        cloud = np.take(texture.clouds(), (v << 9) + u)
        cover = np.clip((cloud + np.float32(light.cover - 1)) * 4, 0, 1) * np.minimum(up * 9, 1) * np.float32(0.9)
        cloud = cloud * np.float32(0.16) + np.float32(0.92)
    if max(light.direct) > 0.3:
        norm = right * right + down * down + ahead * ahead
        towards = right * np.float32(light.sun[0]) - down * np.float32(light.sun[1]) + ahead * np.float32(light.sun[2])
        glare = np.maximum(towards, 0) ** 2 / norm
        glare = glare**12 * np.float32(0.7)
    channels = []
    for low, high, white, sun in zip(light.horizon, light.zenith, light.cloud, light.direct, strict=True):
        channel = rise * np.float32(high - low) + np.float32(low)
        if cover is not None:
            channel += cover * (cloud * np.float32(white) - channel)
        if glare is not None:
            channel += glare * np.float32(sun)
        channels.append(channel)
    sky = cv2.resize(cv2.merge(channels), (image.shape[1], last), interpolation=cv2.INTER_LINEAR)
    cv2.copyTo(sky, mask[:last].view(np.uint8), image[:last])


def through_air(
    image: NDArray[np.float32],
    light: Light,
    depth: NDArray[np.float32],
    sky: NDArray[np.bool_],
    labels: NDArray[np.uint8],
) -> None:
    """The mirror of a wet road, then haze between the camera and everything but the sky."""
    if light.wet > 0:
        _wet(image, light, labels)
    clear = np.exp(depth * np.float32(-light.haze))
    clear[sky] = 1
    cv2.multiply(image, cv2.merge([clear, clear, clear]), dst=image)
    np.subtract(1, clear, out=clear)
    cv2.add(image, cv2.merge([clear * np.float32(part) for part in light.horizon]), dst=image)


def _wet(image: NDArray[np.float32], light: Light, labels: NDArray[np.uint8]) -> None:
    """Mix in the picture mirrored about the horizon, smeared downwards."""
    height = image.shape[0]
    paved = (labels == ROAD) | (labels == SIDEWALK)
    rows = np.flatnonzero(paved.any(1))
    if not len(rows):
        return
    first = int(rows[0])
    source = np.clip(2 * first - np.arange(first, height), 0, first)
    mirror = cv2.blur(image[source], (5, 15))
    fade = np.linspace(0.8, 0.45, height - first, dtype=np.float32) * np.float32(light.wet)
    share = paved[first:] * fade[:, None]
    share = cv2.merge([share, share, share])
    cv2.multiply(mirror, share, dst=mirror)
    cv2.multiply(image[first:], 1 - share, dst=image[first:])
    image[first:] += mirror


POWER = {
    Slot.HEADLIGHT: 3.0,
    Slot.TAILLIGHT: 1.2,
    Slot.LAMP: 3.0,
    Slot.RED: 1.2,
    Slot.AMBER: 1.2,
    Slot.GREEN: 1.2,
    Slot.WINDOW: 0.08,
}
"""How strong the halo is around what shines."""


def glow(image: NDArray[np.float32], light: Light, view: View, faces: Faces, ids: NDArray[np.intp]) -> None:
    """Halos around what shines, strong in the dark."""
    if light.dark <= 0:
        return
    strength = np.zeros(len(faces.labels), np.float32)
    for slot, power in POWER.items():
        strength[faces.slots == slot] = power
    strength[faces.glows >= light.lights] = 0
    power = np.take(strength, ids)
    source = cv2.multiply(image, cv2.merge([power, power, power]))
    height, width = view.size
    small = cv2.resize(source, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    halo = cv2.GaussianBlur(small, (0, 0), 1.3) * np.float32(0.9 * light.dark) + cv2.GaussianBlur(
        small, (0, 0), 5.0
    ) * np.float32(1.6 * light.dark)
    image += cv2.resize(halo, (width, height), interpolation=cv2.INTER_LINEAR)


def develop(image: NDArray[np.float32], light: Light, choose: Random) -> NDArray[np.uint8]:
    """Rain, lens, sensor: float32 [H, W, 3] in 0-1 to uint8."""
    size = image.shape[0], image.shape[1]
    if light.rain > 0:
        streaks = _window(texture.rain(), size, choose) * np.float32(0.22 * light.rain)
        cv2.add(image, cv2.merge([streaks, streaks, streaks]), dst=image)
    cv2.GaussianBlur(image, (3, 3), 0.55 if light.rain == 0 else 0.75, dst=image)
    lens = texture.vignette(size)
    cv2.multiply(image, cv2.merge([lens * np.float32(255 * light.exposure * part) for part in light.tint]), dst=image)
    noise = _window(texture.sensor(), size, choose)
    return cv2.addWeighted(image, 1.0, noise, light.noise, 0.0, dtype=cv2.CV_8U)  # type: ignore[return-value]


def _window(tile: NDArray[np.float32], size: tuple[int, int], choose: Random) -> NDArray[np.float32]:
    """A random cut of ``size`` out of a tile that repeats."""
    (height, width), (y, x) = size, (choose.randrange(tile.shape[0] // 2), choose.randrange(tile.shape[1] // 2))
    if y + height <= tile.shape[0] and x + width <= tile.shape[1]:
        return tile[y : y + height, x : x + width]
    return np.take(np.take(tile, np.arange(y, y + height), 0, mode="wrap"), np.arange(x, x + width), 1, mode="wrap")
