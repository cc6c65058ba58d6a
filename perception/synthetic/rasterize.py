"""Rasterize the objects on the street: visible face and depth per pixel.

Painter's algorithm: far objects first. Every face has an index. The image of face indices then gives color, label,
object, and the plane for the exact depth of each pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic.mesh import NEVER_GLOWS
from perception.synthetic.street_image import POLE
from perception.synthetic.view import CameraView
from perception.synthetic.world import StreetObject, World

NEAR_PLANE = 0.6
SUBPIXEL_BITS = 4
"""Fractional bits of the pixel coordinates given to the rasterizer."""


@dataclass(frozen=True, slots=True, eq=False)
class VisibleFaces:
    """All faces in view, in painting order, for T objects. Row 0 of the face arrays [F + 1] is bare ground and sky.

    Attributes:
        ids: uint16 [H, W], the visible face of each pixel.
        planes: float32 [F + 1, 3], inverse depth = a * x + b * y + c at pixel centers.
        max_inverse_depths: float32 [F + 1], upper bound of the inverse depth.
        min_inverse_depths: float32 [F + 1], lower bound of the inverse depth.
        normals: float64 [F + 1, 3] in the road frame (right, up, forward), towards the camera.
        labels: [F + 1], Cityscapes labelIds.
        slots: [F + 1], palette slots.
        shades: [F + 1], factors on the color.
        glow_thresholds: [F + 1], see `Mesh`.
        colors: face colors from the objects' palettes.
        object_indices: [F + 1], object of each face, -1 = none.
        painted_areas: int64 [T], pixels of each object before other objects covered it.
        bounds: int64 [T, 4], x1 y1 x2 y2 around the pixels that each object can cover.
        positions: float64 [T, 3], position of each object (right of the camera, up, ahead).
    """

    ids: NDArray[np.uint16]
    planes: NDArray[np.float32]
    max_inverse_depths: NDArray[np.float32]
    min_inverse_depths: NDArray[np.float32]
    normals: NDArray[np.float64]
    labels: NDArray[np.uint8]
    slots: NDArray[np.int64]
    shades: NDArray[np.float64]
    glow_thresholds: NDArray[np.float64]
    colors: NDArray[np.float64]
    object_indices: NDArray[np.int64]
    painted_areas: NDArray[np.int64]
    bounds: NDArray[np.int64]
    positions: NDArray[np.float64]


def locate_objects(
    world: World, view: CameraView, objects: list[StreetObject]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return positions [T, 3] (right of the camera, up, ahead) and headings [T] relative to straight ahead."""
    ahead = np.array([thing.along for thing in objects]) - view.along
    across = np.array([thing.across for thing in objects]) - view.across
    bend = world.curvature * ahead
    spots = np.stack([across + 0.5 * bend * ahead, np.zeros(len(objects)), ahead], 1)
    return spots, np.array([thing.yaw for thing in objects]) + np.arctan(bend)


