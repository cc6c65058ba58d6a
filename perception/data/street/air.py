"""Sky, haze and fog, wet roads, glowing lamps, rain, and the camera's own marks."""

from __future__ import annotations

from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.data.street import texture
from perception.data.street.light import Light
from perception.data.street.mesh import Slot
from perception.data.street.paint import Faces
from perception.data.street.picture import ROAD, SIDEWALK
from perception.data.street.view import View


def add_sky(light: Light, rays: NDArray[np.float32], origin: tuple[float, float]) -> NDArray[np.float32]:
    """The sky's colour in every direction, float32 [H, W, 3], at half resolution and enlarged (it is smooth)."""
    height, width = rays.shape[1:]
    right, down, ahead = (rays[k, ::2, ::2] for k in range(3))
    up = np.maximum(-down, 0)
    rise = np.sqrt(np.clip(up * 2.2, 0, 1))
    sky = np.array(light.horizon, np.float32) + rise[:, :, None] * (np.array(light.zenith, np.float32) - np.array(light.horizon, np.float32))
    if light.cover > 0:
        flat = 26 / (up + 0.1)
        u, v = (right * flat + origin[0]).astype(np.int64) & 511, (ahead * flat + origin[1]).astype(np.int64) & 511
        cloud = texture.clouds()[v, u]
        cover = np.clip((cloud - (1 - light.cover)) * 4.0, 0, 1) * np.clip(up * 9, 0, 1) * 0.9
        sky += cover[:, :, None] * (np.array(light.cloud, np.float32) * (0.92 + 0.16 * cloud[:, :, None]) - sky)
    if max(light.direct) > 0.3:
        norm = 1 / np.sqrt(right * right + down * down + ahead * ahead)
        near = np.clip((right * light.sun[0] - down * light.sun[1] + ahead * light.sun[2]) * norm, 0, 1) ** 24
        sky += near[:, :, None] * np.array(light.direct, np.float32) * 0.7
    return cv2.resize(sky.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def through_air(image: NDArray[np.float32], light: Light, depth: NDArray[np.float32], sky_mask: NDArray[np.bool_], sky: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Sky, then the mirror of a wet road, then haze between the camera and everything."""
    np.copyto(image, sky, where=sky_mask[:, :, None])
    if light.wet > 0:
        _wet(image, light, sky_mask, labels)
    clear = np.exp(depth * np.float32(-light.haze))
    clear[sky_mask] = 1
    image *= clear[:, :, None]
    image += (1 - clear)[:, :, None] * np.array(light.horizon, np.float32)
    return image


def _wet(image: NDArray[np.float32], light: Light, sky_mask: NDArray[np.bool_], labels: NDArray[np.uint8]) -> None:
    """Mix in the picture mirrored about the horizon, smeared downwards."""
    height = image.shape[0]
    paved = (labels == ROAD) | (labels == SIDEWALK)
    rows = np.flatnonzero(paved.any(1))
    if not len(rows):
        return
    first = int(rows[0])
    source = np.clip(2 * first - np.arange(first, height), 0, first)
    mirror = cv2.blur(image[source], (5, 15))
    share = light.wet * np.linspace(1.0, 0.55, height - first, dtype=np.float32)[:, None] * paved[first:]
    image[first:] *= (1 - 0.8 * share)[:, :, None]
    image[first:] += mirror * (0.8 * share)[:, :, None]


def glow(image: NDArray[np.float32], light: Light, view: View, faces: Faces, ids: NDArray[np.intp], depth: NDArray[np.float32]) -> None:
    """Halos around what shines, strong in the dark."""
    if light.dark <= 0:
        return
    strength = np.zeros(len(faces.labels), np.float32)
    for slot, power in ((Slot.HEADLIGHT, 3.0), (Slot.TAILLIGHT, 1.2), (Slot.LAMP, 3.0), (Slot.RED, 1.2), (Slot.AMBER, 1.2), (Slot.GREEN, 1.2), (Slot.WINDOW, 0.08)):
        strength[faces.slots == slot] = power
    strength[faces.glows >= light.lights] = 0
    source = image * strength[ids][:, :, None]
    height, width = view.size
    small = cv2.resize(source, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    halo = cv2.GaussianBlur(small, (0, 0), 1.3) * 0.9 + cv2.GaussianBlur(small, (0, 0), 5.0) * 1.6
    image += cv2.resize(halo, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(light.dark)


def develop(image: NDArray[np.float32], light: Light, choose: Random) -> NDArray[np.uint8]:
    """Rain, lens, sensor: float32 [H, W, 3] in 0-1 to uint8."""
    height, width = image.shape[:2]
    if light.rain > 0:
        tile, (y, x) = texture.rain(), (choose.randrange(2 * texture.SIDE - height % (2 * texture.SIDE)), choose.randrange(2 * texture.SIDE - width % (2 * texture.SIDE)))
        streaks = np.take(np.take(tile, np.arange(y, y + height), 0, mode="wrap"), np.arange(x, x + width), 1, mode="wrap")
        image += (streaks * np.float32(0.22 * light.rain))[:, :, None]
    image = cv2.GaussianBlur(image, (3, 3), 0.55 if light.rain == 0 else 0.75)
    image *= texture.vignette((height, width))[:, :, None] * (np.array(light.tint, np.float32) * np.float32(255 * light.exposure))
    noise = texture.sensor()
    y, x = choose.randrange(noise.shape[0]), choose.randrange(noise.shape[1])
    if y + height <= noise.shape[0] and x + width <= noise.shape[1]:
        window = noise[y : y + height, x : x + width]
    else:
        window = np.take(np.take(noise, np.arange(y, y + height), 0, mode="wrap"), np.arange(x, x + width), 1, mode="wrap")
    image += window * np.float32(light.noise)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)
