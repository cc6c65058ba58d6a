"""Render a street from a camera, with all labels."""

from __future__ import annotations

from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic.atmosphere import add_glow, add_haze, add_sky, apply_camera_effects
from perception.synthetic.ground import BIN_WIDTH, HALF_WIDTH, NUM_BINS, NUM_LEVELS, NUM_ZONES, assign_zones
from perception.synthetic.rasterize import VisibleFaces, paint_objects
from perception.synthetic.sample_world import sample_world
from perception.synthetic.shade import GBuffer, shade_surfaces
from perception.synthetic.street_image import (
    GENERATOR_VERSION,
    MAX_DEPTH,
    MIN_BOX_SIDE,
    MIN_VISIBLE_FRACTION,
    POLE,
    SKY,
    StreetImage,
)
from perception.synthetic.view import CameraView, sample_view
from perception.synthetic.world import BACKDROP_DISTANCE, StreetObject, World


def render_image(seed: int, index: int, size: tuple[int, int] = (256, 512)) -> StreetImage:
    """Render image ``index`` of ``seed``, of ``size`` (height, width). It depends only on the arguments."""
    choose = Random(f"street {GENERATOR_VERSION} {seed} {index}")
    world = sample_world(choose)
    view = sample_view(choose, size, world.road.own_lane_center)
    return render_view(world, view, choose)


def render_view(world: World, view: CameraView, rng: Random) -> StreetImage:
    """Render the street from one camera. ``rng`` is for camera effects (noise, drops)."""
    faces, things = paint_objects(world, view)
    surface = _compute_gbuffer(faces, view)
    labels = np.take(faces.labels, surface.face_ids)
    ground_colors = _render_ground(world, view, surface, labels)
    labels[surface.is_sky] = SKY
    image = shade_surfaces(world, view, faces, things, surface, ground_colors, labels)
    add_sky(image, world.light, surface.rays, surface.is_sky, world.texture_origin)
    add_haze(image, world.light, surface.depth, surface.is_sky, labels)
    add_glow(image, world.light, view, faces, surface.face_ids)
    depth = np.where(surface.is_sky | (surface.depth > MAX_DEPTH), np.float32(0), surface.depth)
    instances = _collect_instances(faces, things, surface.face_ids)
    image = apply_camera_effects(image, world.light, rng)
    pose = view.camera_height, view.pitch, view.yaw, view.roll
    return StreetImage(image, labels, *instances, depth, view.camera, *pose, world.light.scene_class)


def _compute_gbuffer(faces: VisibleFaces, view: CameraView) -> GBuffer:
    height, width = view.size
    rays = view.compute_rays()
    ids = faces.ids.astype(np.intp)
    x, y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
    a, b, c = (np.take(np.ascontiguousarray(faces.planes[:, k]), ids) for k in range(3))
    a *= x
    b *= y
    inverse = a + b
    inverse += c
    inverse = np.minimum(inverse, np.take(faces.max_inverse_depths, ids), out=inverse)
    inverse = np.maximum(inverse, np.take(faces.min_inverse_depths, ids), out=inverse)
    bare = faces.ids == 0
    sky = bare & (rays[1] <= view.camera_height / 400)
    np.copyto(inverse, rays[1] * np.float32(1 / view.camera_height), where=bare)
    inverse[sky] = 1 / 2000
    depth = np.reciprocal(inverse)
    right, ahead = rays[0] * depth, rays[2] * depth
    up = np.float32(view.camera_height) - rays[1] * depth
    return GBuffer(ids, depth, right, up, ahead, bare ^ sky, sky, rays)


def _render_ground(world: World, view: CameraView, gbuffer: GBuffer, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colors [H - first, W, 3] of the bare ground below the horizon. Writes its labels into ``labels``."""
    first = gbuffer.first_ground_row
    right, ahead, ground = gbuffer.right[first:], gbuffer.ahead[first:], gbuffer.is_ground[first:]
    across = ahead * ahead
    across *= np.float32(-0.5 * world.curvature / BIN_WIDTH)
    across += right * np.float32(1 / BIN_WIDTH)
    across += np.float32((view.across + HALF_WIDTH) / BIN_WIDTH)
    column = np.clip(across, 0, NUM_BINS - 1, out=across).astype(np.intp)
    zones = assign_zones(world.road, world.crossings, view.along, BACKDROP_DISTANCE + 20) * NUM_BINS
    zone = np.take(zones, (ahead * np.float32(10)).astype(np.intp), mode="clip")
    footprint = (
        view.camera_height
        / np.maximum(np.median(gbuffer.rays[1, first:, ::8], axis=1), 1e-3)
        / view.camera.fx
        / BIN_WIDTH
    )
    level = np.clip(np.frexp(footprint)[1], 0, NUM_LEVELS - 1).astype(np.intp) * (NUM_ZONES * NUM_BINS)
    column += zone
    lying = np.take(world.road.labels, column)
    np.copyto(labels[first:], lying, where=ground)
    column += level[:, None]
    return np.take(world.road.colors.reshape(-1, 3), column, axis=0)


def _collect_instances(
    faces: VisibleFaces, objects: list[StreetObject], face_ids: NDArray[np.intp]
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray, NDArray]:
    """Instance map, boxes, labels, areas, ignore and identities of the visible objects with a class."""
    boxed = np.array([thing.class_index >= 0 for thing in objects] + [False])
    owners = np.where(boxed[faces.object_indices], faces.object_indices + 1, 0).astype(np.uint16)
    # Boxes contain only plates and signal heads, not their poles, so the label is checked too.
    owners[faces.labels == POLE] = 0
    seen = np.take(owners, face_ids)
    areas = np.bincount(seen.ravel(), minlength=len(objects) + 1)
    kept = np.flatnonzero(areas[1:]) + 1
    boxes, renumber = [], np.zeros(len(objects) + 1, np.uint16)
    for row, number in enumerate(kept.tolist()):
        x1, y1, x2, y2 = faces.bounds[number - 1].tolist()
        x, y, width, height = cv2.boundingRect(cv2.inRange(seen[y1:y2, x1:x2], number, number))  # type: ignore[call-overload]
        boxes.append((x1 + x, y1 + y, x1 + x + width, y1 + y + height))
        renumber[number] = row + 1
    box = np.array(boxes, np.float32).reshape(-1, 4)
    area = areas[kept]
    sides = (box[:, 2:] - box[:, :2]).min(1) if len(box) else np.zeros(0)
    hidden = area < MIN_VISIBLE_FRACTION * faces.painted_areas[kept - 1]
    kinds = np.array([objects[number - 1].class_index for number in kept], np.int64)
    identities = np.array([objects[number - 1].track_id for number in kept], np.int64)
    return np.take(renumber, seen), box, kinds, area.astype(np.int64), (sides < MIN_BOX_SIDE) | hidden, identities
