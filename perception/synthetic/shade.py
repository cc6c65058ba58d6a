"""Light and texture of visible surfaces."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic import texture
from perception.synthetic.light import Light
from perception.synthetic.mesh import Slot
from perception.synthetic.palette import GLOW_COLORS
from perception.synthetic.rasterize import VisibleFaces
from perception.synthetic.shadow import cast_shadows
from perception.synthetic.street_image import BUILDING, ROAD, SIDEWALK, SKY, TERRAIN, VEGETATION
from perception.synthetic.view import CameraView
from perception.synthetic.world import StreetObject, World


@dataclass(frozen=True, slots=True, eq=False)
class GBuffer:
    """Geometry of each pixel, arrays [H, W].

    Attributes:
        face_ids: index of the visible face.
        depth: metres along the optical axis.
        right: metres to the right of the camera.
        up: metres above the ground.
        ahead: metres ahead of the camera.
        is_ground: no face, bare ground.
        is_sky: no face, sky.
        rays: [3, H, W], from `CameraView.compute_rays`.
    """

    face_ids: NDArray[np.intp]
    depth: NDArray[np.float32]
    right: NDArray[np.float32]
    up: NDArray[np.float32]
    ahead: NDArray[np.float32]
    is_ground: NDArray[np.bool_]
    is_sky: NDArray[np.bool_]
    rays: NDArray[np.float32]

    @property
    def first_ground_row(self) -> int:
        """The topmost row with bare ground."""
        rows = np.flatnonzero(self.is_ground.any(axis=1))
        return int(rows[0]) if len(rows) else self.is_ground.shape[0] - 1


def shade_surfaces(
    world: World,
    view: CameraView,
    faces: VisibleFaces,
    objects: list[StreetObject],
    gbuffer: GBuffer,
    ground_colors: NDArray[np.uint8],
    labels: NDArray[np.uint8],
) -> NDArray[np.float32]:
    """Return the lit surfaces, before haze: float32 [H, W, 3]."""
    light, first = world.light, gbuffer.first_ground_row
    shadow = cast_shadows(world, view, objects, faces.positions)
    palette = _light_faces(faces, light, _sample_sunlight(shadow, view, faces))
    image = np.take(palette, gbuffer.face_ids, axis=0)
    sunny = np.array(light.sun_color) * max(light.sun_direction[1], 0.45)
    tone = world.ground_brightness / 255
    lit = [
        shadow[first:] * float((0.25 * a + s) * tone) + float(0.75 * a * tone)
        for a, s in zip(light.ambient_color, sunny, strict=True)
    ]
    lit = cv2.multiply(cv2.merge(lit), ground_colors, dtype=cv2.CV_32F)
    cv2.copyTo(lit, gbuffer.is_ground[first:].view(np.uint8), image[first:])
    gain = _compute_texture_gain(world, view, faces, gbuffer, labels)
    foot = gbuffer.up * np.float32(0.28)
    foot += np.float32(0.72)
    np.minimum(foot, 1, out=foot)
    foot[gbuffer.is_ground] = 1
    gain *= foot
    if light.darkness > 0:
        lamps = _compute_lamp_gain(view, gbuffer)
        lamps *= np.float32(light.darkness**2)
        lamps += 1
        gain *= lamps
        gain[np.take(_find_glowing(faces, light), gbuffer.face_ids)] = 1
    cv2.multiply(image, cv2.merge([gain, gain, gain]), dst=image)
    return image


def _sample_sunlight(shadow: NDArray[np.float32], view: CameraView, faces: VisibleFaces) -> NDArray[np.float64]:
    """Sunlight at the foot of each object, [T]."""
    seen = view.to_camera(faces.positions)
    pixels = view.project(np.where(seen[:, 2:] > 1, seen, (0, 0, 1))).astype(np.int64)
    inside = (pixels >= 0).all(1) & (pixels < view.size[::-1]).all(1) & (seen[:, 2] > 1)
    values = np.ones(len(faces.positions))
    values[inside] = shadow[pixels[inside, 1], pixels[inside, 0]]
    return values


def _light_faces(faces: VisibleFaces, light: Light, sunlight: NDArray[np.float64]) -> NDArray[np.float32]:
    """Color of each face under the light of the scene, [F + 1, 3]."""
    facing = np.clip(faces.normals @ light.sun_direction, 0, 1)
    above = 0.86 + 0.14 * faces.normals[:, 1]
    soft = faces.labels == VEGETATION
    facing[soft] = 0.55
    big = (faces.labels == BUILDING) | soft
    sun = facing * np.where(big, 1.0, 0.25 + 0.75 * sunlight[faces.object_indices])
    lit = above[:, None] * np.array(light.ambient_color) + sun[:, None] * np.array(light.sun_color)
    colours = faces.colors * faces.shades[:, None] * lit
    glass = (faces.slots == Slot.GLASS) | (faces.slots == Slot.WINDOW)
    colours[glass] += np.array(light.horizon_color) * 0.16 * faces.shades[glass, None]
    shining = _find_glowing(faces, light)
    colours[shining] = GLOW_COLORS[faces.slots[shining]] * np.clip(faces.shades[shining, None], 0.6, 1.1)
    return colours.astype(np.float32)


def _find_glowing(faces: VisibleFaces, light: Light) -> NDArray[np.bool_]:
    return faces.glow_thresholds < light.lit_fraction


def _compute_texture_gain(
    world: World, view: CameraView, faces: VisibleFaces, gbuffer: GBuffer, labels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Texture fixed to the surfaces, as a factor around 1. Its grain is about one pixel at every distance."""
    scale = np.ldexp(np.float32(view.camera.fx), -np.frexp(gbuffer.depth)[1])
    along = gbuffer.ahead + np.float32(view.along + world.texture_origin[0])
    across = gbuffer.right + np.float32(view.across + world.texture_origin[1])
    v: NDArray[np.float32] = np.where(gbuffer.is_ground, along, gbuffer.up)
    v *= scale
    np.copyto(along, 0, where=gbuffer.is_ground)
    across += along
    across *= scale
    index = v.astype(np.int32)
    index &= texture.TILE_SIZE - 1
    index <<= texture.TILE_SIZE.bit_length() - 1
    column = across.astype(np.int32)
    column &= texture.TILE_SIZE - 1
    index += column
    tile, strength = np.full(256, texture.GRAIN_OFFSET, np.int32), np.full(256, 0.02, np.float32)
    tile[VEGETATION] = texture.LEAVES_OFFSET
    strength[[ROAD, SIDEWALK, BUILDING, VEGETATION, TERRAIN, SKY]] = (0.055, 0.055, 0.045, 0.2, 0.16, 0.0)
    index += np.asarray(cv2.LUT(labels, tile), np.int32)
    gain: NDArray[np.float32] = texture.make_surface_tiles()[index]
    gain *= cv2.LUT(labels, strength)
    gain += 1
    return gain


def _compute_lamp_gain(view: CameraView, gbuffer: GBuffer) -> NDArray[np.float32]:
    """Light of own headlights and street lamps at night, relative to the ambient light."""
    beam = gbuffer.rays[0] * gbuffer.rays[0]
    beam *= -4
    beam -= gbuffer.depth * np.float32(1 / 20)
    np.exp(beam, out=beam)
    beam *= np.clip(gbuffer.up * np.float32(-1.7) + 8, 0.8, 6.0)
    street = gbuffer.up * np.float32(0.2)
    street *= street
    street += 1
    np.divide(np.cos(gbuffer.ahead * np.float32(0.22)) * np.float32(0.5) + np.float32(1.9), street, out=street)
    beam += street
    return beam
