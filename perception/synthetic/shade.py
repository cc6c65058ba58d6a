"""Light and texture on what is seen."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic import texture
from perception.synthetic.canvas import BUILDING, ROAD, SIDEWALK, SKY, TERRAIN, VEGETATION
from perception.synthetic.light import Light
from perception.synthetic.mesh import Slot
from perception.synthetic.palette import SHINE
from perception.synthetic.rasterize import Faces
from perception.synthetic.shadow import cast_shadows
from perception.synthetic.view import View
from perception.synthetic.world import Thing, World


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """What is seen at every pixel [H, W].

    ids: the face; ``depth`` metres along the optical axis; ``right`` of the camera, ``up`` from the ground, ``ahead``
    ground, sky: where no face is; ``rays`` [3, H, W] of `View.rays`
    """

    ids: NDArray[np.intp]
    depth: NDArray[np.float32]
    right: NDArray[np.float32]
    up: NDArray[np.float32]
    ahead: NDArray[np.float32]
    ground: NDArray[np.bool_]
    sky: NDArray[np.bool_]
    rays: NDArray[np.float32]

    @property
    def first(self) -> int:
        """The topmost row with bare ground."""
        rows = np.flatnonzero(self.ground.any(axis=1))
        return int(rows[0]) if len(rows) else self.ground.shape[0] - 1


def shade(
    world: World,
    view: View,
    faces: Faces,
    things: list[Thing],
    surface: Surface,
    ground: NDArray[np.uint8],
    labels: NDArray[np.uint8],
) -> NDArray[np.float32]:
    """The lit surfaces without air between: float32 [H, W, 3]."""
    light, first = world.light, surface.first
    shadow = cast_shadows(world, view, things, faces.spots)
    palette = _lit(faces, light, _sunlit(shadow, view, faces))
    image = np.take(palette, surface.ids, axis=0)
    sunny = np.array(light.direct) * max(light.sun[1], 0.45)
    tone = world.tone / 255
    lit = [
        shadow[first:] * float((0.25 * a + s) * tone) + float(0.75 * a * tone)
        for a, s in zip(light.ambient, sunny, strict=True)
    ]
    lit = cv2.multiply(cv2.merge(lit), ground, dtype=cv2.CV_32F)
    cv2.copyTo(lit, surface.ground[first:].view(np.uint8), image[first:])
    gain = _grain(world, view, faces, surface, labels)
    foot = surface.up * np.float32(0.28)
    foot += np.float32(0.72)
    np.minimum(foot, 1, out=foot)
    foot[surface.ground] = 1
    gain *= foot
    if light.dark > 0:
        lamps = _lamplight(view, surface)
        lamps *= np.float32(light.dark**2)
        lamps += 1
        gain *= lamps
        gain[np.take(_shining(faces, light), surface.ids)] = 1
    cv2.multiply(image, cv2.merge([gain, gain, gain]), dst=image)
    return image


def _sunlit(shadow: NDArray[np.float32], view: View, faces: Faces) -> NDArray[np.float64]:
    """How much sun reaches each thing's foot, [T]."""
    seen = view.to_camera(faces.spots)
    pixels = view.project(np.where(seen[:, 2:] > 1, seen, (0, 0, 1))).astype(np.int64)
    inside = (pixels >= 0).all(1) & (pixels < view.size[::-1]).all(1) & (seen[:, 2] > 1)
    values = np.ones(len(faces.spots))
    values[inside] = shadow[pixels[inside, 1], pixels[inside, 0]]
    return values


def _lit(faces: Faces, light: Light, sunlit: NDArray[np.float64]) -> NDArray[np.float32]:
    """Colour of every face under the scene's light, [F + 1, 3]."""
    facing = np.clip(faces.normals @ light.sun, 0, 1)
    above = 0.86 + 0.14 * faces.normals[:, 1]
    soft = faces.labels == VEGETATION
    facing[soft] = 0.55
    big = (faces.labels == BUILDING) | soft
    sun = facing * np.where(big, 1.0, 0.25 + 0.75 * sunlit[faces.things])
    lit = above[:, None] * np.array(light.ambient) + sun[:, None] * np.array(light.direct)
    colours = faces.colours * faces.shades[:, None] * lit
    glass = (faces.slots == Slot.GLASS) | (faces.slots == Slot.WINDOW)
    colours[glass] += np.array(light.horizon) * 0.16 * faces.shades[glass, None]
    shining = _shining(faces, light)
    colours[shining] = SHINE[faces.slots[shining]] * np.clip(faces.shades[shining, None], 0.6, 1.1)
    return colours.astype(np.float32)


def _shining(faces: Faces, light: Light) -> NDArray[np.bool_]:
    return faces.glows < light.lights


def _grain(world: World, view: View, faces: Faces, surface: Surface, labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Texture that sticks to the surfaces, as a factor around 1. Its grain stays near one pixel at every distance."""
    scale = np.ldexp(np.float32(view.camera.fx), -np.frexp(surface.depth)[1])
    along = surface.ahead + np.float32(view.along + world.origin[0])
    across = surface.right + np.float32(view.across + world.origin[1])
    v: NDArray[np.float32] = np.where(surface.ground, along, surface.up)
    v *= scale
    np.copyto(along, 0, where=surface.ground)
    across += along
    across *= scale
    index = v.astype(np.int32)
    index &= texture.SIDE - 1
    index <<= texture.SIDE.bit_length() - 1
    column = across.astype(np.int32)
    column &= texture.SIDE - 1
    index += column
    tile, strength = np.full(256, texture.GRAIN, np.int32), np.full(256, 0.02, np.float32)
    tile[VEGETATION] = texture.LEAVES
    strength[[ROAD, SIDEWALK, BUILDING, VEGETATION, TERRAIN, SKY]] = (0.055, 0.055, 0.045, 0.2, 0.16, 0.0)
    index += np.asarray(cv2.LUT(labels, tile), np.int32)
    gain: NDArray[np.float32] = texture.surfaces()[index]
    gain *= cv2.LUT(labels, strength)
    gain += 1
    return gain


def _lamplight(view: View, surface: Surface) -> NDArray[np.float32]:
    """What our headlights and the street lamps add at night, against the ambient light."""
    beam = surface.rays[0] * surface.rays[0]
    beam *= -4
    beam -= surface.depth * np.float32(1 / 20)
    np.exp(beam, out=beam)
    beam *= np.clip(surface.up * np.float32(-1.7) + 8, 0.8, 6.0)
    street = surface.up * np.float32(0.2)
    street *= street
    street += 1
    np.divide(np.cos(surface.ahead * np.float32(0.22)) * np.float32(0.5) + np.float32(1.9), street, out=street)
    beam += street
    return beam
