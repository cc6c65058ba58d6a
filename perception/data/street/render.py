"""A street as seen by a camera, with every label."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.data.street import texture
from perception.data.street.air import add_sky, develop, glow, through_air
from perception.data.street.ground import BIN, BINS, LEVELS, REACH, ZONES, zones_along
from perception.data.street.light import Light
from perception.data.street.mesh import Slot
from perception.data.street.paint import Faces, paint
from perception.data.street.picture import (
    BUILDING,
    FARTHEST,
    POLE,
    ROAD,
    SIDEWALK,
    SKY,
    SMALLEST_SIDE,
    SMALLEST_VISIBLE,
    TERRAIN,
    VEGETATION,
    VERSION,
    StreetPicture,
)  # fmt: skip
from perception.data.street.sample import sample_world
from perception.data.street.shadow import cast_shadows
from perception.data.street.view import View, sample_view
from perception.data.street.world import HORIZON, Thing, World

SHINE = np.array([
    (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (1.0, 0.97, 0.88), (1.0, 0.13, 0.1), (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0),
    (1.0, 0.16, 0.13), (1.0, 0.72, 0.12), (0.25, 1.0, 0.55), (0.98, 0.8, 0.48), (1.0, 0.9, 0.66),
])  # fmt: skip
"""Colour of each palette slot when it shines by itself."""


def render(seed: int, index: int, size: tuple[int, int] = (256, 512)) -> StreetPicture:
    """Picture ``index`` of the collection ``seed``, of ``size`` (height, width): a function of its arguments alone."""
    choose = Random(f"street {VERSION} {seed} {index}")
    world = sample_world(choose)
    view = sample_view(choose, size, world.road.own)
    return picture(world, view, choose)


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """What is seen at every pixel: ``ids`` (intp) into the faces, depth, points (right, up, ahead), ``below`` the horizon."""

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
        rows = self.ground.any(1)
        return int(rows.argmax()) if rows.any() else len(rows) - 1


def picture(world: World, view: View, choose: Random) -> StreetPicture:
    """The street from one place. ``choose`` draws what the camera adds (noise, drops)."""
    faces, things = paint(world, view)
    surface = _surface(faces, view)
    labels = np.take(faces.labels, surface.ids)
    ground_colours = _ground(world, view, surface, labels)
    labels[surface.sky] = SKY
    image = _shade(world, view, faces, things, surface, ground_colours, labels)
    add_sky(image, world.light, surface.rays, surface.sky, world.origin)
    through_air(image, world.light, surface.depth, surface.sky, labels)
    glow(image, world.light, view, faces, surface.ids)
    depth = np.where(surface.sky | (surface.depth > FARTHEST), np.float32(0), surface.depth)
    instances = _instances(faces, things, surface.ids)
    image = develop(image, world.light, choose)
    return StreetPicture(
        image, labels, *instances, depth, view.camera, view.height, view.pitch, view.roll, world.light.scene
    )


def _surface(faces: Faces, view: View) -> Surface:
    height, width = view.size
    rays = view.rays()
    ids = faces.ids.astype(np.intp)
    x, y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
    a, b, c = (np.take(np.ascontiguousarray(faces.planes[:, k]), ids) for k in range(3))
    a *= x
    b *= y
    inverse = a + b
    inverse += c
    inverse = np.minimum(inverse, np.take(faces.near, ids), out=inverse)
    inverse = np.maximum(inverse, np.take(faces.far, ids), out=inverse)
    bare = faces.ids == 0
    sky = bare & (rays[1] <= view.height / 400)
    np.copyto(inverse, rays[1] * np.float32(1 / view.height), where=bare)
    inverse[sky] = 1 / 2000
    depth = 1 / inverse
    right, up, ahead = rays * depth
    np.subtract(np.float32(view.height), up, out=up)
    return Surface(ids, depth, right, up, ahead, bare ^ sky, sky, rays)


def _ground(world: World, view: View, surface: Surface, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours [H - first, W, 3] of the bare ground in the rows from the horizon on; writes its labels into ``labels``."""
    first = surface.first
    right, ahead, ground = surface.right[first:], surface.ahead[first:], surface.ground[first:]
    across = ahead * ahead
    across *= np.float32(-0.5 * world.curvature / BIN)
    across += right * np.float32(1 / BIN)
    across += np.float32((view.across + REACH) / BIN)
    column = np.clip(across, 0, BINS - 1, out=across).astype(np.intp)
    zones = zones_along(world.road, world.crossings, view.along, HORIZON + 20) * BINS
    zone = np.take(zones, (ahead * np.float32(10)).astype(np.intp), mode="clip")
    footprint = view.height / np.maximum(np.median(surface.rays[1, first:, ::8], axis=1), 1e-3) / view.camera.fx / BIN
    level = np.clip(np.frexp(footprint)[1], 0, LEVELS - 1).astype(np.intp) * (ZONES * BINS)
    column += zone
    np.copyto(labels[first:], np.take(world.road.labels, column), where=ground)
    column += level[:, None]
    return np.take(world.road.colours.reshape(-1, 3), column, axis=0)


def _shade(
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
    return cv2.multiply(image, cv2.merge([gain, gain, gain]), dst=image)


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
    v = np.where(surface.ground, along, surface.up)
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
    index += cv2.LUT(labels, tile)
    gain = np.take(texture.surfaces(), index)
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


def _instances(
    faces: Faces, things: list[Thing], ids: NDArray[np.intp]
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray, NDArray]:
    """(instances map, boxes, labels, areas, ignore, identities): the things with a class whose pixels are seen."""
    boxed = np.array([thing.kind >= 0 for thing in things] + [False])
    owners = np.where(boxed[faces.things], faces.things + 1, 0).astype(np.uint16)
    # A lamp post that carries a sign is a pole: only plates and heads are boxed, so the label decides too.
    owners[faces.labels == POLE] = 0
    seen = np.take(owners, ids)
    areas = np.bincount(seen.ravel(), minlength=len(things) + 1)
    kept = np.flatnonzero(areas[1:]) + 1
    boxes, renumber = [], np.zeros(len(things) + 1, np.uint16)
    for row, number in enumerate(kept.tolist()):
        x1, y1, x2, y2 = faces.bounds[number - 1].tolist()
        x, y, width, height = cv2.boundingRect(cv2.inRange(seen[y1:y2, x1:x2], number, number))  # type: ignore[call-overload]
        boxes.append((x1 + x, y1 + y, x1 + x + width, y1 + y + height))
        renumber[number] = row + 1
    box = np.array(boxes, np.float32).reshape(-1, 4)
    area = areas[kept]
    sides = (box[:, 2:] - box[:, :2]).min(1) if len(box) else np.zeros(0)
    hidden = area < SMALLEST_VISIBLE * faces.drawn[kept - 1]
    kinds = np.array([things[number - 1].kind for number in kept], np.int64)
    identities = np.array([things[number - 1].identity for number in kept], np.int64)
    return np.take(renumber, seen), box, kinds, area.astype(np.int64), (sides < SMALLEST_SIDE) | hidden, identities