def find_visible(world: World, view: CameraView) -> tuple[list[StreetObject], NDArray[np.float64], NDArray[np.float64]]:
    """Return the objects that can reach into the image, far to near, with positions and headings."""
    spots, headings = locate_objects(world, view, world.objects)
    radius = np.array(
        [max(t.mesh.half_extents[0] * t.scale[0], t.mesh.half_extents[2] * t.scale[2]) for t in world.objects]
    )
    forward = spots @ (view.rotation[2] * (1, -1, 1))
    sideways = spots @ (view.rotation[0] * (1, -1, 1))
    limit = 0.5 * view.size[1] / view.camera.fx * 1.1
    seen = (forward + radius > NEAR_PLANE) & (np.abs(sideways) - radius * 1.5 < limit * (forward + radius))
    rows = np.flatnonzero(seen)
    half = np.array([abs(np.cos(t.yaw)) * t.mesh.half_extents[2] * t.scale[2] for t in world.objects])
    layer = np.array([t.paint_offset for t in world.objects])
    key = forward + np.where(layer > 0, layer, -half)
    rows = rows[np.argsort(-key[rows], kind="stable")]
    return [world.objects[row] for row in rows], spots[rows], headings[rows]


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """All polygons of all objects in view, before culling: arrays over faces [F] and their vertices [V].

    Attributes:
        object_indices: [F], row of the object.
        starts: [F], index of the first vertex.
        vertex_counts: [F], number of vertices.
        points: float64 [V, 3], right of the camera, up, ahead.
        camera_points: float64 [V, 3], the same points in the camera frame.
        normals: float64 [F, 3] (right, up, ahead), of any length.
        facing: [F], positive if the normal points to the camera.
    """

    object_indices: NDArray[np.int64]
    starts: NDArray[np.int64]
    vertex_counts: NDArray[np.int64]
    points: NDArray[np.float64]
    camera_points: NDArray[np.float64]
    normals: NDArray[np.float64]
    facing: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class DrawList:
    """The faces to paint. The arrays other than ``rows`` are over all faces [F] or vertices [V].

    Attributes:
        rows: the faces in painting order.
        min_depths: [F], metres.
        max_depths: [F], metres.
        crosses_near_plane: [F], whether the face extends behind the near plane.
        pixels: float64 [V, 2], pixel indices.
        pixel_min: [F, 2], smallest pixel indices.
        pixel_max: [F, 2], largest pixel indices.
    """

    rows: NDArray[np.int64]
    min_depths: NDArray[np.float64]
    max_depths: NDArray[np.float64]
    crosses_near_plane: NDArray[np.bool_]
    pixels: NDArray[np.float64]
    pixel_min: NDArray[np.float64]
    pixel_max: NDArray[np.float64]


def paint_objects(world: World, view: CameraView) -> tuple[VisibleFaces, list[StreetObject]]:
    """Paint all objects on the street."""
    things, spots, headings = find_visible(world, view)
    shapes = _collect_polygons(things, spots, headings, view)
    plan = _build_draw_list(
        shapes,
        view,
        _concatenate(things, "is_one_sided"),
        _concatenate(things, "part_depths") * np.cos(headings)[shapes.object_indices],
    )
    rows, owner = plan.rows, shapes.object_indices[plan.rows]
    labels, slots = _concatenate(things, "labels")[rows], _concatenate(things, "slots")[rows]
    bounds = _compute_bounds(view, plan, owner, len(things))
    ids, drawn = _fill_faces(view, shapes, plan, things, bounds, labels == POLE)
    facing = shapes.normals[rows] * np.sign(shapes.facing[rows] + 1e-12)[:, None]
    facing /= np.linalg.norm(facing, axis=1, keepdims=True) + 1e-12
    faces = VisibleFaces(
        ids=ids,
        planes=np.concatenate(
            [np.zeros((1, 3), np.float32), _fit_planes(view, shapes.camera_points[shapes.starts[rows]], facing)]
        ),
        max_inverse_depths=_prepend(1 / np.maximum(plan.min_depths[rows], NEAR_PLANE), 1.0).astype(np.float32),
        min_inverse_depths=_prepend(1 / np.maximum(plan.max_depths[rows], NEAR_PLANE), 0.0).astype(np.float32),
        normals=np.concatenate([[[0.0, 1.0, 0.0]], facing]),
        labels=_prepend(labels, 0).astype(np.uint8),
        slots=_prepend(slots, 0),
        shades=_prepend(_concatenate(things, "shades")[rows], 1.0),
        glow_thresholds=_prepend(_concatenate(things, "glow_thresholds")[rows], NEVER_GLOWS),
        colors=np.concatenate([np.zeros((1, 3)), np.stack([thing.palette for thing in things])[owner, slots]]),
        object_indices=_prepend(owner, -1),
        painted_areas=drawn,
        bounds=bounds,
        positions=spots,
    )
    return faces, things


def _concatenate(objects: list[StreetObject], name: str) -> NDArray:
    """Concatenate an array of the shapes of all objects."""
    return np.concatenate([getattr(thing.mesh, name) for thing in objects])


