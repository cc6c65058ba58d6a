"""A street as seen by a camera, with every label."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.data.street import texture
from perception.data.street.air import add_sky, develop, glow, through_air
from perception.data.street.ground import BIN, BINS, LEVELS, REACH, zones_along
from perception.data.street.light import Light
from perception.data.street.mesh import Slot
from perception.data.street.paint import Faces, paint
from perception.data.street.picture import (
    BUILDING, FARTHEST, SKY, SMALLEST_SIDE, SMALLEST_VISIBLE, TERRAIN, VEGETATION, VERSION, StreetPicture,
)  # fmt: skip
from perception.data.street.shadow import cast_shadows
from perception.data.street.view import View, sample_view
from perception.data.street.world import HORIZON, Thing, World, sample_world

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
    """What is seen at every pixel: ``ids`` (intp) into the faces, inverse depth, points (right, up, ahead), ``below`` the horizon."""

    ids: NDArray[np.intp]
    inverse: NDArray[np.float32]
    depth: NDArray[np.float32]
    right: NDArray[np.float32]
    up: NDArray[np.float32]
    ahead: NDArray[np.float32]
    ground: NDArray[np.bool_]
    sky: NDArray[np.bool_]
    rays: NDArray[np.float32]


def picture(world: World, view: View, choose: Random) -> StreetPicture:
    """The street from one place. ``choose`` draws what the camera adds (noise, drops)."""
    faces, things = paint(world, view)
    surface = _surface(faces, view)
    ground_colours, ground_labels, first = _ground(world, view, surface)
    labels = faces.labels[surface.ids]
    labels[first:] = np.where(surface.ground[first:], ground_labels, labels[first:])
    labels[surface.sky] = SKY
    image = _shade(world, view, faces, things, surface, ground_colours, first, labels)
    sky = add_sky(world.light, surface.rays, world.origin)
    image = through_air(image, world.light, surface.depth, surface.sky, sky, labels)
    glow(image, world.light, view, faces, surface.ids, surface.depth)
    depth = np.where((surface.depth <= FARTHEST) & ~surface.sky, surface.depth, np.float32(0))
    return StreetPicture(develop(image, world.light, choose), labels, *_instances(faces, things, surface.ids), depth, view.camera, view.height, view.pitch, view.roll, world.light.scene)


def _surface(faces: Faces, view: View) -> Surface:
    height, width = view.size
    rays = view.rays()
    ids = faces.ids.astype(np.intp)
    x, y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
    a, b, c = (np.ascontiguousarray(faces.planes[:, k]) for k in range(3))
    inverse = a[ids] * x
    inverse += b[ids] * y
    inverse += c[ids]
    inverse = np.clip(inverse, faces.far[ids], faces.near[ids], out=inverse)
    bare = faces.ids == 0
    down = rays[1]
    sky = bare & (down <= view.height / 400)
    ground = bare & ~sky
    np.copyto(inverse, down / np.float32(view.height), where=bare)
    inverse[sky] = 1 / 2000
    depth = 1 / inverse
    return Surface(ids, inverse, depth, rays[0] * depth, view.height - down * depth, rays[2] * depth, ground, sky, rays)


def _ground(world: World, view: View, surface: Surface) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    """Colours and labels of the bare ground in the rows from ``first`` on."""
    rows = np.flatnonzero(surface.ground.any(1))
    first = int(rows[0]) if len(rows) else view.size[0] - 1
    right, ahead = surface.right[first:], surface.ahead[first:]
    across = right - np.float32(0.5 * world.curvature) * ahead * ahead
    across += np.float32(view.across + REACH)
    across *= np.float32(1 / BIN)
    column = np.clip(across, 0, BINS - 1).astype(np.intp)
    zones = zones_along(world.road, world.crossings, view.along, HORIZON + 20)
    zone = zones[np.clip(ahead * 10, 0, len(zones) - 1).astype(np.intp)]
    footprint = surface.depth[first:] * np.float32(1 / view.camera.fx / BIN)
    level = np.clip(np.frexp(footprint)[1], 0, LEVELS - 1)
    flat = world.road.colours.reshape(-1, 3)
    colours = flat[(zone * LEVELS + level) * BINS + column]
    return colours, world.road.labels.ravel()[zone * BINS + column], first


def _shade(world: World, view: View, faces: Faces, things: list[Thing], surface: Surface, ground: NDArray[np.uint8], first: int, labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The lit surfaces without air between: float32 [H, W, 3]."""
    light = world.light
    shadow = cast_shadows(world, view, things, faces.spots)
    palette = _lit(faces, light, _sunlit(shadow, view, faces, light))
    image = palette[surface.ids]
    sunny = np.array(light.direct, np.float32) * np.float32(max(light.sun[1], 0.0))
    ambient = np.array(light.ambient, np.float32)
    lit = ambient + sunny if shadow is None else ambient * (0.75 + 0.25 * shadow[first:, :, None]) + sunny * shadow[first:, :, None]
    tone = np.float32(world.tone / 255)
    np.copyto(image[first:], ground * (lit * tone), where=surface.ground[first:, :, None])
    gain = _grain(world, view, faces, surface, labels)
    gain *= np.clip(0.72 + 0.28 * surface.up, None, 1.0) * ~surface.ground + surface.ground
    if light.dark > 0:
        gain *= 1 + light.dark * _lamplight(view, surface)
    shining = _shining(faces, light)
    gain[shining[surface.ids]] = 1
    return image * gain[:, :, None]


