"""From things on the street to pixels: which face is seen where, and at which depth.

Painter's algorithm: far things first. Every face gets a number; the picture of face numbers then looks up colour,
label, object and the plane whose depth is exact at each pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.data.street.picture import POLE
from perception.data.street.view import View
from perception.data.street.world import Thing, World

NEAR = 0.6
SUBPIXEL = 4
"""Bits of a pixel's fraction that the rasteriser is given."""


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """Everything in view, in painting order. Row 0 of the face arrays [F + 1] is the bare ground and sky.

    ids:    uint16 [H, W], the face seen at each pixel
    planes: float32 [F + 1, 3], inverse depth = a * x + b * y + c at pixel centres; ``near``, ``far``: its bounds
    normals: float64 [F + 1, 3] of the road frame (right, up, forward), towards the camera
    things: the object of each face, -1 = none; ``drawn`` int64 [T]: pixels of each thing before others covered it
    bounds: int64 [T, 4], x1 y1 x2 y2 around the pixels that each thing can cover
    spots:  float64 [T, 3] where each thing stands (right of the camera, up, ahead)
    """

    ids: NDArray[np.uint16]
    planes: NDArray[np.float32]
    near: NDArray[np.float32]
    far: NDArray[np.float32]
    normals: NDArray[np.float64]
    labels: NDArray[np.uint8]
    slots: NDArray[np.int64]
    shades: NDArray[np.float64]
    glows: NDArray[np.float64]
    colours: NDArray[np.float64]
    things: NDArray[np.int64]
    drawn: NDArray[np.int64]
    bounds: NDArray[np.int64]
    spots: NDArray[np.float64]


