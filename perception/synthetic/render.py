"""A street as seen by a camera, with every label."""

from __future__ import annotations

from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic.atmosphere import add_sky, develop, glow, through_air
from perception.synthetic.canvas import (  # fmt: skip
    FARTHEST,
    POLE,
    SKY,
    SMALLEST_SIDE,
    SMALLEST_VISIBLE,
    VERSION,
    StreetPicture,
)
from perception.synthetic.ground import BIN, BINS, LEVELS, REACH, ZONES, zones_along
from perception.synthetic.rasterize import Faces, paint
from perception.synthetic.sample import sample_world
from perception.synthetic.shade import Surface, shade
from perception.synthetic.view import View, sample_view
from perception.synthetic.world import HORIZON, Thing, World


def render(seed: int, index: int, size: tuple[int, int] = (256, 512)) -> StreetPicture:
    """Picture ``index`` of the collection ``seed``, of ``size`` (height, width): a function of its arguments alone."""
    choose = Random(f"street {VERSION} {seed} {index}")
    world = sample_world(choose)
    view = sample_view(choose, size, world.road.own)
    return picture(world, view, choose)


def picture(world: World, view: View, choose: Random) -> StreetPicture:
    """The street from one place. ``choose`` draws what the camera adds (noise, drops)."""
    faces, things = paint(world, view)
    surface = _surface(faces, view)
    labels = np.take(faces.labels, surface.ids)
    ground_colours = _ground(world, view, surface, labels)
    labels[surface.sky] = SKY
    image = shade(world, view, faces, things, surface, ground_colours, labels)
    add_sky(image, world.light, surface.rays, surface.sky, world.origin)
    through_air(image, world.light, surface.depth, surface.sky, labels)
    glow(image, world.light, view, faces, surface.ids)
    depth = np.where(surface.sky | (surface.depth > FARTHEST), np.float32(0), surface.depth)
    instances = _instances(faces, things, surface.ids)
    image = develop(image, world.light, choose)
    pose = view.height, view.pitch, view.yaw, view.roll
    return StreetPicture(image, labels, *instances, depth, view.camera, *pose, world.light.scene)


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
    depth = np.reciprocal(inverse)
    right, ahead = rays[0] * depth, rays[2] * depth
    up = np.float32(view.height) - rays[1] * depth
    return Surface(ids, depth, right, up, ahead, bare ^ sky, sky, rays)


def _ground(world: World, view: View, surface: Surface, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours [H - first, W, 3] of the bare ground from the horizon on; writes its labels into ``labels``."""
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
    lying = np.take(world.road.labels, column)
    np.copyto(labels[first:], lying, where=ground)
    column += level[:, None]
    return np.take(world.road.colours.reshape(-1, 3), column, axis=0)


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