def _prepend(values: NDArray, first: float) -> NDArray:
    """Prepend the row of the bare ground."""
    return np.concatenate([np.array([first], values.dtype), values])


def _collect_polygons(objects: list[StreetObject], positions: NDArray, headings: NDArray, view: CameraView) -> Polygons:
    owner = np.repeat(np.arange(len(objects)), [len(thing.mesh.vertex_counts) for thing in objects])
    counts = _concatenate(objects, "vertex_counts")
    starts = np.cumsum(counts) - counts
    points = _transform_vertices(objects, positions, headings, starts[_concatenate(objects, "is_limb")])
    third = np.maximum(counts // 3, 1)
    a, b, c = points[starts], points[starts + third], points[starts + np.minimum(2 * third, counts - 1)]
    normals = np.cross(b - a, c - a)
    towards = np.einsum("fk,fk->f", normals, np.array([0.0, view.camera_height, 0.0]) - a)
    return Polygons(owner, starts, counts, points, view.to_camera(points), normals, towards)


def _build_draw_list(
    polygons: Polygons, view: CameraView, is_one_sided: NDArray[np.bool_], part_depths: NDArray[np.float64]
) -> DrawList:
    """Drop faces behind the camera, outside the image, turned away or smaller than a pixel; sort the rest."""
    depth, starts = polygons.camera_points[:, 2], polygons.starts
    nearest, farthest = np.minimum.reduceat(depth, starts), np.maximum.reduceat(depth, starts)
    pixels = view.project(np.where(depth[:, None] > NEAR_PLANE, polygons.camera_points, (0.0, 0.0, 1.0))) - 0.5
    low, high = np.minimum.reduceat(pixels, starts), np.maximum.reduceat(pixels, starts)
    inside = ((high > -1) & (low < view.size[::-1])).all(1) & ((high - low).max(1) > 0.7)
    clipped = nearest <= NEAR_PLANE
    keep = (farthest > NEAR_PLANE) & (inside | clipped) & (~is_one_sided | (polygons.facing > 0))
    rows = np.flatnonzero(keep)
    rows = rows[np.lexsort((rows, -part_depths[rows], polygons.object_indices[rows]))]
    return DrawList(rows, nearest, farthest, clipped, pixels, low, high)


def _transform_vertices(
    objects: list[StreetObject], positions: NDArray, headings: NDArray, limbs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """All vertices [V, 3]: right of the camera, above the ground, ahead. ``limbs``: first vertex of each limb."""
    counts = [len(thing.mesh.anchors) for thing in objects]
    scale = np.repeat(np.array([thing.scale for thing in objects]), counts, axis=0)
    local = _concatenate(objects, "anchors") * scale
    cos, sin = np.repeat(np.cos(headings), counts), np.repeat(np.sin(headings), counts)
    points = np.repeat(positions, counts, axis=0)
    points[:, 0] += local[:, 0] * cos + local[:, 2] * sin
    points[:, 1] += local[:, 1]
    points[:, 2] += local[:, 2] * cos - local[:, 0] * sin
    points += _concatenate(objects, "offsets") * scale
    along = points[limbs + 2] - points[limbs]
    length = np.hypot(along[:, 0], along[:, 1]) + 1e-9
    normal = np.stack([-along[:, 1] / length, along[:, 0] / length, np.zeros(len(limbs))], 1)
    normal[length < 1e-6] = (1.0, 0.0, 0.0)
    radii = _concatenate(objects, "radii") * scale[:, 0]
    for corner in range(4):
        points[limbs + corner] += normal * radii[limbs + corner, None]
    return points


def _fit_planes(view: CameraView, points: NDArray[np.float64], normals: NDArray[np.float64]) -> NDArray[np.float32]:
    """Coefficients [F, 3] of inverse depth over pixel indices, for planes through ``points`` (camera frame)."""
    camera = view.camera
    normals = (normals * (1.0, -1.0, 1.0)) @ view.rotation.T
    distance = np.einsum("fk,fk->f", normals, points)
    distance = np.where(np.abs(distance) < 1e-6, 1e-6, distance)
    a, b = normals[:, 0] / camera.fx / distance, normals[:, 1] / camera.fy / distance
    c = normals[:, 2] / distance + a * (0.5 - camera.cx) + b * (0.5 - camera.cy)
    return np.stack([a, b, c], 1).astype(np.float32)


def _compute_bounds(
    view: CameraView, draw_list: DrawList, object_indices: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Whole-pixel rectangle [T, 4] within the image around the painted faces of each object."""
    height, width = view.size
    bounds = np.tile(np.array([width, height, 0, 0], np.float64), (count, 1))
    owners, first = np.unique(object_indices, return_index=True)
    if len(owners):
        near = draw_list.crosses_near_plane[draw_list.rows, None]
        bounds[owners, :2] = np.minimum.reduceat(np.where(near, 0.0, draw_list.pixel_min[draw_list.rows] - 1), first)
        bounds[owners, 2:] = np.maximum.reduceat(
            np.where(near, (width, height), draw_list.pixel_max[draw_list.rows] + 3), first
        )
    return np.clip(bounds, 0, (width, height, width, height)).astype(np.int64)


def _fill_faces(
    view: CameraView,
    polygons: Polygons,
    draw_list: DrawList,
    objects: list[StreetObject],
    bounds: NDArray[np.int64],
    is_pole: NDArray[np.bool_],
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Fill the faces in order, and count the pixels of each boxed object, without poles, when it is painted."""
    ids = np.zeros(view.size, np.uint16)
    drawn = np.zeros(len(objects), np.int64)
    fixed = to_fixed_point(draw_list.pixels)
    starts, cuts = polygons.starts[draw_list.rows].tolist(), draw_list.crosses_near_plane[draw_list.rows].tolist()
    ends = (polygons.starts + polygons.vertex_counts)[draw_list.rows].tolist()
    owners, firsts = np.unique(polygons.object_indices[draw_list.rows], return_index=True)
    for thing, first, last in zip(owners.tolist(), firsts.tolist(), [*firsts[1:].tolist(), len(starts)], strict=True):
        for number in range(first, last):
            start, end = starts[number], ends[number]
            polygon = clip_to_near_plane(view, polygons.camera_points[start:end]) if cuts[number] else fixed[start:end]
            if len(polygon) > 2:
                cv2.fillConvexPoly(ids, polygon, number + 1, cv2.LINE_8, SUBPIXEL_BITS)
        x1, y1, x2, y2 = bounds[thing].tolist()
        if objects[thing].class_index >= 0 and x1 < x2 and y1 < y2:
            lowest = first + 1 + int(is_pole[first:last].sum())
            covered = cv2.inRange(ids[y1:y2, x1:x2], lowest, last)  # type: ignore[call-overload]
            drawn[thing] = cv2.countNonZero(covered)
    return ids, drawn


def to_fixed_point(pixels: NDArray[np.float64]) -> NDArray[np.int32]:
    """Convert pixel indices to the rasterizer's fixed-point numbers."""
    return np.rint(np.clip(pixels, -30000, 30000) * (1 << SUBPIXEL_BITS)).astype(np.int32)


def clip_to_near_plane(view: CameraView, points: NDArray[np.float64]) -> NDArray[np.int32]:
    """Clip a polygon (camera frame) to the near plane, in fixed-point pixels; [0, 2] if nothing remains."""
    kept = []
    for start, end in zip(points, np.roll(points, -1, 0), strict=True):
        if start[2] > NEAR_PLANE:
            kept.append(start)
        if (start[2] > NEAR_PLANE) != (end[2] > NEAR_PLANE):
            kept.append(start + (NEAR_PLANE - start[2]) / (end[2] - start[2]) * (end - start))
    return to_fixed_point(view.project(np.array(kept)) - 0.5) if kept else np.zeros((0, 2), np.int32)