def place(world: World, view: View, things: list[Thing]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(spots [T, 3] right of the camera, up, ahead; headings [T] against straight ahead)."""
    ahead = np.array([thing.along for thing in things]) - view.along
    across = np.array([thing.across for thing in things]) - view.across
    bend = world.curvature * ahead
    spots = np.stack([across + 0.5 * bend * ahead, np.zeros(len(things)), ahead], 1)
    return spots, np.array([thing.turn for thing in things]) + np.arctan(bend)


def visible(world: World, view: View) -> tuple[list[Thing], NDArray[np.float64], NDArray[np.float64]]:
    """The things that can reach into the picture, far to near, with their spots and headings."""
    spots, headings = place(world, view, world.things)
    radius = np.array([max(t.mesh.size[0] * t.scale[0], t.mesh.size[2] * t.scale[2]) for t in world.things])
    forward = spots @ (view.rotation[2] * (1, -1, 1))
    sideways = spots @ (view.rotation[0] * (1, -1, 1))
    limit = 0.5 * view.size[1] / view.camera.fx * 1.1
    seen = (forward + radius > NEAR) & (np.abs(sideways) - radius * 1.5 < limit * (forward + radius))
    rows = np.flatnonzero(seen)
    half = np.array([abs(np.cos(t.turn)) * t.mesh.size[2] * t.scale[2] for t in world.things])
    layer = np.array([t.layer for t in world.things])
    key = forward + np.where(layer > 0, layer, -half)
    rows = rows[np.argsort(-key[rows], kind="stable")]
    return [world.things[row] for row in rows], spots[rows], headings[rows]


def paint(world: World, view: View) -> tuple[Faces, list[Thing]]:
    """Draw everything that stands on the street."""
    things, spots, headings = visible(world, view)
    meshes = [thing.mesh for thing in things]
    vertex_counts = np.array([len(mesh.anchors) for mesh in meshes])
    face_counts = np.array([len(mesh.counts) for mesh in meshes])
    owner = np.repeat(np.arange(len(things)), face_counts)
    counts = np.concatenate([mesh.counts for mesh in meshes])
    limbs = np.concatenate([mesh.limb for mesh in meshes])
    points = _vertices(things, spots, headings, vertex_counts, counts, limbs)
    seen = view.to_camera(points)
    starts = np.cumsum(counts) - counts
    third = np.maximum(counts // 3, 1)
    a, b, c = points[starts], points[starts + third], points[starts + np.minimum(2 * third, counts - 1)]
    normals = np.cross(b - a, c - a)
    eye = np.array([0.0, view.height, 0.0])
    towards = np.einsum("fk,fk->f", normals, eye - a)
    depth = seen[:, 2]
    nearest, farthest = np.minimum.reduceat(depth, starts), np.maximum.reduceat(depth, starts)
    one_sided = np.concatenate([mesh.one_sided for mesh in meshes])
    keep = (farthest > NEAR) & (~one_sided | (towards > 0))
    pixels = view.project(np.where(depth[:, None] > NEAR, seen, (0.0, 0.0, 1.0))) - 0.5
    low, high = np.minimum.reduceat(pixels, starts), np.maximum.reduceat(pixels, starts)
    clipped = nearest <= NEAR
    inside = (
        (high[:, 0] > -1)
        & (low[:, 0] < view.size[1])
        & (high[:, 1] > -1)
        & (low[:, 1] < view.size[0])
        & ((high - low).max(1) > 0.7)
    )
    keep &= inside | clipped
    parts = np.concatenate([mesh.parts for mesh in meshes]) * np.cos(headings)[owner]
    rows = np.flatnonzero(keep)
    rows = rows[np.lexsort((rows, -parts[rows], owner[rows]))]
    bounds = _bounds(view, low, high, clipped, rows, owner, len(things))
    labels = np.concatenate([mesh.labels for mesh in meshes])
    ids, drawn = _draw(view, pixels, seen, starts, counts, clipped, rows, owner, things, bounds, labels[rows] == POLE)
    facing = normals[rows] * np.sign(towards[rows] + 1e-12)[:, None]
    facing /= np.linalg.norm(facing, axis=1, keepdims=True) + 1e-12
    planes = _planes(view, seen[starts[rows]], facing)

    def lead(values: NDArray, first: float, kind: type) -> NDArray:
        return np.concatenate([[first], values[rows]]).astype(kind)

    gather = {
        name: np.concatenate([getattr(mesh, name) for mesh in meshes])
        for name in ("labels", "slots", "shades", "glows")
    }
    palettes = np.stack([thing.palette for thing in things])
    colours = palettes[owner[rows], gather["slots"][rows]]
    faces = Faces(
        ids, np.concatenate([np.zeros((1, 3), np.float32), planes]), lead(1 / np.maximum(nearest, NEAR), 1.0, np.float32), lead(1 / np.maximum(farthest, NEAR), 0.0, np.float32),
        np.concatenate([[[0.0, 1.0, 0.0]], facing]), lead(gather["labels"], 0, np.uint8), lead(gather["slots"], 0, np.int64), lead(gather["shades"], 1, np.float64),
        lead(gather["glows"], 2, np.float64), np.concatenate([[[0.0, 0.0, 0.0]], colours]), lead(owner, -1, np.int64), drawn, bounds, spots,
    )  # fmt: skip
    return faces, things


def _vertices(
    things: list[Thing], spots: NDArray, headings: NDArray, vertex_counts: NDArray, counts: NDArray, limbs: NDArray
) -> NDArray[np.float64]:
    """All vertices [V, 3], right of the camera, above the ground, ahead."""
    meshes = [thing.mesh for thing in things]
    scale = np.repeat(np.array([thing.scale for thing in things]), vertex_counts, axis=0)
    local = np.concatenate([mesh.anchors for mesh in meshes]) * scale
    cos, sin = np.repeat(np.cos(headings), vertex_counts), np.repeat(np.sin(headings), vertex_counts)
    points = np.repeat(spots, vertex_counts, axis=0)
    points[:, 0] += local[:, 0] * cos + local[:, 2] * sin
    points[:, 1] += local[:, 1]
    points[:, 2] += local[:, 2] * cos - local[:, 0] * sin
    points += np.concatenate([mesh.offsets for mesh in meshes]) * scale
    starts = (np.cumsum(counts) - counts)[limbs]
    along = points[starts + 2] - points[starts]
    length = np.hypot(along[:, 0], along[:, 1]) + 1e-9
    normal = np.stack([-along[:, 1] / length, along[:, 0] / length, np.zeros(len(starts))], 1)
    normal[length < 1e-6] = (1.0, 0.0, 0.0)
    radii = np.concatenate([mesh.radii for mesh in meshes]) * scale[:, 0]
    for corner in range(4):
        points[starts + corner] += normal * radii[starts + corner, None]
    return points


def _planes(view: View, points: NDArray[np.float64], normals: NDArray[np.float64]) -> NDArray[np.float32]:
    """Coefficients [F, 3] of inverse depth over pixel indices, of planes through ``points`` (camera's frame)."""
    camera = view.camera
    normals = (normals * (1.0, -1.0, 1.0)) @ view.rotation.T
    distance = np.einsum("fk,fk->f", normals, points)
    distance = np.where(np.abs(distance) < 1e-6, 1e-6, distance)
    a, b = normals[:, 0] / camera.fx / distance, normals[:, 1] / camera.fy / distance
    c = normals[:, 2] / distance + a * (0.5 - camera.cx) + b * (0.5 - camera.cy)
    return np.stack([a, b, c], 1).astype(np.float32)


def _bounds(
    view: View, low: NDArray, high: NDArray, clipped: NDArray, rows: NDArray, owner: NDArray, count: int
) -> NDArray[np.int64]:
    """Whole-pixel rectangle [T, 4] within the picture around the faces of each thing."""
    height, width = view.size
    bounds = np.tile(np.array([width, height, 0, 0], np.float64), (count, 1))
    if len(rows):
        owners, first = np.unique(owner[rows], return_index=True)
        near = clipped[rows, None]
        bounds[owners, :2] = np.minimum.reduceat(np.where(near, 0.0, low[rows] - 1), first)
        bounds[owners, 2:] = np.maximum.reduceat(np.where(near, (width, height), high[rows] + 3), first)
    return np.clip(bounds, 0, (width, height, width, height)).astype(np.int64)


def _draw(
    view: View, pixels: NDArray, seen: NDArray, starts: NDArray, counts: NDArray, clipped: NDArray, rows: NDArray,
    owner: NDArray, things: list[Thing], bounds: NDArray[np.int64], poles: NDArray[np.bool_],
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:  # fmt: skip
    """Fill the faces in order. Also counts what each boxed thing, without its ``poles``, covers when it is painted."""
    ids = np.zeros(view.size, np.uint16)
    drawn = np.zeros(len(things), np.int64)
    fixed = np.rint(np.clip(pixels, -30000, 30000) * (1 << SUBPIXEL)).astype(np.int32)
    fill, lines, shift = cv2.fillConvexPoly, cv2.LINE_8, SUBPIXEL
    starts, ends, cuts = starts[rows].tolist(), (starts + counts)[rows].tolist(), clipped[rows].tolist()
    owners, firsts = np.unique(owner[rows], return_index=True)
    for thing, first, last in zip(owners.tolist(), firsts.tolist(), [*firsts[1:].tolist(), len(rows)], strict=True):
        for number in range(first, last):
            start, end = starts[number], ends[number]
            polygon = _clip(view, seen[start:end]) if cuts[number] else fixed[start:end]
            if len(polygon) > 2:
                fill(ids, polygon, number + 1, lines, shift)
        if things[thing].kind >= 0:
            x1, y1, x2, y2 = bounds[thing].tolist()
            lowest = first + 1 + int(poles[first:last].sum())
            covered = cv2.inRange(ids[y1:y2, x1:x2], lowest, last) if x1 < x2 and y1 < y2 else None  # type: ignore[call-overload]
            drawn[thing] = 0 if covered is None else cv2.countNonZero(covered)
    return ids, drawn


def _clip(view: View, points: NDArray[np.float64]) -> NDArray[np.int32]:
    """The part of a polygon (camera's frame) beyond the near plane, in fixed-point pixels."""
    kept = []
    for start, end in zip(points, np.roll(points, -1, 0), strict=True):
        if start[2] > NEAR:
            kept.append(start)
        if (start[2] > NEAR) != (end[2] > NEAR):
            share = (NEAR - start[2]) / (end[2] - start[2])
            kept.append(start + share * (end - start))
    if not kept:
        return np.zeros((0, 2), np.int32)
    return np.rint(np.clip(view.project(np.array(kept)) - 0.5, -30000, 30000) * (1 << SUBPIXEL)).astype(np.int32)


__all__ = ["NEAR", "Faces", "paint", "place", "visible"]