def _sunlit(shadow: NDArray[np.float32] | None, view: View, faces: Faces, light: Light) -> NDArray[np.float64]:
    """How much sun reaches each thing's foot, [T]."""
    if shadow is None:
        return np.ones(len(faces.spots))
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
    exponent = np.frexp(surface.depth)[1]
    scale = np.ldexp(np.float32(view.camera.fx), -exponent)
    origin = np.float32(view.along + world.origin[0]), np.float32(view.across + world.origin[1])
    along = surface.ahead + origin[0]
    across = surface.right + origin[1]
    u = np.where(surface.ground, across, across + along) * scale
    v = np.where(surface.ground, along, surface.up) * scale
    leafy = np.zeros(len(faces.labels), np.intp)
    leafy[faces.labels == VEGETATION] = texture.SIDE * texture.SIDE
    strength = np.zeros(256, np.float32)
    strength[:] = 0.02
    strength[[7, 8, BUILDING, VEGETATION, TERRAIN]] = (0.055, 0.055, 0.045, 0.2, 0.16)
    index = ((v.astype(np.int64) & (texture.SIDE - 1)) << 9) + (u.astype(np.int64) & (texture.SIDE - 1)) + leafy[surface.ids]
    return texture.surfaces()[index] * strength[labels] + 1


def _lamplight(view: View, surface: Surface) -> NDArray[np.float32]:
    """What our headlights and the street lamps add at night, against the ambient light."""
    spread = surface.rays[0] * surface.rays[0]
    ahead = 5.0 * np.exp(-surface.depth * np.float32(1 / 16)) * np.exp(spread * -4)
    street = 1.1 / (1 + np.square(surface.up * np.float32(0.28))) * (0.75 + 0.25 * np.cos(surface.ahead * 0.22))
    return ahead * np.clip(1.6 - 0.35 * surface.up, 0.15, 1.2) + street


def _instances(faces: Faces, things: list[Thing], ids: NDArray[np.intp]) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray, NDArray]:
    """(instances map, boxes, labels, areas, ignore, identities): the things with a class whose pixels are seen."""
    boxed = np.array([thing.kind >= 0 for thing in things] + [False])
    owners = np.where(boxed[faces.things], faces.things + 1, 0).astype(np.uint16)
    # A lamp post that carries a sign is a pole: only plates and heads are boxed, so the label decides too.
    owners[faces.labels == 17] = 0
    seen = owners[ids]
    areas = np.bincount(seen.ravel(), minlength=len(things) + 1)
    kept = np.flatnonzero(areas[1:]) + 1
    boxes, renumber = [], np.zeros(len(things) + 1, np.uint16)
    for row, number in enumerate(kept):
        mask = cv2.inRange(seen, int(number), int(number))  # type: ignore[call-overload]
        x, y, width, height = cv2.boundingRect(mask)
        boxes.append((x, y, x + width, y + height))
        renumber[number] = row + 1
    box = np.array(boxes, np.float32).reshape(-1, 4)
    area = areas[kept]
    sides = (box[:, 2:] - box[:, :2]).min(1) if len(box) else np.zeros(0)
    hidden = area < SMALLEST_VISIBLE * faces.drawn[kept - 1]
    kinds = np.array([things[number - 1].kind for number in kept], np.int64)
    identities = np.array([things[number - 1].identity for number in kept], np.int64)
    return renumber[seen], box, kinds, area.astype(np.int64), (sides < SMALLEST_SIDE) | hidden, identities
